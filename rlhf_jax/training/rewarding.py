"""What an answer is worth: `config.rewards`, a weighted sum of named terms.

    reward(x, y) = Σ_k weights_k · term_k(x, y)

  reward_model   the reward model's score
  verifier       what the task's own check gives, where its answers can be checked
  sentiment      VADER's compound sentiment, −1 to 1
  toxicity       the probability that a response is offensive, 0 to 1; give it a weight below 0
  format         1 where `format_pattern` is found in the response, else 0
  length         1 at `length_target` words, falling off linearly to both sides
  PATH.py:NAME, package.module:NAME   a function of yours, `(prompts, responses) -> floats`

The reward model is scored where it computes, within the rollout; every other term reads text on the host, of several processes
each its share of the answers. Where no term asks for a reward model, a run needs none. A weight of 0 only measures. Docs: docs/reinforcement.md.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import from_dict, hyperparameters, option, suggest
from rlhf_jax.ops import returns
from rlhf_jax.rewards import judges, rules
from rlhf_jax.rewards.function import Failed, Function
from rlhf_jax.sharding import processes
from rlhf_jax.training import disk, sampling
from rlhf_jax.training.log import REWARD_ERRORS
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Mean, Params, Rollout, Sequences

MODEL = "reward_model"
BUILT_IN = (MODEL, "verifier", "sentiment", "toxicity", "format", "length")
PACKAGES = {  # of a term: what it imports, and how to get that
  "sentiment": ("vaderSentiment", "pip install vaderSentiment"),
  "toxicity": ("profanity_check", "pip install 'rlhf_jax[judges]' (or alt-profanity-check)"),
}
# What algorithms log as `rewards/...`, which no function may be called.
TAKEN = tuple(
  "accuracy best chosen combined drawn failed greedy implicit margin mean mixture preference reference rejected shaped "
  "std total".split()
)


class Unscored(ValueError):
  """A custom reward failed on every answer."""


class Answers(NamedTuple):
  """A row each: who was asked, what, and what was answered."""

  ids: Sequence
  prompts: list[str]
  responses: list[str]


@hyperparameters
class Settings:
  """Terms, their weights and their options."""

  terms: tuple[str, ...] = (MODEL,)
  weights: tuple[float, ...] = ()  # one a term; none at all is 1 each
  format_pattern: str = ""  # a regular expression; a dot matches line breaks too
  length_target: int | None = option(None, at_least=1)  # words
  # Of a custom function: seconds for a batch; for a row of a batch that failed, when its rows are tried one by one; and
  # what an answer is given that it fails on.
  timeout: float = option(60.0, above=0)
  row_timeout: float = option(5.0, above=0)
  failed_score: float = option(0.0, at_least=-1e6)

  def assert_sound(self, where: str) -> None:
    if not self.terms:
      raise ValueError(f"{where}.terms is empty; name what an answer is worth, such as 'verifier'.")
    for term in self.terms:
      if term not in BUILT_IN and not is_custom(term):
        raise ValueError(
          f"{where}.terms has {term!r}{suggest(term, BUILT_IN)} A function of yours is PATH.py:NAME or "
          "package.module:NAME."
        )
    names = [name_of(term) for term in self.terms]
    for name in names:
      if names.count(name) > 1:
        raise ValueError(f"{where}.terms has {name!r} twice; add up its weights, or rename one.")
    for term in filter(is_custom, self.terms):
      if name_of(term) in (*BUILT_IN, *TAKEN):
        raise ValueError(f"{where}.terms has {term!r}, whose name is a metric's; rename it.")
    if self.weights and len(self.weights) != len(self.terms):
      raise ValueError(
        f"{where}.weights has {len(self.weights)} numbers for {len(self.terms)} terms; give one a term, or none."
      )
    for weight in self.weights:
      if not math.isfinite(weight):
        raise ValueError(f"{where}.weights has {weight!r}, which is not a finite number.")
    options = {"format": "format_pattern", "length": "length_target"}
    for term, field in options.items():
      given = bool(getattr(self, field))
      if term in self.terms and not given:
        raise ValueError(f"{where}.terms has {term!r}, which goes by {where}.{field}; set that.")
      if given and term not in self.terms:
        raise ValueError(
          f"{where}.{field} has no effect, {where}.terms lacks {term!r}; leave it out."
        )
    try:
      re.compile(self.format_pattern)
    except re.error as error:
      raise ValueError(
        f"{where}.format_pattern={self.format_pattern!r} is not a regular expression: {error}."
      ) from error

  def weight(self, term: str) -> float:
    return float(self.weights[self.terms.index(term)]) if self.weights else 1.0


def is_custom(term: str) -> bool:
  source, colon, name = term.rpartition(":")
  return bool(colon and source) and name.isidentifier()


def name_of(term: str) -> str:
  """Of its metric: `rewards/<name>`."""
  return term.rpartition(":")[2]


def settings_of(config: Mapping[str, Any]) -> Settings:
  return from_dict(Settings, config.get("rewards", {}), where="rewards")


def asks_model(config: Mapping[str, Any]) -> bool:
  """Whether an answer's reward needs the reward model."""
  return MODEL in settings_of(config).terms


