# `make demo` and `make test` work on a fresh clone; everything goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lushan-installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install format check test test-all demo

help:
	@echo "make install   create $(VENV) with Lushan and its developer tools"
	@echo "make demo      install, fetch the default model, tune it on real data, write a report"
	@echo "make test      install, check the style, run the tests (what CI runs)"
	@echo "make test-all  the same and the slow tests, which need real models"
	@echo "make check     style, types, imports, spelling"
	@echo "make format    lay out the code"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Lushan needs Python 3.11 or newer; '$(PYTHON)' is missing or older."; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into $(VENV); the first time takes a minute or two."
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "The venv module has no pip of its own; borrowing that of $(PYTHON)."; \
		$(PYTHON) -m venv --without-pip --clear $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install -qq pip; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(MAKE) --no-print-directory torch
	$(PIP) install -qq -c constraints.txt -e '.[dev,export,serve,studio]'
	@touch $@

# PyPI's torch for Linux brings gigabytes of CUDA libraries, so a machine without a GPU takes the
# CPU build: from the configured package indexes, or from PyTorch's own, which uv knows.
.PHONY: torch
torch:
	@if [ "$$(uname -s)" != Linux ]; then \
		$(PIP) install -qq -c constraints.txt torch; \
	elif ! nvidia-smi -L 2>/dev/null | grep -q GPU && \
		$(PIP) install -qq -c constraints.txt 'torch==$(TORCH)+cpu' 2>/dev/null; then \
		echo "Installed torch $(TORCH) for the CPU."; \
	else \
		$(PIP) install -qq -c constraints.txt uv && \
		$(BIN)/uv pip install -qq --python $(BIN)/python -c constraints.txt \
			--torch-backend=auto 'torch==$(TORCH)' || { \
		echo "No torch for this machine in PyTorch's package index; taking PyPI's, which is larger."; \
		$(PIP) install -qq -c constraints.txt torch; }; \
	fi

format: install
	$(BIN)/ruff check --fix-only -qq .
	$(BIN)/ruff format .

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell

# One torch thread per test process: two processes with two threads each wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

demo: install
	$(BIN)/lushan demo
