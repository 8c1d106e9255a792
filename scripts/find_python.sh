#!/usr/bin/env bash
# Prints the first Python >= 3.12 with venv: on PATH, then pyenv's installed versions (active or not).
set -u
candidates=(python3.13 python3.12 python3.14 python3 python)
for root in "${PYENV_ROOT:-}" "$HOME/.pyenv" /opt/pyenv; do
  [ -n "$root" ] && [ -d "$root/versions" ] || continue
  while IFS= read -r found; do candidates+=("$found"); done \
    < <(find "$root/versions" -maxdepth 3 -path '*/bin/python3' 2>/dev/null | sort -V)
done
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
    "$candidate" -c 'import sys; print(sys.executable)'
    exit 0
  fi
done
echo "helios_jax needs Python >= 3.12 and found none; install one (for example 'pyenv install 3.12') and try again" >&2
exit 1
