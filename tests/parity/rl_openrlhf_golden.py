"""Golden numbers from OpenRLHF: policy loss and its options, group advantages, REINFORCE++, KL estimators, aggregation.

  pip install torch==2.13.0 "transformers>=4.56,<5" peft aiohttp numpy && pip install --no-deps openrlhf==0.11.2
  python tests/parity/rl_openrlhf_golden.py

Written to `rl_openrlhf.json`, beside `openrlhf.json`. Packages that it imports and the recorded functions do not
use are replaced by empty modules; the experience maker's method is called with what it reads of itself.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import record
import torch

record.Absent("deepspeed", "ray", "torchdata", "pylatexenc", "vllm", "flash_attn")

from openrlhf.models import loss as losses  # noqa: E402
from openrlhf.models import utils  # noqa: E402
from openrlhf.trainer.ppo_utils import length_penalty  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402

GOLDEN = record.Recorder("openrlhf", "openrlhf", "torch", file="rl_openrlhf")
POLICY = "openrlhf.models.loss.PolicyLoss"
MAKER = "openrlhf.trainer.ppo_utils.experience_maker.RemoteExperienceMaker"


def tensors(inputs: dict, *differentiated: str) -> dict:
  return {
    key: torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=key in differentiated)
    for key, value in inputs.items()
  }


def aggregation(token_level: bool) -> str:
  return "token" if token_level else "sequence"


def record_policy_loss():
  """PPO's loss, an advantage per token."""
  cases = {
    "token mean": dict(),
    "mean over sequences": dict(token_level_loss=False),
    "clip higher": dict(clip_eps_high=0.28),
    "dual clip 3": dict(dual_clip=3.0),
    "dual clip 1.5, clip higher, mean over sequences": dict(
      dual_clip=1.5, clip_eps_high=0.28, token_level_loss=False
    ),
  }
  for name, options in cases.items():
    step = record.group_step()
    inputs = {key: step[key] for key in ("logps", "old_logps", "mask")}
    inputs["advantages"] = record.policy_step(12)["advantages"]
    x = tensors(inputs, "logps")
    loss, clip_fraction, *_ = losses.PolicyLoss(**options)(
      x["logps"], x["old_logps"], x["advantages"], x["mask"]
    )
    loss.backward()
    GOLDEN.case(
      "ppo_policy",
      name,
      POLICY,
      inputs,
      dict(mean_loss=loss.detach(), clip_fraction=clip_fraction),
      settings=dict(
        clip_eps_low=0.2,
        clip_eps_high=options.get("clip_eps_high", 0.2),
        dual_clip=options.get("dual_clip"),
        aggregation=aggregation(options.get("token_level_loss", True)),
      ),
      gradients=dict(logps=x["logps"].grad),
      note="the log-ratio is clamped at ±20; the clipped fraction does not count the dual clip",
    )


