"""Golden numbers from OpenRLHF 0.8: KTO and process labels, which 0.9 dropped.

  pip install torch==2.13.0 "transformers>=4.56,<5" peft numpy && pip install --no-deps openrlhf==0.8.11
  python tests/parity/openrlhf_0_8_golden.py

Written to `openrlhf_0_8.json`, beside 0.11.2's `openrlhf.json`.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import record
import torch

record.Absent("deepspeed", "ray", "torchdata", "vllm", "flash_attn")

from openrlhf.models import loss as losses  # noqa: E402

GOLDEN = record.Recorder("openrlhf", "openrlhf", "torch", file="openrlhf_0_8")


def tensor(value, requires_grad: bool = False):
  return torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=requires_grad)


def record_kto():
  for name, drift, desirable, undesirable in (
    ("KTO, weighted", 1.5, 1.25, 0.75),
    ("KTO, baseline clamped at 0", -3.0, 1.0, 1.0),
  ):
    inputs = record.judgements(drift=drift)
    x = {key: tensor(value, key == "logps") for key, value in inputs.items()}
    chosen = inputs["labels"] == 1
    module = losses.KTOLoss(0.1, desirable, undesirable, world_size=1, device="cpu")
    with mock.patch.object(losses.dist, "all_reduce"):  # one process
      loss, _, _, kl = module(
        *(x["logps"][chosen], x["logps"][~chosen], x["kl_logps"]),
        *(x["ref_logps"][chosen], x["ref_logps"][~chosen], x["kl_ref_logps"]),
      )
    loss.backward()
    GOLDEN.case(
      "kto",
      name,
      "openrlhf.models.loss.KTOLoss",
      inputs,
      dict(mean_loss=loss.detach(), kl=kl),
      settings=dict(
        loss_type="kto", beta=0.1, desirable_weight=desirable, undesirable_weight=undesirable
      ),
      gradients=dict(logps=x["logps"].grad),
    )


def record_process_labels():
  rng = np.random.default_rng(20)
  mask = np.array([[0, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1]])
  scores = record.grid(rng.normal(0, 2, mask.shape))
  for name, labels in (
    ("right or wrong", rng.integers(0, 2, mask.shape)),
    ("probability of right", record.grid(rng.uniform(0, 1, mask.shape))),
  ):
    x = tensor(scores, True)
    # Two tokens' logits, of "right" and of "wrong": their softmax is σ of the score.
    logits = torch.stack([x, torch.zeros_like(x)], dim=-1)
    hard = labels.dtype.kind == "i"
    # A hard label is one of the two tokens; a soft one is the probability of the first.
    given = torch.tensor(1 - labels) if hard else torch.tensor(labels, dtype=torch.float32)
    loss = losses.PRMLoss(placeholder_token_id=1, reward_token_ids=[0, 1])(
      torch.tensor(mask), logits, given
    )
    loss.backward()
    GOLDEN.case(
      "process_labels",
      name,
      "openrlhf.models.loss.PRMLoss",
      dict(scores=scores, labels=labels, mask=mask),
      dict(mean_loss=loss.detach()),
      gradients=dict(scores=x.grad),
      note=(
        "−y log σ(score) − (1 − y) log σ(−score), mean over the batch's labelled tokens, which mask marks; it has two "
        "logits a step, here the score and 0"
      ),
    )


if __name__ == "__main__":
  record_kto()
  record_process_labels()
  GOLDEN.write()
