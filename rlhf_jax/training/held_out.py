"""The reward model on people's held-out feedback: how often it agrees with them, and how well it knows when it does."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np
import scipy

from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, TokenLabelled
from rlhf_jax.evaluation import agreement, classification, regression
from rlhf_jax.evaluation.classification import Calibration, Estimate
from rlhf_jax.ops import reward
from rlhf_jax.training import ensemble, sampling
from rlhf_jax.training.setup import RewardModel, Setup, reward_model_of
from rlhf_jax.types import Params, Sequences

ANNOTATORS = 20  # of the busiest, named one by one


def results(read: Reader) -> tuple[dict[str, float], Calibration | None]:
  """results.json's rows of a reward model on feedback of the form that it learned from, and on pairs.

  The calibration is that of pairs, None where there are none.
  """
  made = reward_model_of(read.setup.config)
  found, calibration = {}, None
  for form in dict.fromkeys((made.module.DATA, "pairs")):
    records = read.setup.task.held_out_feedback(form)
    if not records:
      continue
    if form == "pairs":
      estimates, calibration = _pairs(read, records)
      if calibration is not None:
        found["reward_model/pair_calibration_error"] = calibration.error
    else:
      estimates = _FORMS[form](read, records, made)
    for name, estimate in estimates.items():
      if estimate is not None:
        found |= rows(f"reward_model/{name}", estimate)
  return found, calibration


def rows(name: str, estimate: Estimate) -> dict[str, float]:
  return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


class Reader:
  """What the reward model says of answers, each distinct one read once, shortest first."""

  def __init__(self, setup: Setup, params: Params, frozen: Params, batch_size: int):
    self.setup, self.params, self.frozen = setup, params, {"base": frozen["base"]}
    self.batch_size = batch_size
    self.known: dict[Callable, dict] = {}  # function -> tokens -> what it says of them

  def scores(self, answers: Sequence[Example]) -> np.ndarray:
    """Rewards, float[N]."""
    return np.asarray(self._over(_score, self.params, answers))

  def raw_scores(self, answers: Sequence[Example]) -> list[np.ndarray]:
    """Of each member float[N], in the units of its likelihood: before gain and bias."""
    plain = [
      {name: x for name, x in member.items() if name != "normalization"}
      for member in ensemble.each(self.params)
    ]
    return [np.asarray(self._over(_score, member, answers)) for member in plain]

  def outputs(self, answers: Sequence[Example]) -> np.ndarray:
    """What the head says, float[N, A]."""
    return np.stack(self._over(_outputs, self.params, answers))

  def tokens(self, answers: Sequence[Example]) -> list[np.ndarray]:
    """What the head says of every token, float[tokens] each."""
    return self._over(_tokens, self.params, answers)

  def _over(self, function: Callable, params: Params, answers: Sequence[Example]) -> list:
    known = self.known.setdefault(function, {}) if params is self.params else {}
    wanted = {tuple(answer.tokens): answer for answer in answers}
    new = [answer for tokens, answer in wanted.items() if tokens not in known]
    distinct = sorted(new, key=lambda answer: len(answer.tokens))
    for start in range(0, len(distinct), self.batch_size):
      part = distinct[start : start + self.batch_size]
      width = examples.width_of(part, multiple=64)  # few widths, each compiles once
      batch = examples.collate([[answer] for answer in part], width)
      place = lambda rows, batch=batch: self.setup.place_batch(sampling.take(batch, rows))
      said = sampling.in_batches(
        self.setup,
        lambda rows: function(self.setup.scorer, params, self.frozen, place(rows)),  # noqa: B023
        len(part),
        self.batch_size,
        "scoring",
      )
      for answer, row in zip(part, said, strict=True):
        known[tuple(answer.tokens)] = row
    said = [known[tuple(answer.tokens)] for answer in answers]
    if function is _tokens:
      return [row[: len(answer.tokens)] for row, answer in zip(said, answers, strict=True)]
    return said


def _jitted(name: str):
  @functools.partial(jax.jit, static_argnums=0)
  def read(scorer, params, frozen, sequences: Sequences):
    return getattr(scorer, name)(params, frozen, sequences)

  return read


_score, _outputs, _tokens = _jitted("score"), _jitted("outputs"), _jitted("tokens")


def _pairs(read: Reader, pairs: list[Pair]) -> tuple[dict[str, Estimate], Calibration | None]:
  """Of pairs that were decided, the preferred answer first, whichever the file put first."""
  decided = [
    (p.chosen, p.rejected, p) if p.preference > 0.5 else (p.rejected, p.chosen, p)
    for p in pairs
    if p.preference != 0.5
  ]
  if not decided:
    return {}, None
  chosen, rejected, records = (list(side) for side in zip(*decided, strict=True))
  both = read.scores([*chosen, *rejected])
  scores = both[: len(chosen)], both[len(chosen) :]
  found = {"pair_accuracy": classification.pair_accuracy(*scores)}

  length = lambda example: sum(example.response_mask)
  longer = [length(w) - length(l) for w, l in zip(chosen, rejected, strict=True)]
  for part in classification.pair_accuracy_by_difference(*scores, longer):
    found[f"pair_accuracy_{part.least}_to_{part.most}_tokens_longer"] = part.accuracy
  right = classification.rightly_ordered(*scores)
  names = np.asarray([record.annotator for record in records])
  for name, _ in Counter(name for name in names if name).most_common(ANNOTATORS):
    found[f"pair_accuracy_by_{name}"] = classification.fraction(right[names == name])

  margins = [
    raw[: len(chosen)] - raw[len(chosen) :] for raw in read.raw_scores([*chosen, *rejected])
  ]
  probabilities = np.mean([scipy.special.expit(np.float64(margin)) for margin in margins], axis=0)
  return found, classification.calibration(probabilities)


def _rankings(read: Reader, rankings: list[Ranking], made: RewardModel) -> dict:
  """Answers without a rank are last or left out, as the reward model was told to take them."""
  below = getattr(made.config, "unranked", "below") == "below"
  scores, places = [], []
  said = iter(read.scores([answer for ranking in rankings for answer in ranking.answers]))
  for ranking in rankings:
    ranks = np.asarray(ranking.ranks)
    mine = np.asarray([next(said) for _ in ranks])
    kept = (ranks > 0) | below
    if np.any(ranks > 0):
      scores.append(mine[kept])
      places.append(np.where(ranks > 0, ranks, len(ranks) + 1)[kept])
  if not scores:
    return {}
  return {
    "top_one": agreement.top_one(scores, places),
    "kendall": agreement.kendall(scores, places),
  }


def _ratings(read: Reader, records: list[Labelled], made: RewardModel) -> dict:
  labels = np.asarray([record.labels for record in records], float)
  said = read.outputs([record.answer for record in records])
  names = read.setup.task.attributes
  if len(names) != labels.shape[1]:
    names = [f"scale_{a}" for a in range(labels.shape[1])]
  found = {}
  for a, name in enumerate(names):
    if np.sum(~np.isnan(labels[:, a])) > regression.FEWEST:
      found[f"{name}_spearman"] = regression.spearman(said[:, a], labels[:, a])
      found[f"{name}_pearson"] = agreement.pearson(said[:, a], labels[:, a])
  return found


def _classes(read: Reader, records: list[Labelled], made: RewardModel) -> dict:
  """The predicted class is the one that holds the median; of an ensemble, the middle member's."""
  labels = np.asarray([record.labels[0] for record in records], float)
  given = ~np.isnan(labels)
  members = ensemble.each(read.params)
  raw = read.raw_scores([record.answer for record in records])
  predicted = [
    np.sum(scores[:, None] > np.asarray(reward.cutpoints(member["link"]))[None], axis=1)
    for member, scores in zip(members, raw, strict=True)
  ]
  middle = np.round(np.median(predicted, axis=0))
  return {
    "class_accuracy": classification.fraction((middle == labels)[given].astype(float)),
    "class_kappa": agreement.quadratic_kappa(middle[given], labels[given]),
  }


def _marks(read: Reader, records: list[Labelled], made: RewardModel) -> dict:
  labels = np.asarray([record.labels[0] for record in records], float)
  given = ~np.isnan(labels)
  right = (labels[given] > 0.5).astype(int)
  if min(right.sum(), len(right) - right.sum()) < 2:
    return {}
  scores = read.scores([record.answer for record in records])
  return {"mark_auc": classification.auc(scores[given], right)}


def _tokens_told_apart(read: Reader, records: list[TokenLabelled], made: RewardModel) -> dict:
  chosen = [np.asarray(record.answer.response_mask) > 0 for record in records]
  labels = [
    np.asarray(record.labels, float)[mask] for record, mask in zip(records, chosen, strict=True)
  ]
  said = read.tokens([record.answer for record in records])
  scores = [row[mask] for row, mask in zip(said, chosen, strict=True)]
  return {"token_auc": agreement.token_auc(scores, labels)}


_FORMS = {
  "rankings": _rankings,
  "ratings": _ratings,
  "classes": _classes,
  "marks": _marks,
  "tokens": _tokens_told_apart,
}
