"""The package's import loads nothing, its names exist, and all of its modules can be imported."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import helios_jax

MODULES = sorted(module.name for module in pkgutil.walk_packages(helios_jax.__path__, "helios_jax."))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_of_the_package_imports_next_to_nothing():
    loaded = run("import sys; before = {*sys.modules}; import helios_jax; print(*sys.modules.keys() - before)").split()
    ours = {name for name in loaded if name.startswith("helios_jax")}
    assert ours == {"helios_jax", "helios_jax._lazy", "helios_jax.version"}
    standard = {name.partition(".")[0] for name in loaded} - {"helios_jax"}
    assert standard <= sys.stdlib_module_names
    assert len(loaded) < 50


def test_import_of_the_pipeline_loads_no_optional_library():
    optional = ("av", "PIL", "tokenizers", "ftfy", "huggingface_hub", "orbax", "safetensors", "transformers", "torch")
    loaded = run(f"import sys, helios_jax; helios_jax.HeliosPipeline; print(*sys.modules.keys() & {set(optional)})")
    assert loaded.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize("module", ["helios_jax", *(name for name in MODULES if name.count(".") == 1)])
def test_every_public_name_resolves(module):
    package = importlib.import_module(module)
    for name in getattr(package, "__all__", ()):
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_public_names_are_what_they_say():
    assert helios_jax.HeliosPipeline.__name__ == "HeliosPipeline"
    assert helios_jax.load_diffusers.__module__ == "helios_jax.checkpoints.diffusers"
    assert helios_jax.models.__name__ == "helios_jax.models"
    with pytest.raises(AttributeError, match="module 'helios_jax' has no attribute 'Helios'"):
        _ = helios_jax.Helios
