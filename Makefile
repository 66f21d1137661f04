# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a process: two processes share the machine better than two thread pools do.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint types unit clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(DEMO)

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	SCIPY_ARRAY_API=1 $(BIN)/python -m pytest -n 2 --durations=10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,plot]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
