"""One experiment in many variants: algorithms and their options on the same models, data and answers.

The workdir holds what they share: the SFT model, the reward model, sampled answers with the reference's
log-probabilities, and what the SFT model writes on held-out prompts. `variants/NAME` is a run of its own that starts from
there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config import suggest
from rlhf_jax.sharding import processes
from rlhf_jax.training import disk, experiment, options

SECTION = (
  "variants"  # of a config: name -> {"algorithm": {"name": "dpo"}, "dpo": {"loss_type": "ipo"}}
)
COLUMNS = (  # of a comparison: what is asked of each policy, and its name among the results
  "reward",
  "score",
  "score_low",
  "score_high",
  "cost",
  "cost_low",
  "cost_high",
  "kl_exact",
  "win_rate",
  "win_rate_low",
  "win_rate_high",
  "vader_win_rate",
  "vader_win_rate_low",
  "vader_win_rate_high",
  "length",
  "distinct_2",
  "logp_base",
)


def compare(
  config: Mapping[str, Any],
  workdir: str | os.PathLike,
  *,
  only: Sequence[str] = (),
  after_each: Callable = lambda workdir, found: None,
) -> dict[str, dict[str, float]]:
  """Trains and evaluates every variant, resuming what is unfinished; each one's results.

  They are kept in `comparison.json`, and given to `after_each(workdir, found)` whenever one is new.
  Raises ValueError for a variant that changes what all share, before anything is trained.
  """
  workdir = Path(workdir)
  shared, variants = parse(config, workdir)
  for name in only:
    if name not in variants:
      raise ValueError(f"{name!r} is not a variant{suggest(name, variants)}")
  chosen = {name: variants[name] for name in only or variants}
  for variant in chosen.values():
    options.check(variant)
  stages = ", ".join(shared["stages"])
  if processes.is_first():
    print(f"{workdir}: {stages}, shared by {len(chosen)} variants", flush=True)
  experiment.train(shared, workdir)
  found, seconds = processes.from_first(lambda: _read(workdir)), []
  for i, (name, variant) in enumerate(chosen.items()):
    left = f"; about {np.mean(seconds) * (len(chosen) - i) / 60:.0f} min left" if seconds else ""
    if processes.is_first():
      print(f"variant {i + 1} of {len(chosen)}: {name}{left}", flush=True)
    start, known = time.perf_counter(), name in found
    results = experiment.train(variant, workdir / SECTION / name)
    seconds += [] if known else [time.perf_counter() - start]
    found[name] = row(results, variant["algorithm"]["name"])
    found["sft"] = row(results, "sft")
    disk.replace(workdir / "comparison.json", json.dumps(found, indent=2) + "\n")
    if not known and processes.is_first():
      after_each(workdir, found)
  return found


def parse(config: Mapping[str, Any], workdir: Path) -> tuple[dict, dict[str, dict]]:
  """The config of what all variants share, and each variant's own."""
  given = config.get(SECTION)
  if not given:
    raise ValueError(
      "config.variants names no variant; give it a dict such as {'ipo': {'algorithm': {'name': 'dpo'}, "
      "'dpo': {'loss_type': 'ipo'}}}, as experiments/preferences.py does."
    )
  base = {name: value for name, value in config.items() if name != SECTION}
  own = ["policy"] if "reward_model" in base["stages"] else ["policy", "evaluation"]
  shared = {**base, "stages": [s for s in base["stages"] if s not in own]}
  made = [stage for stage in ("sft", "reward_model") if stage in shared["stages"]]
  start = {**base.get("start", {}), **dict.fromkeys([*made, "answers"], str(workdir))}
  variants = {}
  for name, changes in given.items():
    variant = json.loads(json.dumps(base))
    variant |= {"stages": ["policy", "evaluation"], "start": start}
    for section, fields in changes.items():
      if section not in ("algorithm", *options.policy_algorithms()):
        raise ValueError(
          f"config.variants.{name} changes {section}, and variants share all but the algorithm and its own "
          "section; make another experiment for that."
        )
      variant[section] = {**variant.get(section, {}), **fields}
    variants[name] = variant
  return shared, variants


def row(results: Mapping[str, float], policy: str) -> dict[str, float]:
  """What a comparison shows of a policy."""
  return {c: results[f"{policy}/{c}"] for c in COLUMNS if f"{policy}/{c}" in results}


def _read(workdir: Path) -> dict[str, dict[str, float]]:
  path = workdir / "comparison.json"
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
