"""Golden numbers from Transformers: which tokens top-k, top-p and min-p sampling keep, and what is left of the distribution.

pip install torch==2.13.0 "transformers>=4.56,<5" numpy
python tests/parity/transformers_golden.py
"""

from __future__ import annotations

import numpy as np
import record
import torch
from transformers.generation import logits_process

GOLDEN = record.Recorder("transformers", "transformers", "torch")

FILTERS = {
  "top_k": logits_process.TopKLogitsWarper,
  "top_p": logits_process.TopPLogitsWarper,
  "min_p": logits_process.MinPLogitsWarper,
}


def main():
  logits = record.grid(np.random.default_rng(9).normal(0, 2, (3, 13)))
  assert all(len(set(row)) == 13 for row in logits)  # how ties are broken is nobody's contract
  chains = [
    dict(top_k=1),
    dict(top_k=5),
    dict(top_p=0.3),
    dict(top_p=0.9),
    dict(min_p=0.1),
    dict(min_p=0.4),
    dict(top_k=6, top_p=0.8, min_p=0.2),
  ]
  for chain in chains:
    scores = torch.tensor(logits, dtype=torch.float64)
    for name, value in chain.items():
      scores = FILTERS[name](value)(None, scores)
    GOLDEN.case(
      "truncate",
      ", ".join(f"{name} {value}" for name, value in chain.items()),
      "transformers.generation." + ", ".join(FILTERS[name].__name__ for name in chain),
      dict(logits=logits),
      dict(probs=torch.softmax(scores, -1)),
      settings=chain,
    )
  GOLDEN.write()


if __name__ == "__main__":
  main()
