# Every target works on a fresh clone: the environment is created in .venv when it is missing or out of date. The demo
# needs only the library in it, everything else also the tools of development.
SHELL := /bin/bash -o pipefail
VENV  := .venv
BIN   := $(VENV)/bin
JOBS  ?= 2
CLIP  ?=
OUT   ?= demo_out
TINY  ?= runs/tiny
COMMA := ,

# Work-stealing keeps all workers busy to the end, although the tests' times differ by a factor of a thousand.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist=worksteal --durations=30

PYTEST_GPU = JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest
# The 14B network next to that of diffusers leaves no room for other processes on a card of 80 GB.
WHOLE_CARD = tests/gpu/diffusers_gpu_test.py

.PHONY: help env demo train-tiny test test-slow test-gpu lint format types docs notebook wheel clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'
	@echo "Variables: JOBS=2 test processes, CLIP=video.mp4 and OUT=demo_out of demo, TINY=runs/tiny of train-tiny"

DECLARED = setup.py pyproject.toml constraints.txt scripts/find_python.sh

define INSTALL
@python=$$(bash scripts/find_python.sh) && echo "environment: $$($$python --version) in $(VENV)" && \
  { [ -x $(BIN)/python ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || \
    { rm -rf $(VENV) && $$python -m venv $(VENV); }; }
@$(BIN)/python -m pip install -q --disable-pip-version-check -e '$(1)' -c constraints.txt
@touch $@
endef

$(BIN)/.installed: $(DECLARED)
	$(call INSTALL,.[dev$(COMMA)docs])

# The library alone takes less than half of the time.
$(BIN)/.library: $(DECLARED)
	$(call INSTALL,.)

env: $(BIN)/.installed  ## create or update .venv, with the versions in constraints.txt

demo: $(if $(wildcard $(BIN)/.installed),env,$(BIN)/.library)  ## videos from text, an image, a clip and a changing prompt, on a CPU in half a minute
	@$(BIN)/python -m helios_jax.demo --out=$(OUT) $(if $(CLIP),--clip=$(CLIP))

train-tiny: env  ## train a VAE, stage 1 and stage 2 on moving shapes, then sample and score
	@$(BIN)/python -m helios_jax.experiments.train_tiny --out=$(TINY)

test: env  ## the fast tier of the CPU tests
	@$(PYTEST) -m "not slow" tests

test-slow: env  ## the slow tier: processes, interpreters, whole trainings, wheels
	@$(PYTEST) -m slow tests

test-gpu: env  ## tests/gpu, on a machine with an NVIDIA GPU
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,gpu]' -c constraints.txt
	@$(PYTEST_GPU) -n 4 --dist=loadscope tests/gpu --ignore=$(WHOLE_CARD)
	@$(PYTEST_GPU) $(WHOLE_CARD) || [ $$? -eq 5 ]  # 5: nothing to run without torch and diffusers

lint: env  ## ruff: findings and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: env  ## ruff: mend both
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: env  ## pyrefly, on all packages
	@scripts/link_packages.sh
	@$(BIN)/pyrefly check --min-severity=error --output-format=min-text \
	  | sed -E -e 's#^( *[A-Z]+ )build/packages/#\1#' -e 's#^( *[A-Z]+ )helios_jax/(data|experiments)/#\1\2/#'

docs: env  ## the documentation, into site/; warnings are errors
	@scripts/link_packages.sh
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "site/index.html"

notebook: env  ## run the notebook on a CPU and store its outputs
	@$(BIN)/python scripts/run_notebook.py notebooks/sampling.py

wheel: env  ## dist/: an sdist, and the wheel built from it
	@$(BIN)/python -m build --no-isolation

clean:  ## remove the environment and everything that is built
	rm -rf $(VENV) build dist site *.egg-info demo_out
