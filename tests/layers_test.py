"""The floors of the code: imports go down or stay on their floor, and there are no import cycles.

``FLOORS`` is the one list of the packages in their order, bottom first. Every import counts, also inside functions and
for the type checker: an import that is only delayed still ties two packages together.
"""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = {
    "helios_jax": "helios_jax",
    "pallas_kernels": "pallas_kernels",
    "helios_jax.data": "data",
    "helios_jax.experiments": "experiments",
}

COMMANDS = ("sample", "convert", "prepare", "train", "evaluate", "demo")
FLOORS = (
    {"helios_jax.typing", "helios_jax.version", "helios_jax._lazy", "helios_jax._warnings", "helios_jax.config"}
    | {
        "helios_jax.cli",
        "helios_jax.backend",
        "helios_jax.compilation",
        "helios_jax.experiment_files",
        "helios_jax.extras",
    }
    | {"helios_jax.arguments", "helios_jax.user_input", "helios_jax.safe_files"}
    | {"helios_jax.data.workers", "pallas_kernels"},
    {"helios_jax.parallel"},
    {"helios_jax.context", "helios_jax.models", "helios_jax.diffusion"},
    {"helios_jax.media", "helios_jax.checkpoints"}
    | {"helios_jax.data.draws", "helios_jax.data.moving_shapes", "helios_jax.data.helios_latents"}
    | {"helios_jax.data.helios_ode"},
    {"helios_jax.sampling"},
    {"helios_jax.distillation"},
    {"helios_jax.evaluation"},
    {"helios_jax.training", "helios_jax.data.prepare"},
    {f"helios_jax.{command}" for command in COMMANDS},
    {"helios_jax.experiments"},
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NAMESPACES = ("helios_jax", "helios_jax.data")
"""Packages that contain only lazy names; they may name everything in them."""


def modules() -> dict[str, pathlib.Path]:
    """The file of every module, by import name."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, int]]:
    """(module, line) of every import of ours in a module."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            while full and full not in MODULES:
                full = full.rpartition(".")[0]
            if full and full not in NAMESPACES:
                yield full, node.lineno


def room(name: str) -> str:
    """The room that a module is in."""
    rooms = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    assert len(rooms) == 1, f"{name} has its place in {rooms}: name it once in FLOORS"
    return rooms[0]


def test_every_room_exists():
    assert [room for room in ROOMS if room not in MODULES] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name not in NAMESPACES])
def test_imports_do_not_climb(name):
    own = ROOMS[room(name)]
    climbing = [f"line {line}: {other}" for other, line in imported(name) if ROOMS[room(other)] > own]
    assert climbing == []


def test_no_rooms_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in ROOMS}
    for name in MODULES:
        if name not in NAMESPACES:
            graph[room(name)] |= {room(other) for other, _ in imported(name)} - {room(name)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_modules_import_each_other_in_a_circle():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        # A package's lazy names are not an import of its modules at run time.
        graph[name] = set() if name in packages else {other for other, _ in imported(name)} - {name}
    graphlib.TopologicalSorter(graph).prepare()
