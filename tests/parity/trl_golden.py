"""Golden numbers from TRL: the DPO family, KTO, BCO, reward-model losses, statistics, token log-probabilities.

  pip install torch==2.13.0 "transformers>=4.56,<5" accelerate datasets numpy && pip install --no-deps trl==0.28.0
  python tests/parity/trl_golden.py

0.28.0 is the last release with `DPOTrainer.dpo_loss` as a method and with label smoothing on the sigmoid loss;
`trl_1_16_golden.py` records what a later one changed. BCO, last in 1.13.0, has the same `bco_loss` there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import record  # noqa: E402
import torch  # noqa: E402
from trl.experimental.bco import BCOTrainer  # noqa: E402
from trl.experimental.kto import KTOTrainer  # noqa: E402
from trl.experimental.ppo import ppo_trainer  # noqa: E402
from trl.trainer import utils  # noqa: E402
from trl.trainer.dpo_config import FDivergenceType  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402

GOLDEN = record.Recorder("trl", "trl", "torch", "transformers")


def tensor(value, requires_grad: bool = False):
  return torch.tensor(np.asarray(value, np.float64), requires_grad=requires_grad)


# DPO's f-divergences, by our name for them.
DIVERGENCES = {
  "reverse_kl": FDivergenceType.REVERSE_KL,
  "jensen_shannon": FDivergenceType.JS_DIVERGENCE,
  "alpha": FDivergenceType.ALPHA_DIVERGENCE,
}


def running_mean():
  """TRL's running mean of rewards, on one process."""
  return utils.RunningMoments(SimpleNamespace(use_distributed=False))


