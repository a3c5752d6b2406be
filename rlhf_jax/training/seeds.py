"""One experiment over several seeds, and a table of what came out: one seed is an anecdote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.training import disk
from rlhf_jax.training.experiment import train

SHOWN = (
  "score",
  "score_gain",
  "reward",
  "cost",
  "cost_label",
  "kl",
  "win_rate",
  "vader_win_rate",
  "distinct_2_ratio",
  "logp_base",
)


def train_seeds(
  config: Mapping[str, Any], workdir: str | os.PathLike, seeds: Sequence[int]
) -> dict[str, list[float]]:
  """Trains `workdir/seed_<n>` for every seed, resuming what is unfinished; each result by seed.

  Written to `workdir/seeds.json`. The seed splits the data, orders batches, initialises adapters
  and heads, and samples.
  """
  runs = [train({**config, "seed": seed}, Path(workdir) / f"seed_{seed}") for seed in seeds]
  shared = sorted(set.intersection(*(set(run) for run in runs)))
  results = {name: [run[name] for run in runs] for name in shared}
  text = json.dumps({"seeds": list(seeds), **results}, indent=2)
  disk.replace(Path(workdir) / "seeds.json", text + "\n")
  return results


def table(results: Mapping[str, Sequence[float]]) -> str:
  """Mean over seeds, and the smallest and largest, of the headline results; Markdown."""
  lines = ["| result | mean | smallest | largest |", "|---|---|---|---|"]
  for name, values in results.items():
    scorer, _, measure = name.partition("/")
    if measure == "auc" or (measure in SHOWN and scorer not in ("seconds", "memory")):
      mean, low, high = np.mean(values), np.min(values), np.max(values)
      lines.append(f"| {name} | {mean:.3f} | {low:.3f} | {high:.3f} |")
  return "\n".join(lines)
