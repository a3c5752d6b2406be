"""Classifiers of text as rewards. They judge the response alone, whatever the prompt."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
  """VADER's compound sentiment of each response, float64[N] in [-1, 1]."""
  return vader(responses)


def vader(texts: Sequence[str]) -> np.ndarray:
  """VADER's compound sentiment, float64[N] in [-1, 1] (Hutto and Gilbert, ICWSM 2014)."""
  return np.asarray([_vader().polarity_scores(text)["compound"] for text in texts], np.float64)


def toxicity(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
  """alt-profanity-check's probability that each response is offensive, float64[N] in [0, 1].

  A linear classifier of words and word pairs, trained on tweets and comments: it knows words, not meaning.
  """
  import profanity_check  # loads its model, which lies in the package

  return np.asarray(profanity_check.predict_prob(list(responses)), np.float64)


@functools.cache
def _vader():
  from vaderSentiment import vaderSentiment

  return vaderSentiment.SentimentIntensityAnalyzer()
