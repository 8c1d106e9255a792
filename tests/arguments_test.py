"""The parser that the command lines share."""

import pathlib

import pytest

import helios_jax
from helios_jax.arguments import Parser, finite, path, whole, wholes


def parser() -> Parser:
    parser = Parser(prog="tool")
    parser.add_argument("--height", type=whole("--height", at_least=1, at_most=100))
    parser.add_argument("--scale", type=finite("--scale", at_least=0))
    parser.add_argument("--steps", type=wholes("--steps", at_least=1))
    parser.add_argument("--out", type=path("--out"))
    parser.add_argument("--dtype", choices=("a", "b"))
    parser.add_argument("--model", required=True)
    return parser


def test_values(monkeypatch):
    monkeypatch.setenv("HOME", "/home/fox")
    args = parser().parse_args(["--model=m", "--height=100", "--scale=1e-3", "--steps=1,2", "--out=~/x.mp4"])
    assert (args.height, args.scale, args.steps, args.out) == (100, 0.001, (1, 2), pathlib.Path("/home/fox/x.mp4"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--height=64.0", "--height='64.0' must be a whole number from 1 to 100"),
        ("--height=101", "--height=101 must be a whole number from 1 to 100"),
        ("--height=" + "9" * 5000, "--height='999"),
        ("--height", "expected one argument"),
        ("--height=6_4", "--height='6_4' must be a whole number from 1 to 100"),
        ("--scale=1_0", "--scale='1_0' must be a finite number of at least 0"),
        ("--scale=\uff11", "must be a finite number of at least 0"),
        ("--scale=nan", "--scale=nan must be a finite number of at least 0"),
        ("--scale=x", "--scale='x' must be a finite number"),
        ("--steps=1,a,1", "--steps=1,a,1: part='a' must be a whole number"),
        ("--steps=1 1 1", "--steps='1 1 1': put commas between the numbers"),
        ("--out=", "--out='' is not a path"),
        ("--dtype=c", "argument --dtype: invalid choice: 'c'"),
        ("--heigth=3", "unknown flag --heigth; did you mean --height?"),
        ("--hei=3", "unknown flag --hei"),
        ("--xyzzy", "unknown flag --xyzzy"),
        ("fox", "'fox' is not a flag; put quotes around text with spaces"),
    ],
)
def test_errors_are_one_line(argument, message, capsys):
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(["--model=m", argument])
    assert raised.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("tool: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert len(shown) < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modle=m"], "unknown flag --modle; did you mean --model?"),
        (["m", "--height=3"], "required: --model; 'm' is not a flag"),
    ],
)
def test_a_missing_flag_may_be_misspelt(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
    assert message in capsys.readouterr().err


def test_a_misspelt_flag_of_a_subcommand(capsys):
    top = Parser(prog="tool")
    command = top.add_subparsers(required=True).add_parser("merge")
    command.add_argument("source")
    command.add_argument("--model", required=True)
    with pytest.raises(SystemExit):
        top.parse_args(["merge", "a", "--modle=m"])
    assert "unknown flag --modle; did you mean --model?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        top.parse_args(["merge", "a"])
    assert (
        capsys.readouterr().err
        == "tool merge: the following arguments are required: --model (--help lists the flags)\n"
    )


def test_required_flags(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([])
    assert "required: --model" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"helios_jax {helios_jax.__version__}\n"
