"""A workdir as read back: whatever of its files is there, and notes on what could not be read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Series(NamedTuple):
  """One metric of one stage, in order of step."""

  steps: np.ndarray  # int[N]
  values: np.ndarray  # float[N]; NaN where the metric was not finite


class Run(NamedTuple):
  """Everything is empty where its file is missing, as in a run that has just begun."""

  name: str
  config: dict[str, Any]  # flat: "algorithm.name" -> "ppo"
  metrics: dict[str, dict[str, Series]]  # stage -> name -> series, stages in order of appearance
  samples: list[dict]  # logged while training
  answers: dict[str, list[dict]]  # policy -> its answers to held-out prompts
  results: dict[str, float]
  calibration: dict[str, Any]  # of the reward model on held-out pairs
  finished: bool  # every stage that was begun
  notes: list[str]


def read_run(workdir: str | os.PathLike) -> Run:
  """The run in `workdir`. A line or file that is not JSON is left out and noted, never fatal."""
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise FileNotFoundError(f"{workdir} is not a folder; give the --workdir of a run.")
  notes: list[str] = []
  results = _object(workdir / "results.json", notes)
  stages = _object(workdir / "stages.json", notes).values()
  written = sorted((workdir / "evaluation").glob("*.jsonl"))
  return Run(
    name=workdir.resolve().name,
    config=_flat(_object(workdir / "config.json", notes)),
    metrics=_by_stage(_lines(workdir / "metrics.jsonl", notes)),
    samples=_lines(workdir / "samples.jsonl", notes),
    answers={path.stem: _lines(path, notes) for path in written},
    results={name: float(value) for name, value in results.items() if is_number(value)},
    calibration=_object(workdir / "calibration.json", notes),
    finished=bool(stages) and all(isinstance(s, dict) and s.get("finished") for s in stages),
    notes=notes,
  )


def is_number(value: Any) -> bool:
  """A finite int or float, and not a bool."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _by_stage(rows: list[dict]) -> dict[str, dict[str, Series]]:
  found: dict[str, dict[str, dict[int, float]]] = {}
  for row in rows:
    step = row.get("step")
    if not is_number(step):
      continue
    stage = found.setdefault(str(row.get("stage", "train")), {})
    for name, value in row.items():
      if name not in ("step", "stage") and isinstance(value, (int, float)):
        stage.setdefault(name, {})[int(step)] = float(value) if is_number(value) else math.nan
  return {
    stage: {name: _series(points) for name, points in metrics.items()}
    for stage, metrics in found.items()
  }


def _series(points: dict[int, float]) -> Series:
  steps = sorted(points)
  return Series(np.asarray(steps), np.asarray([points[step] for step in steps], float))


def _object(path: Path, notes: list[str]) -> dict:
  """The JSON object in `path`, {} where there is none."""
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    notes.append(f"{path.name} is not JSON ({error}) and is left out.")
    return {}
  if not isinstance(value, dict):
    notes.append(f"{path.name} holds a {type(value).__name__}, not an object, and is left out.")
    return {}
  return value


def _lines(path: Path, notes: list[str]) -> list[dict]:
  """The JSON objects in `path`, one a line; the numbers of other lines go into a note."""
  if not path.exists():
    return []
  rows, bad = [], []
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      row = json.loads(line) if line.strip() else None
    except ValueError:  # a line cut by a kill, or not UTF-8
      row = line
    if isinstance(row, dict):
      rows.append(row)
    elif row is not None:
      bad.append(number)
  if bad:
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    notes.append(f"{path.name}: left out what is not a JSON object, line {shown}.")
  return rows


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, item in value.items():
    if isinstance(item, dict) and item:
      flat |= _flat(item, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = item
  return flat
