#!/bin/bash
# Trains on the GPUs of several nodes under SLURM, and queues itself again until it has finished:
#
#   sbatch --nodes=2 cluster/slurm.sh --config=experiments/llama.py:8b_dpo --workdir=/shared/runs/llama --config.mesh.data=-1 \
#     --config.model.source=/shared/llama --config.data.sft=/shared/texts.jsonl --config.data.feedback=/shared/pairs.jsonl
#
# Arguments are those of `rlhf-jax train`. One task runs on each GPU, and jax.distributed finds the others by itself. The
# options below are defaults, which options of sbatch overrule; a cluster with other than 8 GPUs a node changes two.

#SBATCH --job-name=rlhf-jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Five minutes before the limit each task gets SIGTERM, saves, and ends with 143; a preempted job is queued again by SLURM.
#SBATCH --signal=TERM@300
#SBATCH --requeue

set -u

: "${RLHF_JAX:=rlhf-jax}" # the program, in the environment that all nodes see
export HF_HUB_OFFLINE=1
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/rlhf_jax/jax}" # on a disk that all nodes see

# Every task sees all GPUs of its node, of which JAX takes the one with its own number. A task that ends early ends the others
# by itself, and all of them only after they have saved: SLURM need not kill them.
# SLURM 22.05 to 23.02 gives tasks one core unless srun is told again.
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$RLHF_JAX" train "$@"
code=$?

if [ "$code" -eq 143 ]; then
  echo "stopped by SIGTERM and saved; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
