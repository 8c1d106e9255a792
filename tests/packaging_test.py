"""What is installed and under which names, how experiments are found, and what make and its documents say."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import helios_jax
from helios_jax.experiment_files import experiment_file, installed_experiments
from helios_jax.extras import require_extra
from helios_jax.train import parse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXPERIMENTS = [
    "stage1_init.py",
    "stage1_post.py",
    "stage1_post_corrected.py",
    "stage2_init.py",
    "stage2_post.py",
    "stage3_consistency.py",
    "stage3_distill.py",
    "stage3_distill_gan.py",
    "stage3_ode.py",
    "tiny_full_resolution.py",
    "tiny_vae.py",
]


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in another folder."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def test_folders_are_installed_under_one_package_only(tmp_path):
    """In the editable install, which the tests run in."""
    code = """
import importlib.util, helios_jax.data, helios_jax.experiments
print(helios_jax.data.__path__[0], helios_jax.experiments.__path__[0], sep="\\n")
print(importlib.util.find_spec("data"), importlib.util.find_spec("experiments"))
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines() == [str(ROOT / "data"), str(ROOT / "experiments"), "None None"], result.stderr


def test_installed_experiments_are_those_that_can_be_trained():
    assert sorted(installed_experiments()) == EXPERIMENTS


def test_names_of_experiments_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiment_file("stage1_init.py").samefile(ROOT / "experiments" / "stage1_init.py")
    # A file of one's own comes first, by the same name too.
    (tmp_path / "stage1_init.py").write_text("")
    assert experiment_file("stage1_init.py").samefile(tmp_path / "stage1_init.py")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("stage1_int.py", "stage1_init.py"),
        ("stage1_init", "stage1_init.py"),
        ("experiments/tiny_vae.py", "tiny_vae.py"),
        ("cats.py", None),
    ],
)
def test_unknown_experiments_are_answered_with_what_there_is(tmp_path, monkeypatch, name, suggested):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        experiment_file(name)
    message = str(caught.value)
    assert message.startswith(f"no experiment file {name}; ")
    assert message.endswith(f"nstalled are {', '.join(EXPERIMENTS)}")
    assert re.findall(r"did you mean (\S+)\?", message) == ([suggested] if suggested else [])