def record_group_policy_loss():
  """An advantage per response, the KL estimate added as its actor does."""
  cases = {
    "GRPO": dict(),
    "GRPO, mean over sequences": dict(token_level_loss=False),
    "DAPO's clip": dict(clip_eps_high=0.28),
    "GRPO, dual clip 3": dict(dual_clip=3.0),
    "GSPO": dict(policy_loss_type="gspo"),
    "GSPO, its paper's clip": dict(policy_loss_type="gspo", clip_eps_low=3e-4, clip_eps_high=4e-4),
    "GSPO, dual clip 1.5": dict(policy_loss_type="gspo", dual_clip=1.5),
  }
  kls = {"": None, ", k2": "k2", ", k3": "k3"}
  for empty in (False, True):
    for name, options in cases.items():
      for suffix, estimator in kls.items():
        if estimator and options and name != "GRPO, mean over sequences":
          continue
        if empty and (estimator or "mean over" not in name):
          continue
        inputs = record.group_step(empty_row=empty)
        x = tensors(inputs, "logps")
        module = losses.PolicyLoss(**options)
        loss, *_ = module(x["logps"], x["old_logps"], x["advantages"][:, None], x["mask"])
        if estimator:
          kl = utils.compute_approx_kl(x["logps"], x["ref_logps"], kl_estimator=estimator)
          loss = loss + 0.0625 * losses.aggregate_loss(kl, x["mask"], module.token_level_loss)
        loss.backward()
        gspo = options.get("policy_loss_type") == "gspo"
        GOLDEN.case(
          "grpo",
          name + suffix + ", a response without tokens" * empty,
          POLICY + ", openrlhf.models.utils.compute_approx_kl" * bool(estimator),
          inputs,
          dict(mean_loss=loss.detach()),
          settings=dict(
            loss_type="clip",
            clip_eps_low=options.get("clip_eps_low", 0.2),
            clip_eps_high=options.get("clip_eps_high", 0.2),
            dual_clip=options.get("dual_clip"),
            kl_coef=0.0625 * bool(estimator),
            kl_estimator=estimator or "k3",
            ratio="sequence" if gspo else "token",
            aggregation=aggregation(module.token_level_loss),
          ),
          gradients=dict(logps=x["logps"].grad),
          note=(
            "responses without tokens are left out of the mean over sequences, where TRL counts them; a response's mean "
            "divides by its length + 1e-8; the ratio of GSPO is differentiated through every token"
          ),
          **(dict(precision="float32") if estimator else {}),  # the estimator casts
        )


def record_sampler_correction():
  """Weights of tokens that another policy sampled, as factors of the loss."""
  cases = [
    ("token", "clip", "ratio", (0.5, 1.5)),
    ("token", "mask", "ratio", (0.5, 1.5)),
    ("seq", "mask", "ratio", (0.75, 1.25)),
    ("token", "mask", "binary_kl", (0.0, 0.03125)),
    ("seq", "mask", "binary_kl", (0.0, 0.03125)),
    ("token", "mask", "tv", (0.0, 0.0625)),
    ("seq", "mask", "tv", (0.0, 0.0625)),
  ]
  inputs = record.group_step()
  inputs["sampler_logps"] = np.minimum(inputs.pop("ref_logps"), -0.015625)
  for level, mode, gating, (low, high) in cases:
    x = tensors(inputs, "logps")
    loss, *_, dropped = losses.PolicyLoss(
      is_correction_level=level,
      is_correction_mode=mode,
      is_correction_gating=gating,
      is_correction_threshold=(low, high),
    )(x["logps"], x["old_logps"], x["advantages"][:, None], x["mask"], x["sampler_logps"])
    loss.backward()
    GOLDEN.case(
      "sampler_correction",
      f"{level}, {mode}, by {gating}, between {low} and {high}",
      POLICY,
      inputs,
      dict(mean_loss=loss.detach(), filtered=dropped),
      settings=dict(
        level=dict(token="token", seq="sequence")[level],
        mode=dict(clip="truncate", mask="mask")[mode],
        statistic=gating,
        low=low,
        high=high,
        loss_type="clip",
        clip_eps_low=0.2,
        clip_eps_high=0.2,
        dual_clip=None,
        aggregation="token",
      ),
      gradients=dict(logps=x["logps"].grad),
      note=(
        "a token's loss times π_old / π_sampler where the statistic is inside the band, 0 outside (truncate: the ratio "
        "clamped to it); a sequence is judged by the mean log-ratio or mean divergence, where TRL judges by the sum"
      ),
    )


def record_aggregation():
  inputs = dict(losses=record.trajectories()["rewards"], mask=np.asarray(record.MASK, np.float64))
  empty = inputs | dict(mask=record.group_step(empty_row=True)["mask"])
  for name, given in (("ragged rows", inputs), ("a row without tokens", empty)):
    for token_level in (True, False):
      x = tensors(given, "losses")
      loss = losses.aggregate_loss(x["losses"], x["mask"], token_level)
      loss.backward()
      GOLDEN.case(
        "aggregate",
        f"{aggregation(token_level)}, {name}",
        "openrlhf.models.loss.aggregate_loss",
        given,
        dict(mean_loss=loss.detach()),
        settings=dict(aggregation=aggregation(token_level)),
        gradients=dict(losses=x["losses"].grad),
        note="rows without tokens are left out of the mean over sequences",
      )


