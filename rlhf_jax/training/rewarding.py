"""What an answer is worth: `config.rewards`, a weighted sum of named terms.

    reward(x, y) = Σ_k weights_k · term_k(x, y)

`reward_model` is scored where it computes, within the rollout; every other term reads text on the host. Where no term asks
for a reward model, a run needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import from_dict, hyperparameters, suggest
from rlhf_jax.ops import returns
from rlhf_jax.training import sampling
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Mean, Params, Rollout, Sequences

MODEL = "reward_model"


class Answers(NamedTuple):
  """A row each: who was asked, what, and what was answered."""

  ids: Sequence
  prompts: list[str]
  responses: list[str]


def _verifier(setup: Setup) -> Callable[[Answers], np.ndarray]:
  return lambda answers: setup.task.verifier(answers.ids, answers.responses)


TERMS: dict[str, Callable[[Setup], Callable[[Answers], np.ndarray]]] = {"verifier": _verifier}


@hyperparameters
class Settings:
  """Terms and their weights."""

  terms: tuple[str, ...] = (MODEL,)
  weights: tuple[float, ...] = ()  # one a term; none at all is 1 each

  def assert_sound(self, where: str) -> None:
    if not self.terms:
      raise ValueError(f"{where}.terms is empty; name what an answer is worth, such as 'verifier'.")
    for term in self.terms:
      if term not in (MODEL, *TERMS):
        raise ValueError(f"{where}.terms has {term!r}{suggest(term, (MODEL, *TERMS))}")
    if len(set(self.terms)) < len(self.terms):
      raise ValueError(f"{where}.terms={self.terms!r} names a term twice; add up its weights.")
    if self.weights and len(self.weights) != len(self.terms):
      raise ValueError(
        f"{where}.weights has {len(self.weights)} numbers for {len(self.terms)} terms; give one a term, or none."
      )
    for weight in self.weights:
      if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
      ):
        raise ValueError(f"{where}.weights has {weight!r}, which is not a finite number.")

  def weight(self, term: str) -> float:
    return float(self.weights[self.terms.index(term)]) if self.weights else 1.0


def settings_of(config: Mapping[str, Any]) -> Settings:
  return from_dict(Settings, config.get("rewards", {}), where="rewards")


def asks_model(config: Mapping[str, Any]) -> bool:
  """Whether an answer's reward needs the reward model."""
  return MODEL in settings_of(config).terms


class Rewards:
  """The composed reward of a run."""

  def __init__(self, setup: Setup):
    self.setup, self.settings = setup, settings_of(setup.config)
    self.terms = {name: TERMS[name](setup) for name in self.settings.terms if name != MODEL}
    self.model_weight = self.settings.weight(MODEL) if MODEL in self.settings.terms else 0.0

  def frozen(self, frozen: Params) -> Params:
    """`frozen` for the rollout: without a reward model that no term asks for."""
    return frozen if self.model_weight else {**frozen, "reward_model": None}

  def add(self, rollout: Rollout, ids: Sequence) -> tuple[Rollout, dict[str, Mean]]:
    """`rollout`, scored by the reward model, with the whole reward; and the mean of every term."""
    metrics = {}
    if MODEL in self.settings.terms:
      metrics[f"rewards/{MODEL}"] = Mean(jnp.sum(rollout.rewards), jnp.float32(len(ids)))
    if not self.terms and self.model_weight == 1.0:
      return rollout, metrics
    scores, named = self._of_texts(rollout.sequences, ids)
    metrics |= named
    baseline = None
    if rollout.greedy is not None:
      baseline, _ = self._of_texts(rollout.greedy, ids)
    return _composed(rollout, self.model_weight, scores, baseline), metrics

  def score(
    self, frozen: Params, sequences: Sequences, ids: Sequence, *, batch_size: int
  ) -> np.ndarray:
    """The whole reward of host sequences outside of training, float64[N]."""
    scores, _ = self._of_texts(sequences, ids)
    if MODEL in self.settings.terms:
      params, model = frozen["reward_model"], self.model_weight
      scores = scores + model * sampling.score(
        self.setup, params, frozen, sequences, batch_size=batch_size
      )
    return scores

  def _of_texts(self, sequences: Sequences, ids: Sequence) -> tuple[np.ndarray, dict[str, Mean]]:
    total, metrics = np.zeros(len(ids)), {}
    if not self.terms:
      return total, metrics
    sequences = jax.device_get(sequences)
    texts = sampling.prompt_texts(self.setup, sequences), sampling.texts(self.setup, sequences)
    answers = Answers(ids, *texts)
    for name, term in self.terms.items():
      scores = np.asarray(term(answers), np.float64)
      if scores.shape != (len(ids),):
        raise ValueError(f"{name} gave scores of shape {scores.shape} for {len(ids)} answers.")
      total = total + self.settings.weight(name) * scores
      metrics[f"rewards/{name}"] = Mean(np.float32(scores.sum()), np.float32(len(scores)))
    return total, metrics


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


def assert_computable(setup: Setup) -> None:
  """Raises ValueError, with the remedy, for a term that this run's data or machine cannot compute."""
  if "verifier" in settings_of(setup.config).terms and setup.task.verifier is None:
    raise ValueError(
      f"rewards.terms has 'verifier', and nothing in data.source={setup.data.source!r} can be checked; take it "
      "out, or use data whose answers can be."
    )
