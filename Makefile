# Each target sets up what it needs: the environment in .venv is made once, and again when its two files change.
#   make demo       corpora, training, bits per byte, decoding compared, pass@k in a sandbox
#   make test       linters, types and quick tests          make test-all   also the slow proofs
#   make bench      speed of data, training and decoding beside the peers
#   make figures    tables and pictures of experiments/, drawn anew from their results
#   make format     put the source into its one format

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: setup demo test test-all bench figures format
.DELETE_ON_ERROR:

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	bash experiments/system_packages.sh
	touch $@

demo: setup
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash experiments/demo.sh

test: setup
	$(RUN) -m pytest -n auto

test-all: setup
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -n auto -m ""

bench: setup
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[bench,code]"
	$(RUN) -m bytemtp.bench train
	$(RUN) -m bytemtp.bench heads
	$(RUN) -m bytemtp.bench memory
	$(RUN) -m bytemtp.bench data
	$(RUN) -m bytemtp.bench decode
	$(RUN) -m bytemtp.bench execute

figures: setup
	$(RUN) -m experiments.readme

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