def assert_computable(setup: Setup) -> None:
  """Raises ValueError or ImportError, with the remedy, for a term that this run's data or machine cannot compute."""
  settings = settings_of(setup.config)
  if "verifier" in settings.terms and setup.task.verifier is None:
    raise ValueError(
      f"rewards.terms has 'verifier', and nothing in data.source={setup.data.source!r} can be checked; take it "
      "out, or use data whose answers can be."
    )
  for term, (package, remedy) in PACKAGES.items():
    if term in settings.terms and importlib.util.find_spec(package) is None:
      raise ImportError(f"rewards.terms has {term!r}, which needs the package {package}: {remedy}")
  for term in filter(is_custom, settings.terms):
    function = Function(term, timeout=settings.timeout, row_timeout=settings.row_timeout)
    try:
      function.start()
    except Failed as failed:
      raise ValueError(f"{term!r} in rewards.terms cannot be used: {failed}") from failed
    finally:
      function.close()


class Rewards:
  """The composed reward of a run, for one stage. Within `with`, processes of custom functions live on."""

  def __init__(self, setup: Setup, stage: str):
    self.setup, self.stage, self.settings = setup, stage, settings_of(setup.config)
    limits = dict(timeout=self.settings.timeout, row_timeout=self.settings.row_timeout)
    custom = filter(is_custom, self.settings.terms)
    self.functions = {term: Function(term, **limits) for term in custom}
    self.terms = [term for term in self.settings.terms if term != MODEL]
    self.by_model = MODEL in self.settings.terms

  def __enter__(self) -> Rewards:
    return self

  def __exit__(self, *raised) -> None:
    for function in self.functions.values():
      function.close()

  def frozen(self, frozen: Params) -> Params:
    """`frozen` for the rollout: without a reward model that no term asks for."""
    return frozen if self.by_model else {**frozen, MODEL: None}

  def add(self, rollout: Rollout, ids: Sequence, step: int) -> tuple[Rollout, dict[str, Mean]]:
    """`rollout`, scored by the reward model, with the whole reward, also of greedy answers; and the mean of every term.

    Raises Unscored where a custom function fails on every answer.
    """
    metrics = {}
    if self.by_model:
      metrics[f"rewards/{MODEL}"] = Mean(jnp.sum(rollout.rewards), jnp.float32(len(ids)))
    weight = self.settings.weight(MODEL) if self.by_model else 0.0
    if not self.terms and weight == 1.0:
      return rollout, metrics
    scores, found = self._of_texts(rollout.sequences, ids, step)
    greedy = None
    if rollout.greedy is not None:
      greedy, theirs = self._of_texts(rollout.greedy, ids, step)
      if self.functions:
        count = found["rewards/failed"].sum + theirs["rewards/failed"].sum
        found["rewards/failed"] = Mean(count, np.float32(1))
    return _composed(rollout, weight, scores, greedy), {**metrics, **found}

  def score(
    self, frozen: Params, sequences: Sequences, ids: Sequence, *, batch_size: int
  ) -> np.ndarray:
    """The whole reward of host sequences outside of training, float64[N]."""
    scores, _ = self._of_texts(sequences, ids, 0, batch_size)
    if self.by_model:
      models = sampling.score(self.setup, frozen[MODEL], frozen, sequences, batch_size=batch_size)
      scores = scores + self.settings.weight(MODEL) * models
    return scores

  def _of_texts(
    self, sequences: Sequences, ids: Sequence, step: int, batch_size: int | None = None
  ) -> tuple[np.ndarray, dict[str, Mean]]:
    """The weighted sum of all terms but the reward model's, float64[N], and each one's mean."""
    total, metrics = np.zeros(len(ids)), {}
    if not self.terms:
      return total, metrics
    sequences = processes.fetch(sequences)
    prompts = sampling.prompt_texts(self.setup, sequences)
    answers = Answers(ids, prompts, sampling.texts(self.setup, sequences))
    failed = 0
    for term in self.terms:
      found = processes.gather(self._share(term, answers, batch_size or len(ids)))
      scores = np.concatenate([np.asarray(scores, np.float64) for scores, _ in found])
      if term in self.functions:
        errors = {int(row): why for _, errors in found for row, why in errors.items()}
        self._assert_scored(term, answers, step, errors)
        scores = np.where(np.isnan(scores), self.settings.failed_score, scores)
        failed += len(errors)
      if scores.shape != (len(ids),):
        raise ValueError(f"{term} gave scores of shape {scores.shape} for {len(ids)} answers.")
      total = total + self.settings.weight(term) * scores
      metrics[f"rewards/{name_of(term)}"] = Mean(np.float32(scores.sum()), np.float32(len(scores)))
    if self.functions:
      metrics["rewards/failed"] = Mean(np.float32(failed), np.float32(1))
    return total, metrics

  def _share(
    self, term: str, answers: Answers, batch_size: int
  ) -> tuple[list[float], dict[int, str]]:
    """Scores of the answers that are this process's to score, NaN where a custom function failed; and why, by row of all."""
    part = processes.share(len(answers.ids))
    mine = Answers(answers.ids[part], answers.prompts[part], answers.responses[part])
    if term not in self.functions:
      return np.asarray(_built_in(self.setup, self.settings, term)(mine), float).tolist(), {}
    scores, errors = [], {}
    for start in range(0, len(mine.ids), batch_size):
      batch = slice(start, start + batch_size)
      found, why = self.functions[term](mine.prompts[batch], mine.responses[batch])
      scores += found.tolist()
      errors |= {part.start + start + row: error for row, error in why.items()}
    return scores, errors

  def _assert_scored(self, term: str, answers: Answers, step: int, errors: dict[int, str]) -> None:
    """Writes down where a custom function failed. Raises Unscored unless it scored some answer."""
    rows = [
      {
        "stage": self.stage,
        "step": step,
        "term": term,
        "id": answers.ids[row],
        "prompt": answers.prompts[row],
        "response": answers.responses[row],
        "error": error,
      }
      for row, error in errors.items()
    ]
    disk.append_rows(self.setup.workdir / REWARD_ERRORS, rows)
    if len(rows) == len(answers.ids):
      raise Unscored(
        f"rewards.terms: {term} failed on all {len(rows)} answers at step {step} of stage {self.stage}. The first, to "
        f"prompt {rows[0]['id']}: {rows[0]['error']}. All are in {self.setup.workdir / REWARD_ERRORS}. Repair it, and run again "
        "to go on from the last checkpoint."
      )


def _built_in(setup: Setup, settings: Settings, term: str) -> Callable[[Answers], np.ndarray]:
  if term == "verifier":
    return lambda answers: setup.task.verifier(answers.ids, answers.responses)
  judge = {
    "sentiment": judges.sentiment,
    "toxicity": judges.toxicity,
    "format": functools.partial(rules.matches, pattern=settings.format_pattern),
    "length": functools.partial(rules.length, target=settings.length_target),
  }[term]
  return lambda answers: judge(answers.prompts, answers.responses)


@jax.jit
def _composed(rollout: Rollout, model_weight, scores, greedy_scores) -> Rollout:
  """The reward model's part by its weight, and the others' scores float[B] on each response's last token."""
  others = returns.at_last(scores.astype(jnp.float32), rollout.sequences.response_mask)
  rollout = rollout.replace(rewards=model_weight * rollout.rewards + others)
  if greedy_scores is None:
    return rollout
  return rollout.replace(
    baseline=model_weight * rollout.baseline + greedy_scores.astype(jnp.float32)
  )
