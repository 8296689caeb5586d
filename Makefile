# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Runs and tests start many processes, each of which would otherwise compile the package anew where this is set.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart install test quick drill lint format clean

quickstart: $(VENV)/.base  ## install, then run the whole path on real input
	$(BIN)/liuyi run quickstart $(ARGS)

install: $(VENV)/.base  ## install Liuyi into .venv

test: $(VENV)/.test  ## every test, slow ones and kill drills included
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(VENV)/.test  ## the tests one runs all the time
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

drill: $(VENV)/.base  ## kill a small training run 466 times and compare its weights, some minutes
	$(BIN)/python benchmarks/train/drill.py

lint: $(VENV)/.test  ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

KERNELS := setup.py $(wildcard src/liuyi/kernels/native/*.h src/liuyi/kernels/native/*.cpp)

$(VENV)/.base: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

# All at once, the base too: pip looks at every package each time.
$(VENV)/.test: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[test,lint]'
	@touch $(VENV)/.base $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache src/liuyi/kernels/native/*.so
