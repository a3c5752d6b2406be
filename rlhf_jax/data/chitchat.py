"""Conversations between two students, rated from 1 to 10 on three scales, from the `chitchat-dataset` package.

7,168 conversations of the BYU Chit-Chat Challenge of 2018 (Myers, Etchart and Fulda, ICAART 2020): a site brought
two strangers together, proposed a topic, and asked after the conversation how witty, interesting and upbeat it was. The
package keeps at most one answer a conversation. Neither it nor the project's page says which of the two gave it, or
whether it is of the partner, so here it is a rating of the conversation as a whole.

Of 5,988 rated ones 2,920 carry 5, 5, 5, where the form stood before anybody touched it. They are dropped, and so are
691 in which only one person wrote, and copies. Among what remains some single fives may be untouched, too; nothing
tells them apart.

Nothing is downloaded at run time.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

import datasets
import numpy as np

SCALES = ("witty", "interesting", "upbeat")
UNTOUCHED = 5  # on every scale: how the form stood before anybody answered
SPEAKERS = ("A", "B")  # in the order in which they first wrote
TEST_SHARE = 0.25
INSTALL = "pip install chitchat-dataset"


class ChitchatSplits(NamedTuple):
  """Datasets with columns `id`, `topic`, `messages` (lists of {"speaker", "content"}), `people` and `ratings`, an
  integer from 1 to 10 for each of `SCALES`; and what was dropped."""

  train: datasets.Dataset
  test: datasets.Dataset  # held out
  counts: dict[str, int]

  def describe(self) -> str:
    """One line on sizes and on what was dropped, for the log."""
    c = self.counts
    return (
      f"{c['train']:,} conversations to train, {c['test']:,} held out; dropped {c['unrated']:,} without ratings, "
      f"{c['untouched']:,} with 5 on every scale, {c['alone']} in which one person wrote alone and {c['repeated']} "
      f"that occur more than once. Of those held out {c['new_people']} are between people of whom none is in training."
    )


def load_chitchat(seed: int = 0, *, test_share: float = TEST_SHARE) -> ChitchatSplits:
  """The conversations, split once by `seed`; all that the same two people had with each other fall on one side.

  Single people do occur on both sides, for no split between people leaves enough: through their conversations
  789 of 883 hang together, and a few had hundreds. Who wrote is not in the text; and where it is known, it
  says little: the mean rating of both people's other conversations orders those of new pairs with rank
  correlations of 0.19, 0.09 and 0.12 (cross-validated on training data).
  """
  rows = _read()
  counts = {"unrated": sum(row["ratings"] is None for row in rows)}
  rated = [row for row in rows if row["ratings"] is not None]
  answered = [row for row in rated if set(row["ratings"]) != {UNTOUCHED}]
  dialogues = [row for row in answered if len(row["people"]) == 2]
  texts = [text(row["messages"]).lower() for row in dialogues]
  times = collections.Counter(texts)
  kept = [row for row, t in zip(dialogues, texts, strict=True) if times[t] == 1]
  counts |= {
    "untouched": len(rated) - len(answered),
    "alone": len(answered) - len(dialogues),
    "repeated": len(dialogues) - len(kept),
  }
  train, test = _split(kept, seed, round(test_share * len(kept)))
  if not train or not test:
    raise ValueError(
      f"test_share={test_share} splits {len(kept)} rated conversations into {len(train)} to train and {len(test)} "
      "held out; both need some."
    )
  known = {person for row in train for person in row["people"]}
  counts |= {
    "train": len(train),
    "test": len(test),
    "new_people": sum(not known.intersection(row["people"]) for row in test),
  }
  return ChitchatSplits(datasets.Dataset.from_list(train), datasets.Dataset.from_list(test), counts)


def text(messages) -> str:
  """A conversation as it is read: a message a line, after its speaker's letter."""
  return "\n".join(f"{message['speaker']}: {message['content']}" for message in messages)


def _split(rows: list[dict], seed: int, size: int) -> tuple[list[dict], list[dict]]:
  """(train, test): pairs of people in a random order, the first of them to the test until it has `size`."""
  pairs = sorted({_pair(row) for row in rows})
  place = dict(zip(pairs, np.random.default_rng(seed).permutation(len(pairs)), strict=True))
  of_pair = np.bincount([place[_pair(row)] for row in rows], minlength=len(pairs))
  in_test = np.cumsum(of_pair) <= size
  side = lambda held_out: [row for row in rows if in_test[place[_pair(row)]] == held_out]
  return side(False), side(True)


def _pair(row: dict) -> tuple[str, ...]:
  return tuple(sorted(row["people"]))


def _read() -> list[dict]:
  """Every conversation of the package as a row; raises with the remedy when one is not as expected."""
  try:
    import chitchat_dataset
  except ImportError as error:
    raise ImportError(
      f"The conversations come with the chitchat-dataset package: {INSTALL}"
    ) from error
  try:
    conversations = chitchat_dataset.Dataset()
  except (OSError, ValueError) as error:
    raise FileNotFoundError(
      f"chitchat-dataset has no readable dataset.json; reinstall it: {INSTALL} --force-reinstall"
    ) from error
  return [_row(id, conversation) for id, conversation in conversations.items()]


def _row(id: str, conversation: dict) -> dict:
  try:
    blocks = [
      (block[0]["sender"], " ".join(" ".join(m["text"] for m in block).split()))
      for block in conversation["messages"]
    ]
  except (KeyError, IndexError, TypeError) as error:
    raise ValueError(
      f"chitchat-dataset conversation {id} has no messages with sender and text. Install the version that this was "
      f"written for: {INSTALL}==0.9.0"
    ) from error
  people = list(dict.fromkeys(sender for sender, _ in blocks))
  if len(people) > len(SPEAKERS):
    raise ValueError(
      f"chitchat-dataset conversation {id} is between {len(people)} people, not two."
    )
  letter = dict(zip(people, SPEAKERS, strict=False))
  return {
    "id": id,
    "topic": conversation.get("prompt", ""),
    "messages": [{"speaker": letter[who], "content": what} for who, what in blocks],
    "people": people,
    "ratings": _ratings(id, conversation.get("ratings")),
  }


def _ratings(id: str, ratings: dict | None) -> list[int] | None:
  if ratings is None:
    return None
  for scale in SCALES:
    if scale not in ratings:
      raise ValueError(
        f"chitchat-dataset conversation {id} has no rating {scale!r}; it has {', '.join(ratings)}. Install the version "
        f"that this was written for: {INSTALL}==0.9.0"
      )
    if ratings[scale] not in range(1, 11):
      raise ValueError(
        f"chitchat-dataset conversation {id}: {scale}={ratings[scale]!r} is not a whole number from 1 to 10."
      )
  return [int(ratings[scale]) for scale in SCALES]
