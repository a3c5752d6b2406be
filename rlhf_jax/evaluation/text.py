"""Signs of collapse in generated text, counted on lower-cased words.

A word is a run of letters, digits and apostrophes; punctuation is not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
  return WORD.findall(text.lower())


def ngrams(items: Sequence, n: int) -> list[tuple]:
  return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def distinct_n(texts: Iterable[str], n: int) -> float:
  """Different n-grams over all n-grams, both counted over all texts together (arXiv:1510.03055).

  It falls as more text is counted, so compare it between equally many responses to the same prompts.
  """
  counts = Counter(gram for text in texts for gram in ngrams(words(text), n))
  return len(counts) / counts.total() if counts else 0.0


def repeats_ngram(text: str, n: int) -> bool:
  """Whether some n-gram occurs twice within the text; occurrences may overlap."""
  grams = ngrams(words(text), n)
  return len(set(grams)) < len(grams)


def max_duplicates(texts: Iterable[str]) -> int:
  """How often the most frequent text occurs, compared by its words; 1 when all differ.

  Texts without a word all count as the same text.
  """
  return max(Counter(tuple(words(text)) for text in texts).values(), default=0)


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
  """`distinct_1`, `distinct_2`, `repeat_4` (fraction with a repeated 4-gram), `max_duplicates`, `words` (mean number)."""
  if not texts:
    raise ValueError("There are no texts to count; generate some responses first.")
  return {
    "distinct_1": distinct_n(texts, 1),
    "distinct_2": distinct_n(texts, 2),
    "repeat_4": float(np.mean([repeats_ngram(text, 4) for text in texts])),
    "max_duplicates": max_duplicates(texts),
    "words": float(np.mean([len(words(text)) for text in texts])),
  }


def excerpt(text: str, length: int, rng: np.random.Generator) -> str:
  """`length` consecutive words of `text` from a random place; the whole text when it is shorter.

  Cuts held-out reviews to the length of a response, which is what a judge of responses must be tested on.
  """
  pieces = text.split()
  start = int(rng.integers(0, max(len(pieces) - length, 0) + 1))
  return " ".join(pieces[start : start + length])
