"""Golden numbers from TRL 1.12, the last with PPO: rewards of a token, advantages, losses, whitening; XPO, Nash-MD.

  pip install torch==2.13.0 && pip install transformers accelerate datasets numpy && pip install --no-deps trl==1.12.0
  python tests/parity/rl_trl_1_12_golden.py

Recorded with transformers 5.24.0 and written to `rl_trl_1_12.json`. All of PPO but the whitening stands in the middle of
`PPOTrainer.train`, which asks for models, data and a tokenizer: `record.excerpt` executes those statements as they
stand, on our arrays. The losses of XPO and Nash-MD are methods, called with the settings they read. What a client of
theirs for a generation server imports is replaced by empty modules.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np  # noqa: E402
import record  # noqa: E402
import torch  # noqa: E402

record.Absent("requests", "urllib3")

from trl.experimental.nash_md import NashMDTrainer  # noqa: E402
from trl.experimental.ppo import ppo_trainer  # noqa: E402
from trl.experimental.xpo import XPOTrainer  # noqa: E402

GOLDEN = record.Recorder("trl", "trl", "torch", "transformers", file="rl_trl_1_12")
TRAIN = "trl.experimental.ppo.PPOTrainer.train"

SHAPE = record.excerpt(ppo_trainer.PPOTrainer.train, "response_idxs = ", "# 6. compute advantages")
ESTIMATE = record.excerpt(ppo_trainer.PPOTrainer.train, "lastgaelam = 0", "empty_cache()")
LOSS = record.excerpt(
  ppo_trainer.PPOTrainer.train, "vpredclipped = torch.clamp(", "accelerator.backward("
)

# Tokens with the EOS; the first response fills the row and has none.
LENGTHS = np.array([7, 4, 6, 1])


def tensor(value, requires_grad: bool = False):
  return torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=requires_grad)


def masks(lengths):
  """The response's mask and, one token longer, the values' and rewards'."""
  steps = np.arange(record.T)
  return tuple((steps < np.asarray(lengths)[:, None] + more).astype(np.float64) for more in (0, 1))


def shaped(x: dict, *, kl_coef, kl_estimator, whiten_rewards=False):
  """Rewards and masks after TRL's steps 3 to 5; TRL counts lengths from 0."""
  lengths = torch.as_tensor(x["lengths"]) - 1
  arguments = SimpleNamespace(
    kl_coef=kl_coef, kl_estimator=kl_estimator, whiten_rewards=whiten_rewards
  )
  return SHAPE(
    responses=torch.zeros(len(lengths), record.T),
    sequence_lengths=lengths,
    logprobs=tensor(x["logps"]),
    ref_logprobs=tensor(x["ref_logps"]),
    values=tensor(x.get("values", np.zeros((len(lengths), record.T)))),
    scores=tensor(x["scores"]),
    args=arguments,
  )


def rollout() -> dict:
  return record.token_pairs() | dict(
    scores=record.grid([0.75, -1.5, 3.0, 2.25]),
    lengths=LENGTHS,
    values=record.trajectories()["values"],
  )


def record_rewards():
  inputs = rollout()
  del inputs["values"]
  for estimator in ("k1", "k3"):
    for whiten_rewards in (False, True):
      settings = dict(
        kl_coef=0.0625,
        kl_estimator=estimator,
        reward_at="eos+1",
        whiten_rewards=whiten_rewards,
        whiten_shift_mean=False,
        variance="unbiased",
      )
      found = shaped(inputs, kl_coef=0.0625, kl_estimator=estimator, whiten_rewards=whiten_rewards)
      GOLDEN.case(
        "ppo_rewards",
        f"{estimator}, score at EOS+1{', whitened' * whiten_rewards}",
        TRAIN,
        inputs,
        dict(rewards=found.rewards),
        settings=settings,
        note=(
          "`lengths` counts the EOS. The score falls on the first padding token, or on the last token where the response "
          "has no EOS; the KL penalty is 0 from the first padding token on. Whitening is over tokens and that first "
          "padding token, variance divided by n − 1, the mean kept; OpenRLHF and verl place the score on the EOS"
        ),
      )


