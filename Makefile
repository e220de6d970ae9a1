# `make` alone lists the targets. Arguments go through: make train ARGS="--dataset cifar10 --data-dir data"

.DEFAULT_GOAL := help
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: train test lint format docs clean help

train: .venv/.core  ## install, then train a teacher and a TITN distilled from it on scanned digits; no download
	$(BIN)/python -m titn.train --fast $(ARGS)

test: .venv/.dev  ## install, then run the tests; no GPU needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: .venv/.dev  ## ruff, its formatter and mypy, changing nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/.dev  ## let ruff mend and format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: .venv/.docs  ## the documentation site, in build/site; a broken link is an error
	$(BIN)/mkdocs build --strict $(ARGS)

clean:  ## remove what the targets above made: .venv, builds and caches; never a run
	rm -rf .venv build dist kernels/_native *.egg-info .mypy_cache .pytest_cache .ruff_cache

help:  ## this list
	@awk -F ':.*##  *' '/^[a-z]+:.*##/ {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found: install one or say make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.core: .venv/.python pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/csrc/*)
	$(PIP) --editable .
	@touch $@

.venv/.docs: .venv/.core
	$(PIP) --editable '.[docs]'
	@touch $@

.venv/.dev: .venv/.core
	$(PIP) --editable '.[fast,docs,dev]'
	@touch $@
