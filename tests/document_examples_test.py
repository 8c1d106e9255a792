"""The examples in the documents: command lines are accepted, and calls in Python fit the signatures.

Nothing is executed: there are no weights here.
"""

import ast
import inspect
import pathlib
import re
import shlex
from typing import Any

import pytest

import helios_jax as hx
from helios_jax import convert, evaluate, prepare, sample, train
from helios_jax.experiments import train_tiny
from helios_jax.sampling.stream import Chunk, Stream

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]
PARSERS = {
    "helios-sample": sample.parse,
    "helios-convert": convert.parse,
    "helios-prepare": prepare.parse,
    "helios-train": train.parse,
    "helios-evaluate": evaluate.parse,
    "helios_jax.experiments.train_tiny": train_tiny._parse,
}


class Value:
    """An object of a class: only its names are looked up."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


OBJECTS = {
    "pipe": Value(hx.HeliosPipeline),
    "out": Value(hx.SampleOutput),
    "stream": Value(Stream),
    "chunk": Value(Chunk),
}
"""What the variables of the examples hold."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Command lines of our programs, in code blocks and in indented lines of docstrings."""
    text = text.replace("\\\n", " ")
    found = []
    for line in [*"\n".join(blocks(text, "bash")).splitlines(), *re.findall(r"^    (.*)", text, re.MULTILINE)]:
        if re.match(r"(?:python -m )?(helios-\w+|helios_jax\.experiments\.train_tiny) .*", line) and "..." not in line:
            # In docstrings explanations follow after two spaces.
            words = shlex.split(re.split(r"  +(?![- ])", line)[0], comments=True)
            found.append(words[2:] if words[0] == "python" else words)
    return found


def test_commands_are_found():
    text = "```bash\nhelios-train --a='b c' # d\n```\n\n    python -m helios_jax.experiments.train_tiny \\\n  --out=x\n"
    assert commands(text) == [["helios-train", "--a=b c"], ["helios_jax.experiments.train_tiny", "--out=x"]]


@pytest.mark.parametrize(
    "file",
    [
        *DOCUMENTS,
        *(ROOT / "helios_jax" / f"{name}.py" for name in ("convert", "prepare", "train")),
        ROOT / "helios_jax" / "sample" / "flags.py",
        ROOT / "helios_jax" / "evaluation" / "flags.py",
        *(ROOT / "experiments").glob("*.py"),
    ],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_command_lines_are_accepted(file, tmp_path, monkeypatch):
    """The parsers check flags and settings; files that the examples name need not exist for that.

    Raises:
        SystemExit: A line is not accepted.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "experiment.py").write_text((ROOT / "experiments" / "tiny_vae.py").read_text())
    for words in commands(file.read_text()):
        if "<" in "".join(words):
            continue
        PARSERS[words[0]](words)


def test_the_documents_have_examples():
    assert sum(len(commands(file.read_text())) for file in DOCUMENTS) > 20
    assert sum(len(blocks(file.read_text(), "python")) for file in DOCUMENTS) >= 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_calls_in_examples_fit_the_signatures(document):
    for block in blocks(document.read_text(), "python"):
        # The page for users of diffusers shows their calls first.
        check_calls(block[block.index("# helios_jax") :] if "# helios_jax" in block else block)


def check_calls(code: str) -> None:
    tree = ast.parse(code)
    names: dict[str, Any] = {"hx": hx, **OBJECTS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "example", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and isinstance(node.items[0].optional_vars, ast.Name):
            call = node.items[0].context_expr
            assert isinstance(call, ast.Call)
            if isinstance(kind := resolve(call.func, names), type):
                names[node.items[0].optional_vars.id] = Value(kind)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            resolve(node, names)
        if isinstance(node, ast.Call):
            bind(node, resolve(node.func, names))


def resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that an expression names; ``None`` where that is not known without running it."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    holder = resolve(node.value, names)
    if not isinstance(holder, Value):
        return None if holder is None else getattr(holder, node.attr)
    fields = getattr(holder.kind, "__dataclass_fields__", {})
    if node.attr in fields or isinstance(inspect.getattr_static(holder.kind, node.attr, None), property):
        return None
    return getattr(holder.kind, node.attr).__get__(object(), object)


def bind(node: ast.Call, function: Any) -> None:
    """Raises TypeError if a call does not fit the function."""
    if function is None:
        return
    if isinstance(function, Value):
        function = function.kind.__call__.__get__(object(), object)
    if any(isinstance(argument, ast.Starred) for argument in node.args):
        return
    named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
    inspect.signature(function).bind(*node.args, **named)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("pipe('a', hight=3)", "hight"),
        ("pipe.save('x', layuot='orbax')", "layuot"),
        ("out.frame", "frame"),
        ("hx.HeliosPipelin", "HeliosPipelin"),
        ("for chunk in pipe.stream('a', numframes=3):\n    chunk.frames", "numframes"),
        ("from helios_jax.media.video_writer import VideoWriter\nwith VideoWriter('a') as v:\n    v.rite(1)", "rite"),
    ],
)
def test_wrong_examples_are_found(code, error):
    with pytest.raises((TypeError, AttributeError), match=error):
        check_calls(code)
