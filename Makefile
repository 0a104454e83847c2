# The project's own commands. Each makes .venv first if it is not there or older than its inputs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
S3 := $(VENV)/s3
# Tests run in so many processes, a core each.
JOBS ?= 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup --durations=10

.PHONY: setup demo test test-slow test-soak compose-test study-models hippocampus-unet acdc-unet lint format clean

setup: $(VENV)/.ready $(S3)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps dynamic-network-architectures \
		lightly open_clip_torch pytorch-metric-learning pytorch-ignite tqdm einops nnunetv2 batchgenerators \
		acvl-utils batchgeneratorsv2 connected-components-3d fft-conv-pytorch seaborn
	touch $@

# The tests' S3 server; its pins have nothing to do with ours.
$(S3)/.ready: tests/s3/constraints.txt | $(VENV)/.ready
	$(PYTHON) -m venv $(S3)
	$(S3)/bin/pip install --quiet --constraint tests/s3/constraints.txt swift
	touch $@

demo: setup
	$(BIN)/python -m hssl_dist.demo

test: setup
	$(TEST) -m "not slow and not soak and not gpu and not compose"

test-slow: setup
	$(TEST) -m "slow and not gpu and not compose"

# What continuous integration has no time for: run it before a release.
test-soak: setup
	$(TEST) -m soak

# docker/compose.yaml with a real engine: one that runs, or one that is started for it and stopped after it.
compose-test: setup
	bash tests/compose/run

# hippocampus-unet and acdc-unet in the registry of hssl/mlflow.db, each task on one core, each with the aliases
# champion (all labels), hssl-5 and scratch-5 (the same 5 % of them). Stopped, it goes on where it was.
study-models: setup
	$(BIN)/hssl preprocess --config configs/preprocess/real.yaml
	$(MAKE) --jobs 2 hippocampus-unet acdc-unet

TUNE = $(BIN)/hssl finetune --config configs/finetune/strong-$*.yaml --register_as $@ --threads 1
# Flags win over the environment, so the steps with few labels have a variable of their own.
FEW_STEPS ?= 600
FEW = --labels.fraction 0.05 --training.steps $(FEW_STEPS) --training.learning_rate 8e-3 --training.validate_every 200

hippocampus-unet acdc-unet: %-unet: | setup
	$(BIN)/hssl pretrain --config configs/pretrain/$@.yaml
	$(TUNE) --name $*-champion --alias champion --model models:/pretrained-$*@latest --split.test 0
	$(TUNE) --name $*-hssl-5 --alias hssl-5 --model models:/pretrained-$*@latest $(FEW)
	$(TUNE) --name $*-scratch-5 --alias scratch-5 --model scratch $(FEW)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet -m "not slow" tests/deploy
	$(BIN)/hadolint docker/Dockerfile tests/s3/Dockerfile tests/compose/postgres/Dockerfile
	$(BIN)/yamllint --strict docker

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
