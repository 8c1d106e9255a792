# Every target works on a fresh clone: the environment is created in .venv when it is missing or out of date.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
JOBS  ?= 2
CLIP  ?=
OUT   ?= demo_out
TINY  ?= runs/tiny

.PHONY: help env demo train-tiny test test-gpu lint format types parity clean

help:
	@echo "make demo [CLIP=video.mp4] [OUT=demo_out]  continue a clip with a small random-weight checkpoint"
	@echo "make train-tiny [TINY=runs/tiny]           train a VAE, stage 1 and stage 2 on moving shapes, sample and score"
	@echo "make test [JOBS=2]                         the CPU test suite"
	@echo "make test-gpu                              tests/gpu, on a machine with an NVIDIA GPU"
	@echo "make lint | format | types                 ruff check | ruff format | pyrefly"

$(BIN)/.installed: setup.py pyproject.toml constraints.txt scripts/find_python.sh
	@python=$$(bash scripts/find_python.sh) && echo "environment: $$($$python --version) in $(VENV)" && \
	  { [ -x $(BIN)/python ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || \
	    { rm -rf $(VENV) && $$python -m venv $(VENV); }; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

env: $(BIN)/.installed

demo: env
	@$(BIN)/python -m helios_jax.demo --out=$(OUT) $(if $(CLIP),--clip=$(CLIP))

train-tiny: env
	@$(BIN)/python -m helios_jax.experiments.train_tiny --out=$(TINY)

test: env
	@$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal tests

test-gpu: env
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,gpu]' -c constraints.txt
	@JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m pytest -n 4 --dist=loadscope tests/gpu

lint: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: env
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: env
	@$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) build dist *.egg-info demo_out
