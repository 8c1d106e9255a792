#!/usr/bin/env bash
# Lays out build/packages, a tree of links in which every package lies where it is imported from.
#
# Setuptools installs data/ and experiments/ as helios_jax.data and helios_jax.experiments. The type checker and the
# docs read folders and not the import hook of an editable install, so that they find these names only in such a tree.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=build/packages
mkdir -p "$tree/helios_jax"
# Links are mended and never all removed, so that a check and a build of the docs can run at the same time.
ln -sfn -t "$tree/helios_jax" "$PWD"/helios_jax/* "$PWD/data" "$PWD/experiments"
ln -sfn -t "$tree" "$PWD/pallas_kernels" "$PWD/benchmarks"
find "$tree" -xtype l -delete  # Of modules that were renamed or removed.