def record_advantages():
  inputs = rollout()
  response, longer = masks(LENGTHS)
  for gamma, lambda_ in ((1.0, 0.95), (0.9, 0.7)):
    step = shaped(inputs, kl_coef=0.0625, kl_estimator="k1")
    found = ESTIMATE(**vars(step) | dict(args=SimpleNamespace(gamma=gamma, lam=lambda_)))
    settings = dict(
      kl_coef=0.0625,
      kl_estimator="k1",
      reward_at="eos+1",
      gamma=gamma,
      lambda_=lambda_,
      whiten_advantages=True,
      variance="unbiased",
    )
    GOLDEN.case(
      "ppo_advantages",
      f"from scores to whitened advantages, gamma {gamma}, lambda {lambda_}",
      TRAIN,
      inputs,
      dict(advantages=found.advantages, returns=found.returns * tensor(longer)),
      settings=settings,
      note=(
        "the value of the first padding token enters as an ordinary one, so the last real token bootstraps from it; "
        "advantages are whitened over the response's tokens, variance divided by n − 1; returns include that padding "
        "token's, which the value loss also fits"
      ),
    )
    mask = dict(mask=longer)
    GOLDEN.case(
      "gae",
      f"rewards and values up to EOS+1, gamma {gamma}, lambda {lambda_}",
      TRAIN,
      dict(rewards=step.rewards, values=step.values, bootstrap=np.zeros(record.B)) | mask,
      dict(
        advantages=(found.returns - step.values) * tensor(longer),
        returns=found.returns * tensor(longer),
      ),
      settings=dict(gamma=gamma, lambda_=lambda_),
      note="advantages are its returns minus the values; rewards are multiples of 1/1024",
    )


def loss(x: dict, *, clip_eps=0.2, value_clip_eps=0.2, value_coef=0.1):
  """TRL's joint loss; what a case has nothing to say about is zero."""
  zeros = tensor(np.zeros((record.B, record.T)))
  mask = torch.as_tensor(np.asarray(x["mask"]) == 0)
  return LOSS(
    vpred=x.get("values", zeros),
    mb_values=x.get("old_values", zeros),
    mb_return=x.get("returns", zeros),
    new_logprobs=x.get("logps", zeros),
    mb_logprobs=x.get("old_logps", zeros),
    mb_advantage=x.get("advantages", zeros),
    padding_mask=mask,
    padding_mask_p1=mask,
    micro_batch_inds=slice(None),
    accelerator=None,
    args=SimpleNamespace(cliprange=clip_eps, cliprange_value=value_clip_eps, vf_coef=value_coef),
  )


def record_policy_loss():
  for seed, clip_eps in ((2, 0.2), (12, 0.05)):
    inputs = record.policy_step(seed)
    x = {key: tensor(value, key == "logps") for key, value in inputs.items()}
    found = loss(x, clip_eps=clip_eps)
    found.pg_loss.backward()
    clipped = ppo_trainer.masked_mean((found.pg_losses2 > found.pg_losses).double(), x["mask"])
    GOLDEN.case(
      "ppo_policy",
      f"token mean, clipped on both sides, eps {clip_eps}",
      TRAIN,
      inputs,
      dict(mean_loss=found.pg_loss.detach(), clip_fraction=clipped),
      settings=dict(
        clip_eps_low=clip_eps, clip_eps_high=clip_eps, dual_clip=None, aggregation="token"
      ),
      gradients=dict(logps=x["logps"].grad),
      note="the clipped fraction is the trainer's own expression, which follows the optimizer's step",
    )


def record_value_loss():
  for seed, clip_eps in ((3, 0.2), (13, 0.45)):
    inputs = record.value_step(seed)
    x = {key: tensor(value, key == "values") for key, value in inputs.items()}
    found = loss(x, value_clip_eps=clip_eps)
    found.vf_loss.backward()
    GOLDEN.case(
      "ppo_value",
      f"token mean, clipped on both sides, eps {clip_eps}",
      TRAIN,
      inputs,
      dict(mean_loss=found.vf_loss.detach(), clip_fraction=found.vf_clipfrac),
      settings=dict(clip_eps=clip_eps, aggregation="token"),
      gradients=dict(values=x["values"].grad),
      note="half the mean of the larger square; TRL's mask for it reaches one token past the EOS",
    )


