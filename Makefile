# The commands of this project. `make help` lists them.
PYTHON ?= python3
SOURCE ?= emoji
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .peers

.PHONY: help setup demo test lint peers parity bench docs clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## make .venv and install limner with everything that the demo and the tests need

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "limner needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## train a CLIP on emoji, test it on an art style it never saw, write runs/demo/report.html
	$(BIN)/limner demo --source $(SOURCE)

test: setup  ## run the tests, on all cores (slow ones are run by name: pytest -m slow)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=10 --numprocesses auto --dist loadfile

lint: setup  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

peers: $(PEERS)/.installed  ## make .peers: limner beside open_clip, to compare with

# torchvision comes for open_clip's sake; beside a torch without CUDA its compiled operators do not load, and only the
# registration of their stand-ins fails: nothing that open_clip calls.
$(PEERS)/.installed: pyproject.toml constraints.txt
	@$(PEERS)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt open_clip_torch==3.3.0 timm==1.0.31
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps webdataset==0.2.86  # as its loader wants it
	@$(PEERS)/bin/python -W ignore -c 'import torchvision' 2> /dev/null \
	  || : > $$(echo $(PEERS)/lib/python3*/site-packages/torchvision)/_meta_registrations.py
	$(PEERS)/bin/python -W ignore -c 'import open_clip'
	touch $@

parity: peers  ## compare features with transformers and open_clip, both ways, and write benchmarks/results/parity.json
	$(PEERS)/bin/python -m pytest -q -m "slow or not slow" tests/parity --parity-table benchmarks/results/parity.json $(UPDATE)

bench: peers  ## run every benchmark and write what it prints to benchmarks/results
	@mkdir -p benchmarks/results
	@for file in benchmarks/*.py; do \
	  echo "== $$file"; $(PEERS)/bin/python $$file > benchmarks/results/$$(basename $$file .py).json || exit 1; done
	$(PEERS)/bin/python benchmarks/demo_seeds.py --draw docs/half_precision.svg
	$(PEERS)/bin/python -m pytest -q tests/unit/training/test_world.py -k every_gradient --ranks-table benchmarks/results/ranks.json

docs: setup  ## write the snapshots that the tests compare with anew: help texts, losses, weights
	$(BIN)/python -m pytest -q tests/contracts/test_cli.py tests/golden --update-snapshots

clean:  ## remove the environment, caches and the demo's data and run
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .hypothesis data/demo data/digits runs/demo runs/digits
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