def record_kl():
  near = record.token_pairs() | dict(old_logps=record.policy_step()["old_logps"])
  for name, inputs in (("near", near), ("wide", record.wide_token_pairs())):
    for estimator in ("k1", "k2", "k3"):
      for unbiased in (False, True):
        for old in (False, True):
          if old and not (unbiased and name == "near"):
            continue
          given = {key: value for key, value in inputs.items() if old or key != "old_logps"}
          x = tensors(given, "logps")
          kl = utils.compute_approx_kl(
            x["logps"],
            x["ref_logps"],
            x.get("old_logps"),
            kl_estimator=estimator,
            unbiased_gradient=unbiased,
          )
          kl.mean().backward()
          GOLDEN.case(
            "kl_penalty",
            f"{estimator}, {name}"
            + ", reverse-KL gradient" * unbiased
            + ", weighted by the ratio to the old policy" * old,
            "openrlhf.models.utils.compute_approx_kl",
            given,
            dict(kl=kl.detach()),
            settings=dict(
              estimator=estimator,
              clamp=10.0,
              log_ratio_clamp=None,
              unbiased_gradient=unbiased,
              importance=old,
              importance_cap=10.0,
            ),
            gradients=dict(logps=x["logps"].grad),
            note=(
              "every estimator is clamped to ±10, where its own gradient is 0; k3's log-ratio is bounded below at −10; with "
              "the unbiased gradient it is w (logps − ref_logps) whatever the estimator, w = min(π / π_old, 10)"
            ),
            precision="float32",  # the function casts
          )


def advantages(rewards, x, *, estimator, gamma=1.0, kl_coef=0.0, no_std_norm=False):
  """The method on one batch of N prompts with G responses."""
  arguments = SimpleNamespace(
    rollout=SimpleNamespace(n_samples_per_prompt=rewards.shape[1]),
    reward=SimpleNamespace(
      clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None
    ),
    algo=SimpleNamespace(
      advantage=SimpleNamespace(
        estimator=estimator, gamma=gamma, lambd=1.0, no_std_norm=no_std_norm
      )
    ),
  )
  flat = torch.tensor(rewards.reshape(-1))
  experience = SimpleNamespace(
    rewards=flat, index=list(range(len(flat))), kl=x["kl"], action_mask=x["mask"], info={}
  )
  self = SimpleNamespace(
    strategy=SimpleNamespace(args=arguments),
    advantage_estimator=estimator,
    kl_ctl=SimpleNamespace(value=kl_coef),
  )
  self.get_cumulative_returns = RemoteExperienceMaker.get_cumulative_returns.__get__(self)
  RemoteExperienceMaker.compute_advantages_and_returns(self, [experience])
  return experience


def record_group_advantages():
  rewards = record.group_rewards()
  methods = dict(
    rloo=dict(method="rloo", scale="none"),
    group_norm=dict(method="grpo", scale="group", variance="unbiased", eps=1e-9),
    dr_grpo=dict(method="dr_grpo", scale="none"),
    flash_reinforce=dict(method="batch_mean", scale="none"),
  )
  for estimator, settings in methods.items():
    one = torch.ones(rewards.size, 1, dtype=torch.float64)
    found = advantages(rewards, dict(kl=0 * one, mask=one), estimator=estimator)
    GOLDEN.case(
      "group_advantages",
      estimator,
      f"{MAKER}.compute_advantages_and_returns",
      dict(rewards=rewards),
      dict(advantages=found.advantages.reshape(rewards.shape)),
      settings=settings,
      note="group_norm divides by the standard deviation, over n − 1, + 1e-9",
    )


