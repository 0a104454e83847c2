# The project's own commands. Each makes .venv first if it is not there or older than its inputs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow lint format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps dynamic-network-architectures \
		lightly open_clip_torch pytorch-metric-learning tqdm
	touch $@

demo: setup
	$(BIN)/python -m hssl_dist.demo

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu" --durations=10

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu" --durations=10

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
