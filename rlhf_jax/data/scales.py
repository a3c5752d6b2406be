"""The numbers behind ratings and classes, which take a whole file to know: means, standard deviations, an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.examples import Labelled, Pair, Ranking
from rlhf_jax.data.texts import Classed, Correction, Rated, Spanned, Stepped, Text

FORM_OF = {
  Text: "texts",
  Pair: "pairs",
  Ranking: "rankings",
  Rated: "ratings",
  Classed: "classes",
  Labelled: "marks",
  Correction: "corrections",
  Spanned: "tokens",
  Stepped: "tokens",
}


class Scales(NamedTuple):
  """Of each attribute that was rated its raw mean and standard deviation; the classes, worst first."""

  attributes: tuple[str, ...] = ()  # in the order in which they first occur
  means: tuple[float, ...] = ()
  stds: tuple[float, ...] = ()
  classes: tuple[str | int, ...] = ()

  @classmethod
  def of(cls, records: Sequence, classes: Sequence[str | int] = ()) -> Scales:
    """Those of `records`; without `classes` theirs are ints, or in the order in which they occur."""
    rated = [r.ratings for r in records if isinstance(r, Rated)]
    given = {name: [] for ratings in rated for name in ratings}
    for ratings in rated:
      for name, value in ratings.items():
        given[name].append(value)
    found = list(dict.fromkeys(r.value for r in records if isinstance(r, Classed)))
    if all(isinstance(value, int) for value in found):
      found = sorted(found)
    return cls(
      attributes=tuple(given),
      means=tuple(float(np.mean(values)) for values in given.values()),
      # Ratings that are all equal stay 0 each.
      stds=tuple(float(np.std(values)) or 1.0 for values in given.values()),
      classes=tuple(classes) or tuple(found),
    )

  def standardised(self, ratings) -> tuple[float, ...]:
    """(rating − mean) / std of each attribute, NaN where there is no rating."""
    scales = zip(self.attributes, self.means, self.stds, strict=True)
    return tuple((ratings.get(name, math.nan) - mean) / std for name, mean, std in scales)

  def raw(self, labels: Sequence[float]) -> dict[str, float]:
    """The ratings that `standardised` made `labels` of."""
    scales = zip(self.attributes, self.means, self.stds, labels, strict=True)
    return {name: label * std + mean for name, mean, std, label in scales if not math.isnan(label)}

  def describe(self) -> str:
    scales = zip(self.attributes, self.means, self.stds, strict=True)
    each = ", ".join(f"{name} mean {mean:.4g}, std {std:.4g}" for name, mean, std in scales)
    return f"ratings standardised by {each}" if each else ""


def by_form(records: Sequence, scales: Scales) -> dict[str, list]:
  """`records` by their form, ratings standardised and classes as their place from 0, the worst.

  A rating on none of the scales is left out.
  """
  found: dict[str, list] = {}
  for record in records:
    form = FORM_OF[type(record)]
    if isinstance(record, Rated):
      labels = scales.standardised(record.ratings)
      if all(map(math.isnan, labels)):
        continue
      record = Labelled(record.answer, labels, record.annotator)
    elif isinstance(record, Classed):
      place = float(scales.classes.index(record.value))
      record = Labelled(record.answer, (place,), record.annotator)
    found.setdefault(form, []).append(record)
  return found