def record_reinforce():
  rewards = record.group_rewards()[::2, :2]  # two prompts, two responses each
  inputs = dict(rewards=rewards) | record.token_pairs()
  inputs |= dict(mask=np.asarray(record.MASK, np.float64))
  cases = {
    "REINFORCE++": dict(estimator="reinforce"),
    "REINFORCE++, gamma 0.9": dict(estimator="reinforce", gamma=0.9),
    "REINFORCE++, the mean alone": dict(estimator="reinforce", no_std_norm=True),
    "REINFORCE++ with the group's baseline": dict(estimator="reinforce_baseline"),
  }
  for name, options in cases.items():
    for kl_coef in (0.0, 0.0625):
      rows = slice(None)
      if options.get("gamma", 1.0) != 1.0:
        # Its returns discount over tokens that are not the policy's: rows without gaps only.
        rows = slice(0, 2)
      given = {key: value[rows] for key, value in inputs.items()}
      if rows.stop:
        given["rewards"] = rewards.reshape(-1)[:2].reshape(1, 2)
      x = tensors(given)
      x["kl"] = utils.compute_approx_kl(x["logps"], x["ref_logps"]).double()
      found = advantages(given["rewards"], x, kl_coef=kl_coef, **options)
      mask = x["mask"]
      GOLDEN.case(
        "reinforce_pp",
        name + ", k1 in the reward" * bool(kl_coef),
        f"{MAKER}.compute_advantages_and_returns",
        given,
        dict(advantages=found.advantages * mask, returns=found.returns * mask),
        settings=dict(
          gamma=options.get("gamma", 1.0),
          kl_coef=kl_coef,
          kl_estimator="k1",
          baseline="group" if "baseline" in options["estimator"] else "none",
          whiten="mean" if options.get("no_std_norm") else "mean and std",
          variance="biased",
        ),
        note=(
          "the reward is on the last token, returns are summed to the end, then whitened over the batch's tokens with the "
          "variance over n (verl: n − 1, and + 1e-8 in place of a floor of 1e-8); gamma discounts across gaps in the mask"
        ),
        precision="float32",  # the mean is taken in it
      )


def record_length_penalties():
  lengths = np.array([1, 12, 13, 14, 17, 20, 21])
  experience = SimpleNamespace(
    rewards=torch.zeros(len(lengths), dtype=torch.float64), response_length=torch.tensor(lengths)
  )
  length_penalty.apply_overlong_penalty([experience], 20, 8, 0.75)
  GOLDEN.case(
    "overlong_penalty",
    "before, inside and after the buffer",
    "openrlhf.trainer.ppo_utils.length_penalty.apply_overlong_penalty",
    dict(lengths=lengths),
    dict(penalty=experience.rewards),
    settings=dict(max_length=20, buffer=8, factor=0.75),
    note="arXiv:2503.14476, eq. 13, times a factor",
  )
  rewards = record.grid([0.75, -1.5, 3.0, -0.25])
  truncated = np.array([0.0, 1, 1, 0])
  for coefficient in (0.5, 0.0, -0.5):
    experience = SimpleNamespace(rewards=torch.tensor(rewards), truncated=torch.tensor(truncated))
    length_penalty.apply_stop_properly_penalty([experience], coefficient)
    GOLDEN.case(
      "truncation_penalty",
      f"coefficient {coefficient}",
      "openrlhf.trainer.ppo_utils.length_penalty.apply_stop_properly_penalty",
      dict(rewards=rewards, truncated=truncated),
      dict(rewards=experience.rewards),
      settings=dict(coefficient=coefficient),
      note=(
        "a truncated response's reward times the coefficient, or, where that is negative, the coefficient itself; scaling "
        "makes a negative reward better"
      ),
    )


if __name__ == "__main__":
  record_policy_loss()
  record_group_policy_loss()
  record_sampler_correction()
  record_aggregation()
  record_kl()
  record_group_advantages()
  record_reinforce()
  record_length_penalties()
  GOLDEN.write()
