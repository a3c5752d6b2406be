"""Golden numbers from OpenRLHF: PPO, value, SFT, DPO and reward losses, KL estimators, GAE, the KL controller.

  pip install torch==2.13.0 "transformers>=4.56,<5" peft aiohttp numpy && pip install --no-deps openrlhf==0.11.2
  python tests/parity/openrlhf_golden.py

DeepSpeed, Ray and others are replaced by empty modules: the package imports them, the recorded
functions do not use them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import record
import torch

record.Absent("deepspeed", "ray", "torchdata", "pylatexenc", "vllm")
FLASH = record.Absent("flash_attn")

from openrlhf.models import loss as losses  # noqa: E402
from openrlhf.models import utils  # noqa: E402
from openrlhf.trainer.ppo_utils.kl_controller import AdaptiveKLController  # noqa: E402

FLASH.withdraw()  # without it log-probabilities are plain torch

GOLDEN = record.Recorder("openrlhf", "openrlhf", "torch")


def tensors(inputs: dict, *differentiated: str) -> dict:
  """float64 tensors, tracking gradients for the named ones."""
  return {
    key: torch.tensor(value, dtype=torch.float64, requires_grad=key in differentiated)
    for key, value in inputs.items()
  }


def grads(loss, x: dict) -> dict:
  loss.backward()
  return {key: value.grad for key, value in x.items() if value.requires_grad}


def record_policy_loss():
  for seed, clip_eps in ((2, 0.2), (12, 0.05)):
    inputs = record.policy_step(seed)
    x = tensors(inputs, "logps")
    loss, clip_fraction, *_ = losses.PolicyLoss(clip_eps_low=clip_eps, clip_eps_high=clip_eps)(
      x["logps"], x["old_logps"], x["advantages"], x["mask"]
    )
    gradients = grads(loss, x)
    GOLDEN.case(
      "clipped_surrogate",
      f"token mean, clipped on both sides, eps {clip_eps}",
      "openrlhf.models.loss.PolicyLoss",
      inputs,
      dict(mean_loss=loss.detach(), clip_fraction=clip_fraction),
      settings=dict(clip_eps=clip_eps),
      gradients=gradients,
    )


def record_value_loss():
  for seed, clip_eps in ((3, 0.2), (13, 0.45)):
    inputs = record.value_step(seed)
    x = tensors(inputs, "values")
    loss = losses.ValueLoss(clip_eps=clip_eps)(
      x["values"], x["old_values"], x["returns"], x["mask"]
    )
    gradients = grads(loss, x)
    GOLDEN.case(
      "clipped_value_loss",
      f"token mean, clipped on both sides, eps {clip_eps}",
      "openrlhf.models.loss.ValueLoss",
      inputs,
      dict(mean_loss=loss.detach()),
      settings=dict(clip_eps=clip_eps),
      gradients=gradients,
    )


def record_dpo():
  variants = {
    "sigmoid": dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.0),
    "sigmoid, beta 0.5": dict(loss_type="sigmoid", beta=0.5, label_smoothing=0.0),
    "cDPO": dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.2),
    "IPO on summed log-probabilities": dict(loss_type="ipo", beta=0.1, label_smoothing=0.0),
  }
  for name, settings in variants.items():
    inputs = record.pairs()
    x = tensors(inputs, "logps_w", "logps_l")
    module = losses.DPOLoss(
      settings["beta"], settings["label_smoothing"], ipo=settings["loss_type"] == "ipo"
    )
    loss, rewards_w, rewards_l = module(
      x["logps_w"], x["logps_l"], x["ref_logps_w"], x["ref_logps_l"]
    )
    gradients = grads(loss, x)
    GOLDEN.case(
      "dpo",
      name,
      "openrlhf.models.loss.DPOLoss",
      inputs,
      dict(mean_loss=loss.detach(), rewards_w=rewards_w, rewards_l=rewards_l),
      settings=settings,
      gradients=gradients,
    )


def record_nll():
  """DPO with the chosen response's NLL, from token log-probabilities to the loss that the trainer adds up."""
  from openrlhf.trainer.dpo_trainer import DPOTrainer

  settings = dict(loss_type="sigmoid", beta=0.1, nll_coef=0.25)
  inputs = record.token_preferences()
  x = tensors(inputs, "logps_w", "logps_l")
  # A prompt of one token before every response.
  attention = {side: torch.nn.functional.pad(x[f"mask_{side}"], (1, 0), value=1) for side in "wl"}
  trainer = SimpleNamespace(
    strategy=SimpleNamespace(ring_attn_group=None), tokenizer=SimpleNamespace(pad_token_id=0)
  )
  trainer.concatenated_inputs = DPOTrainer.concatenated_inputs.__get__(trainer)
  trainer._get_batch_logps = DPOTrainer._get_batch_logps.__get__(trainer)

  def forward(logps_w, logps_l):
    model = lambda tokens, **options: (torch.cat([logps_w, logps_l]), {})
    w, l, _, nll = DPOTrainer.concatenated_forward(
      trainer,
      model,
      *(attention["w"], attention["w"], attention["l"], attention["l"]),
      [1] * len(logps_w),
    )
    return w, l, nll

  w, l, nll = forward(x["logps_w"], x["logps_l"])
  ref_w, ref_l, _ = forward(x["ref_logps_w"], x["ref_logps_l"])
  preference_loss, *_ = losses.DPOLoss(settings["beta"])(w, l, ref_w, ref_l)
  loss = preference_loss + nll * settings["nll_coef"]
  gradients = grads(loss, x)
  GOLDEN.case(
    "dpo_tokens",
    "NLL of the chosen response",
    "openrlhf.trainer.dpo_trainer.DPOTrainer.concatenated_forward, openrlhf.models.loss.DPOLoss",
    inputs,
    dict(mean_loss=loss.detach()),
    settings=settings,
    gradients=gradients,
    note=(
      "the NLL is the mean over a response's tokens, then over responses, as arXiv:2404.19733; TRL's is the mean over "
      "the batch's chosen tokens"
    ),
  )


