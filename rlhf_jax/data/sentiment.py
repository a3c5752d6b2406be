"""A classifier that labels texts where people did not: VADER's lexicon (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

from collections.abc import Callable


def above(threshold: float) -> Callable[[str], bool]:
  """Whether a text's compound sentiment, between −1 and 1, exceeds `threshold`. Raises ImportError with the remedy."""
  try:
    from vaderSentiment import vaderSentiment
  except ImportError as error:
    raise ImportError(
      "data.labels='vader' needs the package vaderSentiment: pip install vaderSentiment"
    ) from error
  analyzer = vaderSentiment.SentimentIntensityAnalyzer()
  return lambda text: analyzer.polarity_scores(text)["compound"] > threshold
