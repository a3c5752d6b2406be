"""Pairs for DPO from the policy itself: n answers to a prompt, the reward model's best against its worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Pair
from rlhf_jax.rollout.generate import responses
from rlhf_jax.training import disk, sampling
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params


@hyperparameters
class Settings:
  """Where pairs come from."""

  pairs: str = option("sampled", choices=("sampled", "human"))
  pair_prompts: int = option(512, at_least=1)
  answers: int = option(4, at_least=2)  # to each prompt
  sample_batch: int = option(128, at_least=1)


def load_or_sample(
  path: Path, settings: Settings, setup: Setup, frozen: Params, reward_params: Params | None
) -> list[Pair]:
  """The pairs of `path`, sampled and written there first where it does not exist."""
  if settings.pairs == "human":
    pairs = setup.task.pairs(0)
    if not pairs:
      raise ValueError("pairs='human' needs data.pairs, a JSON Lines file of pairs.")
    return pairs
  if not path.exists():
    disk.replace_rows(path, _sample(settings, setup, frozen, reward_params))
  return [Pair(Example(**row["chosen"]), Example(**row["rejected"])) for row in disk.rows(path)]


def _sample(settings: Settings, setup: Setup, frozen: Params, reward_params: Params) -> list[dict]:
  count = min(settings.pair_prompts, len(setup.task.prompts))
  order = examples.batch_rows(len(setup.task.prompts), count, setup.order("pairs"), 0)
  prompts = [setup.task.prompts[i] for i in order]
  size = settings.sample_batch
  written = sampling.sample(
    setup,
    frozen["base"],
    frozen["reference"]["model"],
    prompts,
    "pairs",
    count=settings.answers,
    batch_size=size,
  )
  rewards = sampling.score(setup, reward_params, frozen, written.sequences, batch_size=size)
  answers = responses(written.sequences.tokens, written.sequences.response_mask)

  rows = []
  for i, prompt in enumerate(prompts):
    group = slice(i * settings.answers, (i + 1) * settings.answers)
    best, worst = np.argmax(rewards[group]), np.argmin(rewards[group])
    if (
      rewards[group][best] > rewards[group][worst] and answers[group][best] != answers[group][worst]
    ):
      chosen, rejected = (_row(prompt, answers[group][k], int(k)) for k in (best, worst))
      rows.append({"chosen": chosen, "rejected": rejected})
  if not rows:
    raise ValueError(
      f"the reward model tells none of {settings.answers} answers to {count} prompts apart; train it "
      "longer, or raise rollout.temperature or answers."
    )
  return rows


def _row(prompt: Example, answer: list[int], index: int) -> dict:
  tokens = [*prompt.tokens, *answer]
  return Example(f"{prompt.id}#{index}", tokens, len(prompt.tokens))._asdict()
