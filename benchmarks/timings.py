"""What files of results hold: all rounds of a case together, and how this library compares with others in it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TASKS = {  # in the order of the tables
  "sft": "SFT step",
  "rm": "reward-model step",
  "dpo": "DPO step",
  "gen": "generation",
  "grpo": "GRPO iteration",
  "ppo": "PPO iteration",
}
OURS, PEERS, BARE = "ours", ("trl", "tunix"), "bare"
# Ratios to the better of TRL and Tunix: what must hold, and what is aimed at; twice that in the ragged set.
TARGETS = {
  "sft": (2.2, 2.5),
  "rm": (1.0, 1.5),
  "dpo": (2.5, 3.0),
  "gen": (1.15, 2.0),
  "grpo": (2.0, 3.0),
  "ppo": (2.2, 4.0),
}


class Timing(NamedTuple):
  """All rounds of a case in one library and dtype."""

  library: str
  task: str
  model: str
  dtype: str
  set: str
  options: tuple[str, ...]
  rows: tuple[dict, ...]

  @property
  def seconds(self) -> float:
    return statistics.median(t for row in self.rows for t in row["times"])

  @property
  def rate(self) -> float:
    """Tokens per second."""
    tokens = sum(row["tokens"] for row in self.rows)
    if self.set == "ragged":
      return tokens / sum(t for row in self.rows for t in row["times"])
    return tokens / sum(row["n"] for row in self.rows) / self.seconds

  @property
  def megabytes(self) -> float:
    return max(row["peak_mb"] for row in self.rows)

  def mean(self, field: str) -> float | None:
    """Of a field that some rounds have."""
    found = [row[field] for row in self.rows if row.get(field) is not None]
    return statistics.mean(found) if found else None


class Timings:
  """What a file of results holds, failures left out."""

  def __init__(self, rows: Iterable[dict]):
    newest = {row["key"]: row for row in rows}
    groups: dict[tuple, list[dict]] = {}
    self.failures = [row for row in newest.values() if "error" in row]
    for row in newest.values():
      if "error" not in row:
        case = row["case"]
        names = ("library", "task", "model", "dtype", "set")
        place = (*(case[n] for n in names), tuple(case["options"]))
        groups.setdefault(place, []).append(row)
    self.all = [Timing(*place, tuple(rows)) for place, rows in groups.items()]

  def of(self, library: str, task: str, model: str, set: str, *options: str) -> list[Timing]:
    """A timing a dtype."""
    asked = (library, task, model, set, options)
    return [t for t in self.all if (t.library, t.task, t.model, t.set, t.options) == asked]

  def best(self, libraries: Iterable[str], *place: str) -> Timing | None:
    """The fastest, whatever the dtype."""
    found = [timing for library in libraries for timing in self.of(library, *place)]
    return max(found, key=lambda timing: timing.rate, default=None)

  def in_dtype(self, dtype: str, library: str, *place: str) -> Timing | None:
    return next((t for t in self.of(library, *place) if t.dtype == dtype), None)

  @property
  def models(self) -> list[str]:
    order = ("XS", "S", "M", "1B")
    return sorted({t.model for t in self.all}, key=order.index)

  def ratio(self, *place: str) -> float | None:
    """How much faster we are than the better of TRL and Tunix, each at its best dtype."""
    return _over(self.best((OURS,), *place), self.best(PEERS, *place))


def _over(ours: Timing | None, other: Timing | None) -> float | None:
  return ours.rate / other.rate if ours and other else None


def read(path: Path) -> list[dict]:
  """The rows of a file; none where there is no file."""
  if not path.is_file():
    return []
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
