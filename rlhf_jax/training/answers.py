"""Answers that the reference policy writes and `config.rewards` scores, as feedback of any form.

Every algorithm that learns from such feedback in a workdir shares them: `answers.jsonl` holds n answers
to each prompt with their rewards. Pairs are the best answer against the worst, marks the same two as
right and wrong, rankings all n in order, ratings their rewards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, Record
from rlhf_jax.rollout.generate import responses
from rlhf_jax.sharding import processes
from rlhf_jax.training import disk, rewarding, sampling
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params


@hyperparameters
class Settings:
  """Where the feedback of an offline algorithm comes from; shared by all of them."""

  source: str = option("sampled", choices=("sampled", "human"))  # human: data.feedback as it is
  prompts: int = option(512, at_least=1)
  count: int = option(4, at_least=2)  # answers to each prompt
  batch_size: int = option(128, at_least=1)


Group = list[tuple[Example, float]]  # the answers to one prompt, and their rewards


def load_or_sample(settings: Settings, setup: Setup, frozen: Params) -> list[Group]:
  """The groups of `answers.jsonl`, sampled and written there first where it does not exist."""
  path = setup.shared / "answers.jsonl"
  if not processes.from_first(path.exists):
    disk.replace_rows(path, _sample(settings, setup, frozen))
  return [_group(row) for row in processes.from_first(lambda: disk.rows(path))]


def pairs(groups: list[Group]) -> list[Pair]:
  """The best answer against the worst."""
  return [Pair(*_best_and_worst(group)) for group in groups]


def marks(groups: list[Group]) -> list[Labelled]:
  """The answers of `pairs`, the best right (1) and the worst wrong (0)."""
  both = [_best_and_worst(group) for group in groups]
  return [Labelled(answer, (label,)) for b, w in both for answer, label in ((b, 1.0), (w, 0.0))]


def rankings(groups: list[Group]) -> list[Ranking]:
  """All answers in the order of their rewards, equal ones tied."""
  ranked = []
  for group in groups:
    rewards = np.asarray([reward for _, reward in group])
    ranks = 1 + (rewards[None] > rewards[:, None]).sum(axis=1)
    ranked.append(Ranking(tuple(answer for answer, _ in group), tuple(ranks.tolist())))
  return ranked


def ratings(groups: list[Group]) -> list[Labelled]:
  """Every answer with its reward."""
  return [Labelled(answer, (reward,)) for group in groups for answer, reward in group]


FORMS: dict[str, Callable[[list[Group]], list[Record]]] = {
  "pairs": pairs,
  "marks": marks,
  "rankings": rankings,
  "ratings": ratings,
}


def _best_and_worst(group: Group) -> tuple[Example, Example]:
  rewards = [reward for _, reward in group]
  return group[int(np.argmax(rewards))][0], group[int(np.argmin(rewards))][0]


def _sample(settings: Settings, setup: Setup, frozen: Params) -> list[dict]:
  count = min(settings.prompts, len(setup.task.prompts))
  order = examples.batch_rows(len(setup.task.prompts), count, setup.order("pairs"), 0)
  prompts = [setup.task.prompts[i] for i in order]
  size = settings.batch_size
  written = sampling.sample(
    setup,
    frozen["base"],
    frozen["reference"]["model"],
    prompts,
    "pairs",
    count=settings.count,
    batch_size=size,
  )
  ids = [prompt.id for prompt in prompts for _ in range(settings.count)]
  with rewarding.Rewards(setup, "answers") as terms:
    rewards = terms.score(frozen, written.sequences, ids, batch_size=size)
  texts = responses(written.sequences.tokens, written.sequences.response_mask)

  rows = []
  for i, prompt in enumerate(prompts):
    group = slice(i * settings.count, (i + 1) * settings.count)
    best, worst = np.argmax(rewards[group]), np.argmin(rewards[group])
    if rewards[group][best] > rewards[group][worst] and texts[group][best] != texts[group][worst]:
      answers = zip(texts[group], rewards[group].tolist(), strict=True)
      answered = [{"tokens": tokens, "reward": reward} for tokens, reward in answers]
      rows.append({"id": prompt.id, "prompt": prompt.tokens, "answers": answered})
  if not rows:
    raise ValueError(
      f"config.rewards tells none of {settings.count} answers to {count} prompts apart; train the "
      "reward model longer, or raise rollout.temperature or answers.count."
    )
  return rows


def _group(row: dict) -> Group:
  prompt = Example.prompt(row["id"], row["prompt"])
  return [
    (prompt.continued(f"{prompt.id}#{k}", answer["tokens"]), answer["reward"])
    for k, answer in enumerate(row["answers"])
  ]
