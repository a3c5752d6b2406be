"""How long it takes to draw a token a row: two-level inversion of the cumulative distribution, and the Gumbel trick.

  python -m benchmarks.sampling [--rows=64] [--vocabulary=49152]

Prints a JSON line: milliseconds of `ops.sampling.categorical` and of `jax.random.categorical` with a key a row.
"""

from __future__ import annotations

import argparse
import datetime
import json

import jax

from benchmarks import gauge
from rlhf_jax.ops import sampling


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--vocabulary", type=int, default=49152)
  args = parser.parse_args()
  keys = jax.random.split(jax.random.key(0), args.rows)
  logits = jax.random.normal(jax.random.key(1), (args.rows, args.vocabulary))
  ways = {"inversion_ms": sampling.categorical, "gumbel_ms": jax.vmap(jax.random.categorical)}
  found = {
    name: round(1000 * gauge.seconds_of(jax.jit(draw), keys, logits), 2)
    for name, draw in ways.items()
  }
  about = {
    "machine": gauge.machine(),
    "jax": jax.__version__,
    "date": datetime.date.today().isoformat(),
  }
  print(json.dumps(vars(args) | found | about))


if __name__ == "__main__":
  main()
