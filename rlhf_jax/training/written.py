"""What the policies of runs wrote on held-out prompts, as their evaluations have kept it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rlhf_jax.training import disk


def files(workdirs: list[Path]) -> list[tuple[str, Path]]:
  """Name and file of every policy. The run's folder is part of the name where there are several runs."""
  found = []
  for workdir in workdirs:
    if not workdir.is_dir():
      raise FileNotFoundError(f"{workdir} is not a folder; give the --workdir of a run.")
    files = [(path.stem, path) for path in sorted((workdir / "evaluation").glob("*.jsonl"))]
    for variant in sorted((workdir / "variants").glob("*/evaluation")):
      paths, name = sorted(variant.glob("*.jsonl")), variant.parent.name
      name = f"variants/{name}" if name in dict(files) else name
      files += [(name if len(paths) == 1 else f"{name}/{path.stem}", path) for path in paths]
    if not files:
      raise FileNotFoundError(
        f"{workdir} has no evaluation/*.jsonl; train there with the stage evaluation first."
      )
    ends = [other.resolve().name for other in workdirs]
    unique = ends.count(workdir.resolve().name) == 1
    prefix = f"{workdir.resolve().name if unique else workdir}/" if len(workdirs) > 1 else ""
    found += [(prefix + name, path) for name, path in files]
  return found


def answers(path: Path, fields: tuple[str, ...]) -> list[dict]:
  """The rows of a policy's file, each with `fields`."""
  try:
    rows = disk.rows(path)
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is not JSON Lines ({error}); evaluate that policy again.") from error
  if not rows:
    raise ValueError(f"{path} is empty; evaluate that policy again.")
  for number, row in enumerate(rows, start=1):
    missing = [field for field in fields if field not in row]
    if missing:
      raise ValueError(f"{path}, line {number}: no field {missing[0]!r}.")
    reward = row["reward"] if "reward" in fields else 0.0
    if not isinstance(reward, int | float) or not math.isfinite(reward):
      raise ValueError(f"{path}, line {number}: reward is {reward!r}, not a finite number.")
  return rows


def assert_same_prompts(path: Path, prompts: list[str], other: Path, others: list[str]) -> None:
  """Raises ValueError that names the two files where their prompts are not the same, in the same order."""
  if len(prompts) != len(others):
    raise ValueError(
      f"{path} answers {len(prompts)} prompts and {other} answers {len(others)}; "
      "rank policies that were evaluated on the same ones."
    )
  for number, (a, b) in enumerate(zip(prompts, others, strict=True), start=1):
    if a != b:
      raise ValueError(
        f"{path} and {other} differ in prompt {number}, {a[:40]!r} and {b[:40]!r}; "
        "rank policies that were evaluated on the same prompts in the same order."
      )
