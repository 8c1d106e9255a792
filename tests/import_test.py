"""Importing the package loads nothing, its names exist, and all of its modules can be imported."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import helios_jax
import helios_jax.data
import helios_jax.experiments
import pallas_kernels

# In an editable install data/ and experiments/ do not lie in the folder of helios_jax, so that they are walked apart.
PACKAGES = (helios_jax, helios_jax.data, helios_jax.experiments, pallas_kernels)
WALKED = [module for package in PACKAGES for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
MODULES = sorted({package.__name__ for package in PACKAGES} | {module.name for module in WALKED})
WITH_EXPORTS = sorted({package.__name__ for package in PACKAGES} | {module.name for module in WALKED if module.ispkg})


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
    if module.endswith(".beam"):
        pytest.importorskip("apache_beam")
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize("module", WITH_EXPORTS)
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