def record_joint_loss():
  inputs = record.policy_step() | record.value_step()
  x = {key: tensor(value, key in ("logps", "values")) for key, value in inputs.items()}
  found = loss(x)
  found.loss.backward()
  GOLDEN.case(
    "ppo_loss",
    "policy and value loss together, value coefficient 0.1",
    TRAIN,
    inputs,
    dict(mean_loss=found.loss.detach()),
    settings=dict(
      clip_eps_low=0.2,
      clip_eps_high=0.2,
      dual_clip=None,
      value_clip_eps=0.2,
      value_coef=0.1,
      aggregation="token",
    ),
    gradients=dict(logps=x["logps"].grad, values=x["values"].grad),
  )


def record_whitening():
  inputs = dict(values=record.trajectories()["rewards"], mask=np.asarray(record.MASK, np.float64))
  x = {key: tensor(value) for key, value in inputs.items()}
  for shift_mean in (True, False):
    whitened = ppo_trainer.masked_whiten(x["values"], x["mask"], shift_mean=shift_mean)
    GOLDEN.case(
      "whiten",
      "ragged rows" + ", the mean kept" * (not shift_mean),
      "trl.experimental.ppo.ppo_trainer.masked_whiten",
      inputs,
      dict(whitened=whitened * x["mask"]),
      settings=dict(variance="unbiased", shift_mean=shift_mean, eps=1e-8),
      note="the variance is over n − 1 tokens; OpenRLHF's over n",
    )


def record_xpo():
  pairs = record.token_preferences()
  inputs = {
    f"{name}_{side}": pairs[f"{name}_{theirs}"]
    for side, theirs in (("own", "w"), ("other", "l"))
    for name in ("logps", "ref_logps", "mask")
  } | dict(own_is_chosen=np.array([1.0, 0, 1, 0]))
  for loss_type in ("sigmoid", "ipo"):
    x = {key: tensor(value, key.startswith("logps")) for key, value in inputs.items()}
    self = SimpleNamespace(beta=0.125, alpha=0.0625, args=SimpleNamespace(loss_type=loss_type))
    loss, preference, optimism = XPOTrainer._compute_losses(
      self,
      x["logps_own"] * x["mask_own"],
      x["logps_other"] * x["mask_other"],
      x["ref_logps_other"] * x["mask_other"],
      x["ref_logps_own"] * x["mask_own"],
      x["own_is_chosen"].bool(),
    )
    loss.backward()
    GOLDEN.case(
      "xpo",
      loss_type,
      "trl.experimental.xpo.XPOTrainer._compute_losses",
      inputs,
      dict(mean_loss=loss.detach(), dpo=preference.detach().mean(), xpo=optimism.detach().mean()),
      settings=dict(loss_type=loss_type, beta=0.125, alpha=0.0625),
      gradients=dict(logps_own=x["logps_own"].grad, logps_other=x["logps_other"].grad),
      note=(
        "`own` was sampled from the policy, `other` from the reference: the DPO loss of the pair plus alpha log π(other), "
        "arXiv:2405.21046"
      ),
    )


def record_nash_md():
  inputs = record.token_pairs() | dict(mask=np.asarray(record.MASK, np.float64))
  inputs |= dict(probability=record.grid([0.75, 0.25, 0.5, 0.9375]))
  x = {key: tensor(value, key == "logps") for key, value in inputs.items()}
  self = SimpleNamespace(beta=0.125)
  loss, score, kl = NashMDTrainer._compute_losses(
    self, x["logps"] * x["mask"], x["ref_logps"] * x["mask"], x["probability"]
  )
  loss.backward()
  GOLDEN.case(
    "nash_md",
    "policy gradient of the preference and of the KL",
    "trl.experimental.nash_md.NashMDTrainer._compute_losses",
    inputs,
    dict(mean_loss=loss.detach(), score=score.detach(), kl=kl.detach()),
    settings=dict(beta=0.125),
    gradients=dict(logps=x["logps"].grad),
    note=(
      "`probability` is that of the policy's response beating the mixture's. The KL term is Σ sg(log-ratio) log π token by "
      "token: a token answers for its own log-ratio, not for those after it, which the gradient of a sequence's KL has too "
      "(arXiv:2312.00886)"
    ),
  )


if __name__ == "__main__":
  record_rewards()
  record_advantages()
  record_policy_loss()
  record_value_loss()
  record_joint_loss()
  record_whitening()
  record_xpo()
  record_nash_md()
  GOLDEN.write()
