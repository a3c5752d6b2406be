"""What refilling rows that have ended is worth: tokens a second in batches, all at once, and by slots.

  JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
    python benchmarks/refill.py --prompts=256 --slots=64

Model S of `shapes.json`, prompts of 32 tokens, answers of log-normal length (median 20, σ 0.8) up to 64, cut there by `limits`,
and the same with 64 tokens each. Time is the processor's, so that other work on the machine matters less, and of one
thread by the flags above; the least of a few.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from rlhf_jax.models import decoder, llama, registry
from rlhf_jax.rollout.generate import Sampling, generate
from rlhf_jax.rollout.refill import generate_refilled

PROMPT, NEW, MEDIAN, SIGMA = 32, 64, 20, 0.8
CONFIG = llama.LlamaConfig(
  vocab_size=4096,
  hidden_size=256,
  intermediate_size=1024,
  num_layers=4,
  num_heads=4,
  num_kv_heads=4,
  head_dim=64,
  max_positions=PROMPT + NEW,
  tied=True,
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--prompts", type=int, default=64)
  parser.add_argument("--slots", type=int, default=16, help="also the size of a batch")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--times", type=int, default=5)
  args = parser.parse_args()
  cases = ways(args.prompts, args.slots, args.dtype)
  rng = np.random.default_rng(0)
  drawn = np.round(rng.lognormal(np.log(MEDIAN), SIGMA, args.prompts))
  for name, limits in (
    ("ragged", np.clip(drawn, 1, NEW).astype(np.int32)),
    ("full", np.full(args.prompts, NEW, np.int32)),
  ):
    seconds = {case: [] for case in cases}
    for _ in range(args.times + 1):  # the first compiles
      for case, run in cases.items():
        clock = time.process_time()
        run(limits)
        seconds[case].append(time.process_time() - clock)
    for case, taken in seconds.items():
      print(f"{name:>8} {case:>8} {limits.sum() / min(taken[1:]):8.0f} tokens/s")


def ways(prompts: int, slots: int, dtype: str):
  """Functions of the limits int32[Q], by name: each writes an answer to every prompt."""
  model = registry.language_model(CONFIG, dtype=dtype)
  weights = decoder.cast_for_decoding(model.init(jax.random.key(0)), dtype)
  tokens = np.random.default_rng(1).integers(1, CONFIG.vocab_size, (prompts, PROMPT))
  rows = tokens.astype(np.int32), np.ones(tokens.shape, np.float32)
  rows = *rows, jax.random.split(jax.random.key(1), prompts)
  settings = Sampling(max_new_tokens=NEW)
  together = jax.jit(generate, static_argnums=0)
  refilled = jax.jit(generate_refilled, static_argnums=(0, 6))

  def in_batches(limits):
    for start in range(0, prompts, slots):
      few = slice(start, start + slots)
      part = [x[few] for x in rows]
      jax.block_until_ready(together(model, weights, *part, settings, limits[few]))

  return {
    "batches": in_batches,
    "together": lambda limits: jax.block_until_ready(
      together(model, weights, *rows, settings, limits)
    ),
    "slots": lambda limits: jax.block_until_ready(
      refilled(model, weights, *rows, settings, slots, limits)
    ),
  }


if __name__ == "__main__":
  main()
