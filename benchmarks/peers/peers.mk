# What `make bench-peers` needs: an environment for each library, and the models as folders that they read.
# PEERS_DIR=DIR takes environments that are there: trl/, trl-1.12/ and tunix/, each with a file `ready`.

PEERS_DIR ?= .venv-peers
PEERS := $(PEERS_DIR)/trl/ready $(PEERS_DIR)/trl-1.12/ready $(PEERS_DIR)/tunix/ready \
  .cache/peers/S/model.safetensors .cache/peers/M/model.safetensors

# The build without CUDA; on macOS say TORCH=torch==2.13.0.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
PEER_PIP := bin/python -m pip --disable-pip-version-check install

# The ragged set takes as long again: SETS=fixed,ragged.
SETS ?= fixed

.PHONY: bench-peers
bench-peers: .venv/dev benchmarks/results/machine.jsonl $(PEERS)
	-PEERS_DIR=$(PEERS_DIR) $(BENCH) --libraries=ours,trl,tunix,bare --set=$(SETS) $(ARGS)
	$(BIN)/python -m benchmarks.tables

$(PEERS_DIR)/trl/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/$(PEER_PIP) $(TORCH_INDEX) $(TORCH)
	$(@D)/$(PEER_PIP) $(TORCH) trl==1.16.0 transformers==5.24.0 datasets accelerate
	@touch $@

# The last version with PPO, to be put before the other on PYTHONPATH.
$(PEERS_DIR)/trl-1.12/ready: $(PEERS_DIR)/trl/ready
	$(PEERS_DIR)/trl/$(PEER_PIP) --no-deps --target $(@D) trl==1.12.0
	@touch $@

$(PEERS_DIR)/tunix/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/$(PEER_PIP) $(TORCH_INDEX) $(TORCH)
	$(@D)/$(PEER_PIP) $(TORCH) google-tunix==0.1.7 jax==0.10.2 flax==0.12.8
	@touch $@

.cache/peers/%/model.safetensors: .venv/model benchmarks/peers/make_model.py
	$(BIN)/python -m benchmarks.peers.make_model $*