def record_reward_loss():
  margin = record.grid([0.0, 0.5, 1.0, 2.0, 0.25, 3.0])
  variants = {
    ("bradley_terry", "pairwise"): (losses.PairWiseLoss, record.scores(), {}),
    ("bradley_terry", "margin"): (
      losses.PairWiseLoss,
      dict(record.scores(), margin=margin),
      dict(margin=True),
    ),
    ("log_exp", "pairwise"): (losses.LogExpLoss, record.scores(), {}),
  }
  notes = dict(
    log_exp=(
      "log(1 + exp(r_l − r_w)), as it stands in arXiv:2204.05862: equal to −log σ(r_w − r_l); the function ignores a "
      "margin and overflows where exp does"
    )
  )
  for (kind, name), (module, inputs, settings) in variants.items():
    x = tensors(inputs, "chosen", "rejected")
    loss = module()(*x.values())
    gradients = grads(loss, x)
    GOLDEN.case(
      kind,
      name,
      f"openrlhf.models.loss.{module.__name__}",
      inputs,
      dict(mean_loss=loss.detach()),
      settings=settings,
      gradients=gradients,
      **(dict(note=notes[kind]) if kind in notes else {}),
    )


def record_sft():
  inputs = record.token_pairs() | dict(mask=np.asarray(record.MASK, np.float64))
  del inputs["ref_logps"]
  x = tensors(inputs, "logps")
  loss = losses.SFTLoss()(x["logps"], x["mask"])
  gradients = grads(loss, x)
  GOLDEN.case(
    "sft",
    "token mean",
    "openrlhf.models.loss.SFTLoss",
    inputs,
    dict(mean_loss=loss.detach()),
    gradients=gradients,
  )


