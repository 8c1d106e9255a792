#!/usr/bin/env bash
# Checks the types of all packages with pyrefly: scripts/check_types.sh [PYREFLY_OPTION...]
#
# Setuptools installs data/ and experiments/ as helios_jax.data and helios_jax.experiments. A type checker reads folders
# and not the import hook of an editable install, so that it finds neither name. It gets a tree of links in which every
# package lies where it is imported from; pyproject.toml names that tree as the only search path.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=build/types
rm -rf "$tree"
mkdir -p "$tree/helios_jax"
ln -s "$PWD"/helios_jax/* "$PWD/data" "$PWD/experiments" "$tree/helios_jax/"
ln -s "$PWD/pallas_kernels" "$PWD/benchmarks" "$tree/"
# Findings name files of the repository, so that editors can open them.
.venv/bin/pyrefly check --min-severity=error --output-format=min-text "$@" 2>&1 \
  | sed -E "s#$tree/(helios_jax/(data|experiments)/)#\2/\1#; s#([a-z]+)/helios_jax/\1/#\1/#; s#$tree/##"
