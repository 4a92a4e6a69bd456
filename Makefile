# Everything runs from .venv beside this file; nothing is installed elsewhere and nothing needs root.
#   make demo            the whole study on the committed model, from nothing to the headline
#   make demo KEEP=1     the same, and the stack stays up (stop it with: .venv/bin/bitbudget down)
# A Linux machine without a GPU saves some gigabytes with an index of CPU builds:
#   make demo TORCH_INDEX=<address of an index with CPU builds of torch>

PYTHON ?= python3
KEEP ?=
PORT ?=
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
# setuptools warns that our top-level packages have plain names: docs/decisions/002 says why
PIP_INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

export OMP_WAIT_POLICY ?= PASSIVE
# stacks and tests start dozens of processes from this checkout: without .pyc files each compiles every module again
unexport PYTHONDONTWRITEBYTECODE
ifneq ($(PORT),)
export BITBUDGET_PORT := $(PORT)
endif

.DEFAULT_GOAL := help
.PHONY: help demo serve test slow faults lint format bench clean install install-dev

help: ## say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed ## run the demo study and print its gates and headline (KEEP=1 leaves the stack up)
	@$(BIN)/bitbudget demo $(if $(KEEP),--keep)

serve: $(VENV)/.installed ## run redis, server and worker until Ctrl-C
	@$(BIN)/bitbudget up

test: $(VENV)/.installed-dev ## run the tests, but for the slow ones and those of faults
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not faults and not slow" $(ARGS)

slow: $(VENV)/.installed-dev ## whole stacks, real workers, a browser
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not faults" $(ARGS)

faults: $(VENV)/.installed-dev ## kill, freeze and starve the service (ARGS="-m representative": the quick ones)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "faults or quick_fault" $(ARGS)

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff put the files in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# those named *_cuda refuse to run without a card
BENCHMARKS := $(filter-out __init__ allocation_lab synthetic_checkpoint $(if $(shell command -v nvidia-smi),,%_cuda),$(basename $(notdir $(wildcard benchmarks/*.py))))
bench: $(VENV)/.installed ## measure again what benchmarks/results/ records (ARGS=--write records it)
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

clean: ## remove .venv and caches; var/, with everything measured, stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed ## make .venv and install what running needs
install-dev: $(VENV)/.installed-dev ## the same, and what the tests need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "bitbudget needs Python 3.11 or newer: make demo PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: with nothing else to resolve, the build that the constraint and the index name is the one taken
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing torch (the largest download)"
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "installing bitbudget and the rest"
	@$(PIP_INSTALL) --editable '.[server,worker]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP_INSTALL) --editable '.[server,worker,dev]'
	@touch $@