def record_logps():
  for temperature in (1.0, 0.7):
    inputs = record.predictions()
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor(inputs["tokens"])
    # A copy: the function divides its argument in place. logits[:, t] predicts tokens[:, t + 1].
    logps = utils.log_probs_from_logits(logits[:, :-1].clone(), tokens[:, 1:], temperature)
    logps.mean().backward()
    GOLDEN.case(
      "token_logps",
      f"temperature {temperature}",
      "openrlhf.models.utils.log_probs_from_logits",
      dict(logits=inputs["logits"], tokens=inputs["tokens"]),
      dict(logps=logps.detach()),
      settings=dict(temperature=temperature),
      gradients=dict(logits=logits.grad),
    )


def record_kl():
  inputs = record.token_pairs()
  for estimator in ("k1", "k2", "k3"):
    x = tensors(inputs, "logps")
    kl = utils.compute_approx_kl(x["logps"], x["ref_logps"], kl_estimator=estimator)
    gradients = grads(kl.mean(), x)
    GOLDEN.case(
      "kl",
      estimator,
      "openrlhf.models.utils.compute_approx_kl",
      inputs,
      dict(kl=kl.detach()),
      settings=dict(estimator=estimator),
      gradients=gradients,
      precision="float32",  # the function casts
    )


def record_gae():
  from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

  inputs = record.trajectories()
  # Its recursion knows padding on the right only, and no bootstrap.
  inputs = {key: value[:2] for key, value in inputs.items()} | dict(bootstrap=np.zeros(2))
  for gamma, lambda_ in ((1.0, 0.95), (0.95, 0.9)):
    x = tensors(inputs)
    advantages, _ = RemoteExperienceMaker.get_advantages_and_returns(
      None, x["values"], x["rewards"], x["mask"], gamma, lambda_
    )
    GOLDEN.case(
      "gae",
      f"right padding, gamma {gamma}, lambda {lambda_}",
      "openrlhf.trainer.ppo_utils.experience_maker.RemoteExperienceMaker.get_advantages_and_returns",
      inputs,
      dict(advantages=advantages * x["mask"]),
      settings=dict(gamma=gamma, lambda_=lambda_),
    )


def record_shaped_reward():
  inputs = record.token_pairs() | dict(mask=np.asarray(record.MASK, np.float64))
  inputs |= dict(scores=record.grid([0.75, -12.5, 3.0, 17.25]))
  x = tensors(inputs)
  kl = (x["logps"] - x["ref_logps"]) * x["mask"]
  shaped = utils.compute_reward(x["scores"], 0.05, kl, x["mask"], reward_clip_range=(-10, 10))
  GOLDEN.case(
    "shaped_reward",
    "score clipped at 10 on the last token, k1 penalty on every token",
    "openrlhf.models.utils.compute_reward",
    inputs,
    dict(rewards=shaped),
    settings=dict(kl_coef=0.05, reward_clip=10.0),
  )


def record_whitening():
  inputs = dict(
    values=record.trajectories()["rewards"][2:3], mask=np.asarray(record.MASK, np.float64)[2:3]
  )
  x = tensors(inputs)
  GOLDEN.case(
    "whiten",
    "one row, biased variance",
    "openrlhf.models.utils.masked_normalize",
    inputs,
    dict(whitened=utils.masked_normalize(x["values"], x["mask"])),
    settings=dict(variance="biased"),
  )


def record_controller():
  observed, coefficients = [2.0, 5.5, 6.0, 9.0, 40.0], []
  controller = AdaptiveKLController(0.15, target=6.0, horizon=10000)
  for kl in observed:
    controller.update(kl, 512)
    coefficients.append(float(controller.value))
  GOLDEN.case(
    "adaptive_kl",
    "five updates, the error clipped on both sides",
    "openrlhf.trainer.ppo_utils.kl_controller.AdaptiveKLController",
    dict(kl=observed),
    dict(coefficients=coefficients),
    settings=dict(initial=0.15, target=6.0, horizon=10000.0, episodes=512.0),
  )


if __name__ == "__main__":
  record_policy_loss()
  record_value_loss()
  record_dpo()
  record_nll()
  record_reward_loss()
  record_sft()
  record_logps()
  record_kl()
  record_gae()
  record_shaped_reward()
  record_whitening()
  record_controller()
  GOLDEN.write()
