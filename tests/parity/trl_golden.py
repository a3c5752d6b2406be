"""Golden numbers from TRL: the DPO family, the reward-model loss, masked statistics, token log-probabilities.

  pip install torch==2.13.0 "transformers>=4.56,<5" accelerate datasets numpy && pip install --no-deps trl==0.28.0
  python tests/parity/trl_golden.py

0.28.0 is the last release with `DPOTrainer.dpo_loss` as a method and with label smoothing on the sigmoid loss.
"""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import record  # noqa: E402
import torch  # noqa: E402
from trl.experimental.ppo import ppo_trainer  # noqa: E402
from trl.trainer import utils  # noqa: E402
from trl.trainer.dpo_config import FDivergenceType  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402

GOLDEN = record.Recorder("trl", "trl", "torch", "transformers")


def tensor(value, requires_grad: bool = False):
  return torch.tensor(np.asarray(value, np.float64), requires_grad=requires_grad)


def dpo(inputs: dict, *, loss_type: str, beta: float, label_smoothing: float):
  """Per-pair losses and the gradients of their mean."""
  trainer = SimpleNamespace(
    accelerator=SimpleNamespace(device="cpu"),
    beta=beta,
    label_smoothing=label_smoothing,
    reference_free=False,
    f_divergence_type=FDivergenceType.REVERSE_KL,
    f_divergence_params=None,
  )
  x = {key: tensor(value, not key.startswith("ref")) for key, value in inputs.items()}
  loss, rewards_w, rewards_l = DPOTrainer.dpo_loss(
    trainer, x["logps_w"], x["logps_l"], x["ref_logps_w"], x["ref_logps_l"], loss_type
  )
  loss.mean().backward()
  outputs = dict(
    mean_loss=loss.mean().detach(), losses=loss.detach(), rewards_w=rewards_w, rewards_l=rewards_l
  )
  return outputs, {key: x[key].grad for key in ("logps_w", "logps_l")}


def record_dpo():
  by_hand = dict(
    logps_w=np.array([-1.0]),
    logps_l=np.array([-3.0]),
    ref_logps_w=np.array([-2.0]),
    ref_logps_l=np.array([-2.5]),
  )
  # TRL divides by the response's length before it calls `dpo_loss` with "ipo".
  lengths = np.array([2, 4, 8, 16, 4, 8])
  averaged = {key: record.grid(value / lengths) for key, value in record.pairs().items()}
  plain = dict(label_smoothing=0.0)
  variants = {
    "by hand": (by_hand, dict(loss_type="sigmoid", beta=0.1, **plain), None),
    "sigmoid": (record.pairs(), dict(loss_type="sigmoid", beta=0.1, **plain), None),
    "sigmoid, large margins": (
      record.pairs(seed=14, scale=60.0),
      dict(loss_type="sigmoid", beta=0.5, **plain),
      None,
    ),
    "cDPO": (record.pairs(), dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.2), None),
    "IPO": (
      averaged,
      dict(loss_type="ipo", beta=0.1, **plain),
      "log-probabilities averaged over the response, as TRL's trainer passes them",
    ),
    "IPO on summed log-probabilities": (
      record.pairs(),
      dict(loss_type="ipo", beta=0.5, **plain),
      None,
    ),
    "hinge, both sides": (record.pairs(), dict(loss_type="hinge", beta=0.1, **plain), None),
  }
  for name, (inputs, settings, note) in variants.items():
    outputs, gradients = dpo(inputs, **settings)
    GOLDEN.case(
      "dpo",
      name,
      "trl.DPOTrainer.dpo_loss",
      inputs,
      outputs,
      settings=settings,
      gradients=gradients,
      **(dict(note=note) if note else {}),
    )


def record_reward_loss():
  inputs = record.scores()
  rewards = tensor(np.concatenate([inputs["chosen"], inputs["rejected"]])[:, None], True)
  trainer = SimpleNamespace(
    model=SimpleNamespace(training=False),
    args=SimpleNamespace(center_rewards_coefficient=None),
    accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
    _metrics=defaultdict(lambda: defaultdict(list)),
    _total_train_tokens=0,
  )
  model = lambda **inputs: SimpleNamespace(logits=rewards)
  loss = RewardTrainer.compute_loss(trainer, model, {})
  loss.backward()
  chosen, rejected = rewards.grad[:, 0].chunk(2)
  GOLDEN.case(
    "bradley_terry",
    "pairwise",
    "trl.RewardTrainer.compute_loss",
    inputs,
    dict(mean_loss=loss.detach()),
    gradients=dict(chosen=chosen, rejected=rejected),
  )


def record_statistics():
  inputs = dict(values=record.trajectories()["rewards"], mask=np.asarray(record.MASK, np.float64))
  x = {key: tensor(value) for key, value in inputs.items()}
  module = "trl.experimental.ppo.ppo_trainer"
  GOLDEN.case(
    "masked_statistics",
    "biased variance",
    f"{module}.masked_var",
    inputs,
    dict(
      mean=ppo_trainer.masked_mean(**x),
      variance=ppo_trainer.masked_var(**x, unbiased=False),
    ),
    settings=dict(variance="biased"),
  )
  for shift_mean in (True, False):
    GOLDEN.case(
      "whiten",
      f"unbiased variance, shift_mean {shift_mean}",
      f"{module}.masked_whiten",
      inputs,
      dict(whitened=ppo_trainer.masked_whiten(**x, shift_mean=shift_mean) * x["mask"]),
      settings=dict(variance="unbiased", shift_mean=shift_mean),
    )


def record_logps():
  inputs = record.predictions()
  logits = tensor(inputs["logits"], True)
  tokens = torch.tensor(inputs["tokens"])
  logps = utils.selective_log_softmax(logits[:, :-1], tokens[:, 1:])
  logps.mean().backward()
  GOLDEN.case(
    "token_logps",
    "log-probabilities and entropy",
    "trl.trainer.utils.selective_log_softmax, entropy_from_logits",
    dict(logits=inputs["logits"], tokens=inputs["tokens"]),
    dict(logps=logps.detach(), entropy=utils.entropy_from_logits(logits[:, :-1]).detach()),
    settings=dict(temperature=1.0),
    gradients=dict(logits=logits.grad),
  )


if __name__ == "__main__":
  record_dpo()
  record_reward_loss()
  record_statistics()
  record_logps()
  GOLDEN.write()
