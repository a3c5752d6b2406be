"""The rows of a benchmark as lengths in tokens, the same ones for every library; ids are drawn by who runs them.

In the ragged set prompts and responses are drawn log-normally: where the fixed set has n tokens, the ragged one has a
median of n / 2, at most 2 n, and 0.65 n on average. Only the standard library is imported, so that the environments of
other libraries can read this.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

SIGMA = 0.8  # of the logarithm: one length in ten is more than 2.8 times the median


class Row(NamedTuple):
  """Lengths in tokens: of a prompt and of each response to it."""

  prompt: int
  responses: tuple[int, ...]

  @property
  def longest(self) -> int:
    return self.prompt + max(self.responses)


def rows(task: str, shape: Mapping[str, int], steps: int, *, seed: int = 0) -> list[list[Row]]:
  """The rows of `steps` batches, [steps][rows]; a step's rows stay what they are when more steps are asked for."""
  return [_batch(task, shape, random.Random(f"{seed} {task} {step}")) for step in range(steps)]


def fixed_rows(task: str, shape: Mapping[str, int], steps: int) -> list[list[Row]]:
  """The same for the fixed set, where all rows are alike."""
  prompt, response, answers = _typical(task, shape)
  return [[Row(prompt, (response,) * answers)] * per_step(task, shape)] * steps


def tokens(task: str, row: Row) -> int:
  """What tokens per second counts: the texts that are trained on, or the responses that are written."""
  written = sum(row.responses)
  return written if task in ("gen", "grpo", "ppo") else len(row.responses) * row.prompt + written


def limits(task: str, shape: Mapping[str, int]) -> tuple[int, int]:
  """The longest prompt and the longest response that can be drawn."""
  prompt, response, _ = _typical(task, shape)
  return 2 * prompt, 2 * response


def per_step(task: str, shape: Mapping[str, int]) -> int:
  """How many rows a step has; a row of GRPO is a prompt with its whole group."""
  return shape[
    "batch" if task in ("sft", "gen", "ppo") else "prompts" if task == "grpo" else "pairs"
  ]


def _typical(task: str, shape: Mapping[str, int]) -> tuple[int, int, int]:
  """Tokens of prompt and response in the fixed set, and responses to a prompt."""
  if task in ("sft", "rm"):  # a text whose quarter is the prompt, which a pair shares
    prompt = shape["seq"] // 4
    return prompt, shape["seq"] - prompt, 1 if task == "sft" else 2
  if task == "dpo":
    return shape["prompt"], shape["completion"], 2
  return shape["prompt"], shape["new"], shape.get("group", 1)


def _batch(task: str, shape: Mapping[str, int], rng: random.Random) -> list[Row]:
  prompt, response, answers = _typical(task, shape)
  return [
    Row(_length(prompt, rng), tuple(_length(response, rng) for _ in range(answers)))
    for _ in range(per_step(task, shape))
  ]


def _length(typical: int, rng: random.Random) -> int:
  drawn = rng.lognormvariate(math.log(typical / 2), SIGMA)
  return min(max(round(drawn), 2), 2 * typical)
