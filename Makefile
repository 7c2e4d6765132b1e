# `make demo` and `make test` each do all their set-up, from a fresh clone on.
PYTHON ?= python3
BIN := .venv/bin
HYPOTHESIS_PROFILE ?= ci
DATA ?=
GOLDENS ?=
ITEMS ?= 500

.PHONY: demo test lint bare browser-test data-test golden-test bench clean

demo: .venv/demo
	$(BIN)/cprs demo

test: lint
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) $(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the wheel alone, in an empty environment
bare: .venv/dev
	$(BIN)/python tests/bare/check.py

# the playground in Chromium, from Debian's package chromium or wherever it is on the path
browser-test: .venv/dev
	$(BIN)/python -m pytest tests/browser -m browser

# what needs the evaluation data: make data-test DATA=folder
data-test: .venv/dev
	$(BIN)/python -m pytest tests/data -m data --data=$(DATA)

# what needs the outputs of the reference implementation: make golden-test GOLDENS=folder
golden-test: .venv/dev
	$(BIN)/python -m pytest tests/golden -m golden --goldens=$(GOLDENS)

.venv/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/demo: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --editable ".[cli]"
	touch $@

.venv/dev: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --editable ".[all,bench]" --group dev
	touch $@ .venv/demo

# the shipped critic against its goals: make bench DATA=folder ITEMS=500
bench: .venv/dev
	$(BIN)/python benchmarks/critic.py --data $(DATA) --items $(ITEMS)

clean:
	rm -rf .venv dist build
