# Two commands: `make decode` (set-up, then the main job), `make test` (set-up, then the tests).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= asr
PROFILE ?= local
# a file of tests stays on one process; those that wait for SLURM leave the cores to the others
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install decode test lint docs clean

help:
	@echo "make install   the environment, in $(VENV)"
	@echo "make decode    install, then corpus, training, decoding, scores and report of exp/$(EXPERIMENT)"
	@echo "               (EXPERIMENT=fsdd for another, PROFILE=slurm for a cluster)"
	@echo "make test      install, then the tests"
	@echo "make lint      ruff, snakefmt, snakemake --lint"
	@echo "make docs      docs/dag.svg, the picture of the workflow (needs graphviz)"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "espnet3: installing into $(VENV) (about 2 GB, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

decode: install
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --profile $(PROFILE) exp/$(EXPERIMENT)
	@$(BIN)/python -m espnet3 table exp/$(EXPERIMENT)/score/*/*/metrics.json
	@echo "report: exp/$(EXPERIMENT)/report/index.html"

test: install
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

docs: install
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake exp/$(EXPERIMENT)/report/index.html --rulegraph dot | dot -Tsvg > docs/dag.svg

clean:
	rm -rf exp/$(EXPERIMENT)