@pytest.mark.parametrize("flag", [["--config=tiny_vae.py:clips"], ["--config", "tiny_vae.py:clips"]])
def test_the_command_line_finds_experiments_by_name(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    arguments = parse(["helios-train", *flag, "--workdir=run", "--config.steps=7"])
    assert arguments.experiment.steps == 7
    assert arguments.experiment.data.frames == 9


def test_missing_extras_are_named_with_the_command_that_installs_them(monkeypatch):
    requirements = ["jax>=1", 'grain>=0.2; extra == "train"', 'absent>=2; extra == "train"', "other; extra == 'beam'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    with pytest.raises(ValueError, match=r"^training needs absent: pip install 'helios_jax\[train\]'$"):
        require_extra("train", "training")
    monkeypatch.undo()
    require_extra("train", "training")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_help_needs_no_extra(tmp_path, command):
    """No package of the [train] extra can be imported here, as if it were not installed."""
    extra = [re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["optional-dependencies"]["train"]]
    blocked = {name.replace("-", "_").lower(): None for name in extra} | {"tensorboardX": None}
    code = f"import sys; sys.modules.update({blocked}); from helios_jax import {command}; {command}.run()"
    result = python("-c", code, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"helios-{command}" in result.stdout


# Make, and what documents say of it.


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_phony_target_exists_and_is_explained():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)", makefile, re.MULTILINE)[1].split())
    assert phony == make_targets()
    assert phony == set(re.findall(r"^([a-z-]+):.*  ## \S", makefile, re.MULTILINE))


def test_documents_name_targets_that_exist():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.*")]
    code = "\n".join(
        part for file in files for part in re.findall(r"(?s:```.*?```)|`[^`\n]+`|run: .*", file.read_text())
    )
    commands = re.findall(r"^(?:`|run: )?make ((?:[a-z-]+ ?)+)", code, re.MULTILINE)
    named = {word for command in commands for word in command.split()}
    assert named
    named |= set(re.search(r"^for target in (.*); do", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1].split())
    assert named <= make_targets()


def test_pre_commit_and_environment_run_the_same_versions():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for repository, tool in (("ruff-pre-commit", "ruff"), ("jupytext", "jupytext")):
        assert f"{repository}\n    rev: v{pinned[tool]}\n" in hooks
    for tool in ("pyrefly", "pytest", "mkdocs", "mkdocs-material", "mkdocstrings-python", "jax"):
        assert tool in pinned


def test_the_citation_names_the_paper_and_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {helios_jax.__version__}\n" in citation
    assert "arXiv.2603.04379" in citation
    assert f"## [{helios_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# The wheel and the sdist.

UNPUBLISHED = (".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "site", "runs", "demo_out")
"""Names that git ignores, for copies of the repository."""


PLANTED = "helios_jax/weights/planted/vae/config.json"
"""A file of a shipped checkpoint that only the copies have."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with an sdist and the wheel that is built from it, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*UNPUBLISHED))
    planted = copy / PLANTED
    planted.parent.mkdir(parents=True)
    planted.write_text("{}")
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    result = python("-c", build, "build_sdist", str(folder), cwd=copy)
    assert result.returncode == 0, result.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "sdist", filter="data")
    unpacked = next((folder / "sdist").iterdir())
    result = python("-c", build, "build_wheel", str(folder), cwd=unpacked)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def stranger(distributions, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, and with this one's libraries but not its copy of helios_jax."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    made = python("-m", "venv", "--without-pip", str(folder), cwd=distributions)
    assert made.returncode == 0, made.stderr
    install = ("-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", "-q")
    result = python(*install, str(next(distributions.glob("*.whl"))), cwd=distributions)
    assert result.returncode == 0, result.stderr
    # A .pth file adds folders to the path without running their own .pth files, such as that of an editable install.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (next(folder.glob("lib/python*/site-packages")) / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin"


def sources(folder: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py") if path.is_file()}


@pytest.mark.slow
def test_the_wheel_holds_two_packages_and_all_of_their_modules(distributions):
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    files = {name for name in names if ".dist-info/" not in name}
    moved = {f"helios_jax/{name}" for folder in ("data", "experiments") for name in sources(folder)}
    markers = {"helios_jax/py.typed", "pallas_kernels/py.typed"}
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "helios_jax" / "weights").rglob("*") if path.is_file()}
    assert files == sources("helios_jax") | sources("pallas_kernels") | moved | markers | weights | {PLANTED}


@pytest.mark.slow
def test_the_sdist_is_the_whole_repository(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(path.relative_to(distributions / "source")) for path in (distributions / "source").rglob("*")}
    files = {name for name in files if (distributions / "source" / name).is_file() and "egg-info" not in name}
    assert len(files) > 500
    assert sorted(files - names) == []


@pytest.mark.slow
def test_the_metadata_say_what_the_package_is(distributions):
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert len(metadata.get_all("Project-URL")) >= 2
    assert "Programming Language :: Python :: 3.12" in metadata.get_all("Classifier")
    assert metadata["Version"] == helios_jax.__version__
    beam = [line for line in metadata.get_all("Requires-Dist") if re.search("extra == .beam.", line)]
    assert any(line.startswith("helios_jax[train]") for line in beam)


@pytest.mark.slow
def test_a_stranger_can_use_every_command(stranger, tmp_path):
    """A user's own packages data and experiments in the working folder do not matter."""
    for name in ("data", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this is the package of the user')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        first = str(stranger / command[0])
        return subprocess.run([first, *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True)

    where = call("python", "-c", "import helios_jax, helios_jax.data as d; print(helios_jax.__file__, d.__file__)")
    assert all(path.startswith(str(stranger.parent)) for path in where.stdout.split()), where.stdout
    for command in PROJECT["project"]["scripts"]:
        helped = call(command, "--help")
        assert helped.returncode == 0, helped.stderr
        assert command in helped.stdout
        assert call("python", "-m", f"helios_jax.{command.removeprefix('helios-')}", "--help").stdout
    for command, message in (
        (["helios-train", "--config=stage1_init.py:tiny", "--workdir=run"], "helios-train: runs/tiny/parts is neither"),
        (["helios-prepare", "--model=nowhere", "--moving_shapes=2", "--out=latents"], "helios-prepare: "),
        (["helios-sample", "--model=nowhere", "--prompt=a", "--out=a.mp4"], "helios-sample: "),
        (["helios-convert", "inspect", "nowhere"], "helios-convert: "),
    ):
        result = call(*command)
        assert result.returncode == 1, result.stderr
        assert result.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in result.stderr
    assert importlib.util.find_spec("helios_jax").origin == str(ROOT / "helios_jax" / "__init__.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["helios-train", "--config=stage1_init.py:tiny", "--workdir=run"],
        ["helios-prepare", "--model=nowhere", "--moving_shapes=2", "--out=latents"],
    ],
)
def test_a_stranger_without_the_extra_is_told_what_to_install(stranger, tmp_path, command):
    """The libraries of the extra cannot be found, as if they had not been installed."""
    extra = [re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["optional-dependencies"]["train"]]
    modules = sorted({name.replace("-", "_") for name in extra})
    code = f"""
import importlib.metadata, sys
sys.modules.update(dict.fromkeys({modules}))
found = importlib.metadata.distribution
def distribution(name):
    if name in {extra}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = distribution
sys.argv = {command}
from helios_jax.{command[0].removeprefix("helios-")} import run
run()
"""
    result = subprocess.run([stranger / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("pip install 'helios_jax[train]'")
    assert os.listdir(tmp_path) == []
