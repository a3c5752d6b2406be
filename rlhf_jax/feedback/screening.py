"""How near texts are to references, where an item has some: BLEU, chrF and TER by sacrebleu, METEOR by NLTK.

They screen what annotators wrote, and what they were asked about: a correction far from every reference deserves a look.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import sacrebleu
from nltk.translate import meteor_score

from rlhf_jax.feedback.export import judgements
from rlhf_jax.feedback.project import text_of
from rlhf_jax.feedback.store import Store

# METEOR matches words and their stems; its third stage, synonyms, needs WordNet's data, which no package brings.
WITHOUT_SYNONYMS = SimpleNamespace(synsets=lambda word: [])


def nearness(text: str, references: Sequence[str]) -> dict[str, float]:
  """`bleu` (smoothed, of a sentence), `chrf` and `ter` in percent, and `meteor` from 0 to 1; TER counts edits, so 0 is equal.

  Raises ValueError without a reference.
  """
  if not references:
    raise ValueError("there is no reference to compare with")
  whole = list(references)
  words = [reference.split() for reference in whole]
  return {
    "bleu": sacrebleu.sentence_bleu(text, whole).score,
    "chrf": sacrebleu.sentence_chrf(text, whole).score,
    "ter": sacrebleu.sentence_ter(text, whole).score,
    "meteor": float(meteor_score.meteor_score(words, text.split(), wordnet=WITHOUT_SYNONYMS)),
  }


def screen(store: Store) -> list[dict]:
  """Of every item with references: each answer, and each correction of it, with its nearness; the farthest by chrF first."""
  rows = []
  for item in store.items():
    if item.references:
      for i, answer in enumerate(item.answers, start=1):
        text = text_of(answer["content"])
        rows.append(
          {"item": item.id, "by": f"answer_{i}", "text": text, **nearness(text, item.references)}
        )
  corrections = [q.name for q in store.project.questions if q.form == "corrections"]
  for j in judgements(store, checks=True):
    for name in corrections:
      if j.item.references and name in j.said:
        text = j.said[name]["text"]
        rows.append(
          {"item": j.item.id, "by": j.annotator, "text": text, **nearness(text, j.item.references)}
        )
  return sorted(rows, key=lambda row: row["chrf"])