def dpo(
  inputs: dict,
  *,
  loss_type: str,
  beta: float,
  label_smoothing: float = 0.0,
  divergence: str = "reverse_kl",
  divergence_alpha: float = 1.0,
  discopop_tau: float = 0.05,
  running=None,
):
  """Per-pair losses and the gradients of their mean."""
  trainer = SimpleNamespace(
    accelerator=SimpleNamespace(device="cpu"),
    args=SimpleNamespace(discopop_tau=discopop_tau),
    beta=beta,
    label_smoothing=label_smoothing,
    reference_free=False,
    f_divergence_type=DIVERGENCES[divergence],
    f_divergence_params=dict(alpha_divergence_coef=divergence_alpha),
    running=running,
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
  for loss_type, label_smoothing, note in (
    ("robust", 0.0, None),
    ("robust", 0.2, None),
    (
      "exo_pair",
      1e-3,
      "TRL puts 1e-3 where label_smoothing is 0, as log 0 would follow; 1e-3 is what was passed here",
    ),
    ("exo_pair", 0.2, None),
    (
      "nca_pair",
      0.0,
      "−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l), r = β (log π − log π_ref), as arXiv:2402.05369 for two answers",
    ),
    (
      "sppo_hard",
      0.0,
      "(a_w − 1/(2β))² + (a_l + 1/(2β))², a = log π − log π_ref: TRL's β is 1/η of arXiv:2405.00675, eq. 4.7",
    ),
    ("aot", 0.0, "the log-ratios of policy and reference are sorted over the batch, then paired"),
    ("aot", 0.2, None),
    ("aot_unpaired", 0.0, "chosen and rejected log-ratios are sorted over the batch, then paired"),
    ("aot_unpaired", 0.2, None),
    (
      "apo_zero",
      0.0,
      "1 − σ(r_w) + σ(r_l): arXiv:2408.06266, eq. 7, without the constant, has −σ(r_w) + σ(r_l)",
    ),
    (
      "apo_down",
      0.0,
      "σ(r_w) + 1 − σ(r_w − r_l): arXiv:2408.06266, eq. 8, without the constant, has σ(r_w) − σ(r_w − r_l)",
    ),
  ):
    name = loss_type if not label_smoothing else f"{loss_type}, label smoothing {label_smoothing}"
    settings = dict(loss_type=loss_type, beta=0.1, label_smoothing=label_smoothing)
    variants[name] = (record.pairs(), settings, note)
  for tau in (0.05, 0.5):
    settings = dict(loss_type="discopop", beta=0.1, discopop_tau=tau, **plain)
    variants[f"discopop, tau {tau}"] = (record.pairs(), settings, None)
  f_dpo = "TRL 0.28's parametrisation is that of arXiv:2309.16240"
  near = record.pairs(scale=1.5)
  for loss_type in ("sigmoid", "hinge", "ipo"):
    settings = dict(loss_type=loss_type, beta=0.5, divergence="jensen_shannon", **plain)
    note = f"f'(u) = log(2u / (1 + u)), u = π / π_ref; {f_dpo}"
    variants[f"{loss_type}, Jensen–Shannon"] = (near, settings, note)
  for alpha in (0.5, 0.25, 0.75):
    settings = dict(loss_type="sigmoid", beta=0.5, divergence="alpha", divergence_alpha=alpha)
    note = (
      f"f'(u) = (1 − u^−α) / α, u = π / π_ref; {f_dpo}; 1.16.0 has (t^(α' − 1) − 1) / (α' − 1), "
      f"α' = 1 − α; α → 0 is reverse KL, 1 is forward KL"
    )
    variants[f"sigmoid, alpha divergence {alpha}"] = (near, settings | plain, note)
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
  record_bco_pair()


def record_bco_pair():
  settings = dict(loss_type="bco_pair", beta=0.1)
  for name, earlier in (("fresh", ()), ("not fresh", (24, 34))):
    running = running_mean()
    for seed in earlier:
      dpo(record.pairs(seed), running=running, **settings)
    outputs, gradients = dpo(record.pairs(), running=running, **settings)
    GOLDEN.case(
      "dpo",
      f"bco_pair, running mean {name}",
      "trl.DPOTrainer.dpo_loss",
      record.pairs(),
      outputs,
      settings=dict(settings, delta=float(running.mean), label_smoothing=0.0),
      gradients=gradients,
      note=(
        f"delta is the mean of {1 + len(earlier)} batch means of both sides' rewards, this batch's "
        "included, and no gradient flows through it; TRL 1.16.0 has no delta"
      ),
    )


def rows(inputs: dict, *arrays) -> dict:
  """Desirable and undesirable rows apart, as TRL's unpaired losses take them."""
  chosen = inputs["labels"] == 1
  return {name: (inputs[name][chosen], inputs[name][~chosen]) for name in arrays}


def in_order(labels, chosen_then_rejected):
  """Losses that TRL concatenates, chosen rows first, back in the order of the batch."""
  labels = np.asarray(labels)
  losses = np.empty(len(labels))
  losses[labels == 1], losses[labels == 0] = np.split(
    chosen_then_rejected.detach().numpy(), [labels.sum()]
  )
  return losses


def record_kto():
  for name, drift, settings in (
    ("KTO", 1.5, dict(loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0)),
    ("KTO, weighted", 1.5, dict(loss_type="kto", desirable_weight=1.25, undesirable_weight=0.75)),
    (
      "KTO, baseline clamped at 0",
      -3.0,
      dict(loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0),
    ),
    (
      "APO-zero, unpaired",
      1.5,
      dict(loss_type="apo_zero_unpaired", desirable_weight=1.0, undesirable_weight=1.25),
    ),
  ):
    settings = dict(beta=0.1, **settings)
    inputs = record.judgements(drift=drift)
    x = {key: tensor(inputs[key], key == "logps") for key in inputs}
    sides = rows(x, "logps", "ref_logps")
    trainer = SimpleNamespace(
      accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
      calculate_KL=settings["loss_type"] == "kto",
      **settings,
    )
    losses, _, _, kl = KTOTrainer.kto_loss(
      trainer, *sides["logps"], x["kl_logps"], *sides["ref_logps"], x["kl_ref_logps"]
    )
    losses.mean().backward()
    GOLDEN.case(
      "kto",
      name,
      "trl.experimental.kto.KTOTrainer.kto_loss",
      inputs,
      dict(
        mean_loss=losses.mean().detach(),
        losses=in_order(inputs["labels"], losses),
        kl=kl.reshape(()),
      ),
      settings=settings,
      gradients=dict(logps=x["logps"].grad),
      note=(
        "kl is the mean of kl_logps − kl_ref_logps, at least 0, without gradient; the mean is over all rows"
        if settings["loss_type"] == "kto"
        else "no baseline: kl is 0 and the mismatched pairs are not looked at"
      ),
    )


def record_bco():
  for name, earlier in (("fresh", ()), ("not fresh", (26, 36))):
    beta = 0.1
    trainer = SimpleNamespace(
      accelerator=SimpleNamespace(device="cpu"),
      beta=beta,
      running=running_mean(),
      match_underlying_distribution=False,
    )
    for seed in (*earlier, 16):
      inputs = {key: record.judgements(seed)[key] for key in ("logps", "ref_logps", "labels")}
      x = {key: tensor(inputs[key], key == "logps") for key in inputs}
      sides = rows(x, "logps", "ref_logps")
      losses, *_, delta = BCOTrainer.bco_loss(
        trainer, *sides["logps"], *sides["ref_logps"], None, None
      )
    losses.mean().backward()
    GOLDEN.case(
      "bco",
      f"running mean {name}",
      "trl.experimental.bco.BCOTrainer.bco_loss",
      inputs,
      dict(mean_loss=losses.mean().detach(), losses=in_order(inputs["labels"], losses)),
      settings=dict(beta=beta, delta=float(delta)),
      gradients=dict(logps=x["logps"].grad),
      note=(
        f"delta is the mean reward of all rows of {1 + len(earlier)} batches, this one included, without "
        "gradient; arXiv:2404.04656 takes half the sum of the two sides' means, which differs where "
        "there are not as many desirable rows as undesirable ones"
      ),
    )


def record_reward_loss():
  margin = record.grid([0.0, 0.5, 1.0, 2.0, 0.25, 3.0])
  for name, inputs, settings in (
    ("pairwise", record.scores(), {}),
    ("margin", dict(record.scores(), margin=margin), dict(margin=True)),
    ("centering penalty", record.scores(), dict(centering=0.01)),
    (
      "margin and centering penalty",
      dict(record.scores(), margin=margin),
      dict(margin=True, centering=0.125),
    ),
  ):
    rewards = tensor(np.concatenate([inputs["chosen"], inputs["rejected"]])[:, None], True)
    trainer = SimpleNamespace(
      model=SimpleNamespace(training=False),
      args=SimpleNamespace(center_rewards_coefficient=settings.get("centering")),
      accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
      _metrics=defaultdict(lambda: defaultdict(list)),
      _total_train_tokens=0,
    )
    model = lambda rewards=rewards, **inputs: SimpleNamespace(logits=rewards)
    columns = {"margin": tensor(margin)} if "margin" in settings else {}
    loss = RewardTrainer.compute_loss(trainer, model, columns)
    loss.backward()
    chosen, rejected = rewards.grad[:, 0].chunk(2)
    GOLDEN.case(
      "bradley_terry",
      name,
      "trl.RewardTrainer.compute_loss",
      inputs,
      dict(mean_loss=loss.detach()),
      settings=settings,
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
  record_kto()
  record_bco()
  record_reward_loss()
  record_statistics()
  record_logps()
  GOLDEN.write()
