"""A run's task by its source.

`reviews`: food reviews with star labels. SFT learns their text, the stars are the feedback, prompts
are the openings of reviews.
`chitchat`: conversations with ratings on three scales; prompts are their openings (docs/chitchat.md).
`files`: your own, JSON Lines, JSON, CSV, Parquet or a saved `datasets` folder (`data/files.py`): `sft`, `feedback`,
`held_out`, `prompts` and `test`. What their rows hold is told by their columns (`data/feedback.py`, docs/feedback.md):
feedback may be pairs, rankings, ratings, classes, marks, corrections, marked spans or labelled steps, and is
converted to what an algorithm learns from where it can be (`data/convert.py`).
`random_walks`: the shortest path to a node of a graph, from walks on it with what each is worth (docs/random_walks.md).
`reasoning_gym`: problems of a generator in that package, whose answers it checks (docs/reasoning.md).
"""

from __future__ import annotations

import importlib

from rlhf_jax.config import suggest
from rlhf_jax.data.task import Settings as Settings
from rlhf_jax.data.task import Task

SOURCES = ("reviews", "chitchat", "files", "random_walks", "reasoning_gym")


def load_task(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """`rollout_tokens`: the longest response sampled in training.

  Raises FileNotFoundError or ValueError that names file, line or field.
  """
  if settings.source not in SOURCES:
    raise ValueError(f"data.source={settings.source!r}{suggest(settings.source, SOURCES)}")
  # Alone, for the tables that some read are 80 MB of libraries.
  module = importlib.import_module(f"rlhf_jax.data.from_{settings.source}")
  return module.build(settings, tokenizer, rollout_tokens=rollout_tokens, seed=seed)
