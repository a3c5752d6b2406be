"""Rules on the form of a response, float64[N] each."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def matches(prompts: Sequence[str], responses: Sequence[str], *, pattern: str) -> np.ndarray:
  """1 where the regular expression is found in the response, else 0; `^` and `$` tie it to both ends.

  A dot matches a line break too, since answers have lines.
  """
  found = re.compile(pattern, re.DOTALL).search
  return np.asarray([float(found(response) is not None) for response in responses], np.float64)


def length(prompts: Sequence[str], responses: Sequence[str], *, target: int) -> np.ndarray:
  """1 − |words − target| / target: 1 at the target, 0 for no words and for twice as many, below 0 beyond.

  Words are what white space parts.
  """
  words = np.asarray([len(response.split()) for response in responses], np.float64)
  return 1 - np.abs(words - target) / target
