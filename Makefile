# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CAMVID ?= $(firstword $(wildcard data/camvid ../shared/data/camvid))
DEMO_OUT ?= runs/demo
DEMO_FLAGS ?=
STUDY_FLAGS ?=
WORKERS ?= 2

.PHONY: demo study test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo  ## weights, streets, training, evaluation on unseen domains, report.html
	$(BIN)/recyclelora demo --out $(DEMO_OUT) $(if $(CAMVID),--camvid $(CAMVID)) $(DEMO_FLAGS)

study: $(VENV)/.demo  ## methods side by side, docs/study.md; goes on where it stopped
	$(BIN)/python benchmarks/study.py $(if $(CAMVID),--camvid $(CAMVID)) $(STUDY_FLAGS)

test: $(VENV)/.dev lint  ## ruff, mypy, pytest
	$(BIN)/pytest -n $(WORKERS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -q -e ".[demo,dev]"
	touch $@ $(VENV)/.demo

clean:  ## remove the environment; runs are left alone
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
