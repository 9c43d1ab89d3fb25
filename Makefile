# The commands of this project. `make help` lists them.
PYTHON ?= python3
SOURCE ?= emoji
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup demo test lint bench docs clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## make .venv and install limn with everything that the demo and the tests need

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "limn needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## train a CLIP on emoji, test it on an art style it never saw, write runs/demo/report.html
	$(BIN)/limn demo --source $(SOURCE)

test: setup  ## run the tests (slow ones are run by name: pytest -m slow)
	$(BIN)/python -m pytest -q --durations=10

lint: setup  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: setup  ## run every benchmark and write what it prints to benchmarks/results
	@mkdir -p benchmarks/results
	@for file in benchmarks/*.py; do \
	  echo "== $$file"; $(BIN)/python $$file > benchmarks/results/$$(basename $$file .py).json || exit 1; done

docs: setup  ## write the snapshots that the tests compare with anew: help texts, losses
	$(BIN)/python -m pytest -q tests/contracts/test_cli.py tests/golden --update-snapshots

clean:  ## remove the environment, caches and the demo's data and run
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis data/demo data/digits runs/demo runs/digits
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
