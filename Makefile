# Each target works on a bare machine with Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Without a GPU on Linux the CPU build of torch is enough and gigabytes smaller.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: setup demo test test-fast check clean

setup: $(STAMP)

$(STAMP): pyproject.toml launch/install_torch.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "debias needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python launch/install_torch.py $(if $(HAS_GPU),gpu,cpu)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/debias demo --out demo

# One more than the cores of a small machine: tests of ranks, Slurm and hangs wait for other processes most of their
# time, and most others use one core.
WORKERS ?= 3

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Units and mathematics, without whole runs.
test-fast: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" tests/unit tests/numerics

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_architecture.py

clean:
	rm -rf $(VENV) demo
