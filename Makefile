# Everyday tasks. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
OUT ?= runs/demo
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed     ## the whole story, from nothing to a report, in OUT
	$(BIN)/keel demo --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-dev ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev ## style, types, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed    ## speed of the engine on this machine
	$(BIN)/python benchmarks/engine.py

clean:                       ## remove the environment, not the runs
	rm -rf $(VENV)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
