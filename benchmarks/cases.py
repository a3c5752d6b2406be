"""What a case is, and the shapes that there are; no library is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

SHAPES = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
TASKS = ("sft", "rm", "dpo", "gen", "grpo", "ppo")


class Case(NamedTuple):
  """One thing to time."""

  task: str
  model: str
  dtype: str
  set: str
  warmup: int
  steps: int
  shape: dict
  cached_reference: bool
  low_memory: bool
  scale: str  # sizes other than the table's
  config: tuple[str, ...]  # options of the library, NAME=VALUE

  @property
  def architecture(self) -> dict:
    return SHAPES["models"][self.model]

  @property
  def ragged(self) -> bool:
    return self.set == "ragged"

  @property
  def writes(self) -> bool:
    """Whether the policy writes."""
    return self.task in ("gen", "ppo", "grpo")
