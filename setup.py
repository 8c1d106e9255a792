"""Where the packages lie; everything else is in pyproject.toml.

The folders data/ and experiments/ stand at the top of the repository, but nobody's site-packages should get top-level
packages of these names: they are installed, and imported everywhere, as helios_jax.data and helios_jax.experiments.
"""

from setuptools import find_packages, setup

FOLDERS = ["data", "experiments"]

setup(
    packages=[
        *find_packages(include=["helios_jax*", "pallas_kernels*"]),
        *(f"helios_jax.{package}" for folder in FOLDERS for package in find_packages(include=[f"{folder}*"])),
    ],
    package_dir={f"helios_jax.{folder}": folder for folder in FOLDERS},
)
