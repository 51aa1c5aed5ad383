# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
CAMVID ?= $(firstword $(wildcard data/camvid ../shared/data/camvid))
DEMO_OUT ?= runs/demo
DEMO_FLAGS ?=
STUDY_FLAGS ?=
WORKERS ?= 2

.PHONY: help demo study test test-slow lint test-lowest clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo  ## weights, streets, training, evaluation on unseen domains, report.html
	$(BIN)/recyclelora demo --out $(DEMO_OUT) $(if $(CAMVID),--camvid $(CAMVID)) $(DEMO_FLAGS)

study: $(VENV)/.demo  ## methods side by side, docs/study.md; goes on where it stopped
	$(BIN)/python benchmarks/study.py $(if $(CAMVID),--camvid $(CAMVID)) $(STUDY_FLAGS)

test: $(VENV)/.dev lint  ## ruff, mypy, pytest
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.dev $(VENV)/.cluster $(VENV)/.export  ## several processes, torchrun, SLURM, a cluster, kills, ONNX
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m slow

lint: $(VENV)/.dev  ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-lowest: $(LOWEST)/.done  ## the adapter's tests with the lowest versions of its dependencies; Python 3.11 or 3.12
	$(LOWEST)/bin/pytest tests/adapter

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[demo,dev]"
	touch $@ $(VENV)/.demo

$(VENV)/.cluster: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints.txt -e ".[cluster]"
	touch $@

$(VENV)/.export: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints.txt -e ".[export]"
	touch $@

# The core and what its tests need besides: models to adapt, layers in 4 bits, and test tools.
$(LOWEST)/.done: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install -q -c constraints-lowest.txt -e . timm bitsandbytes jaxtyping beartype hypothesis pytest
	touch $@

clean:  ## remove the environments; runs are left alone
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis
