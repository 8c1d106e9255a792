"""Names of shipped checkpoints, their sizes, and the settings that a checkpoint was trained for."""

import argparse
import json
import pathlib

import pytest

from helios_jax import evaluate, load_diffusers, sample
from helios_jax.checkpoints import shipped
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.sources import defaults_of, folder_of
from helios_jax.config import SamplingDefaults
from helios_jax.evaluation import flags as evaluation_flags
from helios_jax.sample.flags import fill_in, parse, settings_of

ROOT = pathlib.Path(__file__).parents[2]
TRAINED = SamplingDefaults(height=64, width=128, max_text_tokens=112, style="textured")


@pytest.fixture
def package(monkeypatch, tmp_path) -> pathlib.Path:
    """The folder of shipped checkpoints, which holds none yet."""
    monkeypatch.setattr(shipped, "package_folder", lambda: tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def installed(package) -> pathlib.Path:
    """helios-tiny without its weights, as an installation has it."""
    folder = package / "helios-tiny"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "sampling.json").write_text(json.dumps(TRAINED.to_json()))
    return folder


def test_a_name_stands_for_package_data_and_a_path_does_not(installed, monkeypatch, tmp_path):
    own = tmp_path / "helios-tiny"
    own.mkdir()
    monkeypatch.chdir(tmp_path)
    assert folder_of("helios-tiny") == local_folder("helios-tiny") == installed
    for path in ("./helios-tiny", str(own), pathlib.Path("helios-tiny")):
        assert folder_of(path).samefile(own)
    assert shipped.default_checkpoint() == "helios-tiny"
    assert defaults_of("helios-tiny") == TRAINED
    assert defaults_of("./helios-tiny") == defaults_of("BestWishYsh/Helios-Mid") == SamplingDefaults()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "use",
    [
        folder_of,
        lambda name: load_diffusers(name, "vae"),
        lambda name: fill_in(parse(["helios-sample", f"--model={name}"])),
    ],
)
def test_an_installation_without_it_says_what_to_do(use):
    with pytest.raises(FileNotFoundError, match=r"^helios-tiny is not part of this installation .*train_tiny.*$"):
        use("helios-tiny")
    assert shipped.default_checkpoint() is None


@pytest.mark.parametrize("command", [(sample, ["--prompt=a"]), (evaluate, ["--suite=drift"])])
@pytest.mark.usefixtures("package")
def test_commands_say_it_in_one_line(command, tmp_path, capsys):
    program, arguments = command
    line = ["x", "--model=helios-tiny", f"--out={tmp_path / 'a.mp4'}", *arguments]
    assert program.main(program.parse(line)) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "helios-tiny is not part of this installation" in message


def test_files_are_as_large_as_allowed_and_no_larger(tmp_path):
    def write(name: str, size: int) -> None:
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)  # takes no space on the disk

    write("a", 16_000_000)
    write("b", 9_000_000)
    assert shipped.check_sizes(tmp_path) == 25_000_000
    write("c", 1)
    with pytest.raises(ValueError, match=r"have 25,000,001 bytes; at most 25,000,000"):
        shipped.check_sizes(tmp_path)
    write("a", 16_000_001)
    with pytest.raises(ValueError, match=r"a has 16,000,001 bytes; at most 16,000,000 are shipped in a file"):
        shipped.check_sizes(tmp_path)


def test_what_the_package_ships_is_small_enough():
    folder = shipped.package_folder()
    assert folder == ROOT / "helios_jax" / "weights"
    assert shipped.check_sizes(folder) <= shipped.MAX_BYTES


def test_settings_of_training_are_read_and_checked(tmp_path):
    (tmp_path / "sampling.json").write_text(json.dumps(TRAINED.to_json() | {"note": "of a later version"}))
    assert SamplingDefaults.read(tmp_path) == TRAINED
    for text, message in (
        ('{"height": "64"}', "sampling.json: height='64'; expected a whole number from 1 to 4096"),
        ('{"style": "round"}', "sampling.json: style='round'; expected 'plain' or 'textured', or None"),
        ("[]", "sampling.json: expected a JSON object"),
        ('{"height": 64', "sampling.json: Expecting"),
    ):
        (tmp_path / "sampling.json").write_text(text)
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            SamplingDefaults.read(tmp_path)


def filled(*arguments: str) -> argparse.Namespace:
    args = parse(["helios-sample", *arguments])
    fill_in(args)
    return args


@pytest.mark.usefixtures("installed")
def test_sampling_without_a_model_takes_the_shipped_one_at_its_own_size():
    args = filled("--prompt=a", "--width=64")
    assert args.model == "helios-tiny"
    settings = settings_of(args, seed=1)
    assert (settings.height, settings.width, settings.max_text_tokens) == (64, 64, 112)
    published = settings_of(filled("--model=BestWishYsh/Helios-Mid"), seed=1)
    assert (published.height, published.width, published.max_text_tokens) == (384, 640, 512)


@pytest.mark.usefixtures("package")
def test_sampling_without_a_model_needs_one():
    with pytest.raises(ValueError, match="give --model, a checkpoint folder or hub id: this installation has no"):
        filled("--prompt=a")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model=helios-tiny", "--suite=moving_shapes"], ("textured", 64, 64, 112)),
        (["--model=helios-tiny", "--suite=moving_shapes", "--style=plain"], ("plain", 64, 64, 96)),
        (["--model=helios-tiny", "--suite=drift", "--prompt_file=p.txt"], ("textured", 64, 128, 112)),
        (["--model=a/b", "--suite=drift", "--prompt_file=p.txt"], ("plain", 384, 640, 512)),
    ],
)
def test_evaluation_takes_style_and_size_from_the_model(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("A circle.\n")
    args = evaluation_flags.parse(["helios-evaluate", *arguments, "--out=scores"])
    evaluation_flags.check(args)
    assert (args.style, args.height, args.width, args.max_text_tokens) == expected
