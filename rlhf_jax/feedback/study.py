"""One loop in variants over several seeds: what a way of asking is worth beyond chance.

`NAME/seed_N` holds the rounds of a variant with `loop.seed` N, `study.json` what each has reached. All share the data, the SFT
model and the prompts of the evaluation, and the variants of a seed are compared with one another; what the seed decides is the
prompts that are asked about, what annotators say, the reward models and the policies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.feedback import loop
from rlhf_jax.training import disk

FILE = "study.json"


def run(
  config: Mapping[str, Any],
  workdir: str | os.PathLike,
  seeds: Sequence[int],
  *,
  after_each: Callable = lambda workdir, found: None,
) -> dict[str, Any]:
  """Runs every one of `config.variants` with every seed, finished ones not again; as in study.json.

  `after_each(workdir, found)` is called after every loop. Raises ValueError, with the remedy, before anything is trained.
  """
  workdir = Path(workdir)
  base, variants = parse(config)
  found = {"policy": base["algorithm"]["name"], "variants": {}}
  for variant in variants.values():
    loop.checked(variant)
  workdir.mkdir(parents=True, exist_ok=True)
  begun = loop.begin(next(iter(variants.values())), workdir)
  for seed in seeds:
    for name, variant in variants.items():
      print(f"seed {seed}: {name}", flush=True)
      config = {**variant, "loop": {**variant.get("loop", {}), "seed": seed}}
      rounds = loop.run(config, workdir / name / f"seed_{seed}", begun=begun)
      found["variants"].setdefault(name, {})[str(seed)] = rounds
      disk.replace(workdir / FILE, json.dumps(found, indent=2) + "\n")
      after_each(workdir, found)
  return found


def parse(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
  """The config without its variants, and every variant's."""
  base = {name: value for name, value in config.items() if name != "variants"}
  given = config.get("variants") or {"loop": {}}
  variants = {}
  for name, changes in given.items():
    if set(changes) - {"loop"}:
      other = sorted(set(changes) - {"loop"})[0]
      raise ValueError(
        f"config.variants.{name} changes {other}, and the variants of a loop share all but the section loop; make "
        "another experiment for that."
      )
    variants[name] = {**base, "loop": {**base.get("loop", {}), **changes.get("loop", {})}}
  return base, variants
