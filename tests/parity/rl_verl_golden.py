"""Golden numbers from verl: GAE, outcome advantages, policy losses, aggregation, KL penalties, value loss.

  pip install torch==2.13.0 "transformers>=4.56,<5" numpy && pip install --no-deps verl==0.9.1
  python tests/parity/rl_verl_golden.py

Written to `rl_verl.json`. Packages that it imports and the recorded functions do not use are replaced by empty modules.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import record
import torch

record.Absent(
  *(
    "ray",
    "tensordict",
    "omegaconf",
    "codetiming",
    "hydra",
    "vllm",
    "pyarrow",
    "wandb",
    "torchdata",
  ),
  *("dill", "pylatexenc", "cachetools", "numba", "liger_kernel", "nvtx", "pybind11", "orjson"),
  *("transfer_queue", "tensorboard"),
)

from verl.trainer.ppo import core_algos, rollout_corr_helper  # noqa: E402
from verl.workers.config import ActorConfig  # noqa: E402

GOLDEN = record.Recorder("verl", "verl", "torch", file="rl_verl")
MODULE = "verl.trainer.ppo.core_algos"
LENGTH = 10  # of the longest response that could be

# verl's name for a way to add up the tokens, and ours.
AGGREGATIONS = {
  "token-mean": dict(aggregation="token"),
  "token-sum": dict(aggregation="token_sum"),
  "seq-mean-token-sum": dict(aggregation="sum"),
  "seq-mean-token-sum-norm": dict(aggregation="fixed_length", length=LENGTH),
  "seq-mean-token-mean": dict(aggregation="sequence"),
}


def tensors(inputs: dict, *differentiated: str) -> dict:
  return {
    key: torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=key in differentiated)
    for key, value in inputs.items()
  }


def record_gae():
  inputs = record.trajectories() | dict(bootstrap=np.zeros(record.B))
  for gamma, lambda_ in ((1.0, 0.95), (0.9, 0.7)):
    x = tensors(inputs)
    whitened, returns = core_algos.compute_gae_advantage_return(
      x["rewards"], x["values"], x["mask"], gamma, lambda_
    )
    for whiten in (False, True):
      advantages = whitened if whiten else returns - x["values"]
      GOLDEN.case(
        "gae",
        f"ragged rows and gaps, gamma {gamma}, lambda {lambda_}{', whitened' * whiten}",
        f"{MODULE}.compute_gae_advantage_return",
        inputs,
        dict(advantages=advantages * x["mask"], returns=returns * x["mask"]),
        settings=dict(gamma=gamma, lambda_=lambda_, whiten=whiten, variance="unbiased"),
        note=(
          "gaps in the mask are skipped, without a discount; whitening is over the batch's tokens, variance over n − 1; "
          "without it, advantages are its returns minus the values"
        ),
      )


def per_response(rewards, lengths):
  """Rewards on the last token of N x G responses, their mask and their prompts."""
  flat, lengths = rewards.reshape(-1), lengths.reshape(-1)
  mask = (np.arange(record.T) < lengths[:, None]).astype(np.float64)
  token_rewards = np.zeros_like(mask)
  token_rewards[np.arange(len(flat)), lengths - 1] = flat
  return dict(
    token_level_rewards=torch.tensor(token_rewards),
    response_mask=torch.tensor(mask),
    index=np.repeat(np.arange(len(rewards)), rewards.shape[1]),
  )


def record_group_advantages():
  rewards = record.group_rewards()
  lengths = np.array([[7, 4, 6, 1], [2, 5, 3, 7], [1, 2, 4, 6]])
  unit = dict(variance="unbiased", eps=1e-6)
  no_std = dict(norm_adv_by_std_in_grpo=False)
  cases = {
    "GRPO": ("grpo_outcome", dict(method="grpo", scale="group", **unit), {}),
    "Dr. GRPO": ("grpo_outcome", dict(method="dr_grpo", scale="none"), no_std),
    "GRPO, vectorized": ("grpo_vectorized_outcome", dict(method="grpo", scale="group", **unit), {}),
    "RLOO": ("rloo_outcome", dict(method="rloo", scale="none"), {}),
    "RLOO, vectorized": ("rloo_vectorized_outcome", dict(method="rloo", scale="none"), {}),
    "OPO": ("opo_outcome", dict(method="opo", scale="none"), {}),
    "GPG": ("gpg_outcome", dict(method="gpg", scale="none"), {}),
    "Pass@k": (
      "grpo_passk_outcome",
      dict(method="pass_at_k", scale="group", **unit),
      dict(config=dict(norm_adv_by_std_in_grpo=True)),
    ),
    "Pass@k, unscaled": (
      "grpo_passk_outcome",
      dict(method="pass_at_k", scale="none"),
      dict(config=dict(norm_adv_by_std_in_grpo=False)),
    ),
  }
  notes = dict(
    grpo="divides by the standard deviation, over n − 1, + 1e-6",
    opo="the baseline weighs rewards by the lengths of their responses (arXiv:2505.23585)",
    gpg="(r − mean) times batch size / number of rewards that are not 0; the group's part of arXiv:2504.02546",
    pass_at_k="the best of a group alone has an advantage, its lead over the second (arXiv:2503.19595)",
  )
  for name, (function, settings, options) in cases.items():
    advantages, _ = getattr(core_algos, f"compute_{function}_advantage")(
      **per_response(rewards, lengths), **options
    )
    inputs = dict(rewards=rewards)
    if settings["method"] == "opo":
      inputs |= dict(lengths=lengths)
    GOLDEN.case(
      "group_advantages",
      name,
      f"{MODULE}.compute_{function}_advantage",
      inputs,
      dict(advantages=advantages[:, 0].reshape(rewards.shape)),
      settings=settings,
      **(dict(note=notes[settings["method"]]) if settings["method"] in notes else {}),
    )


def record_reinforce():
  x = record.trajectories()
  inputs = dict(token_rewards=x["rewards"], mask=x["mask"])
  for gamma in (1.0, 0.9):
    given = tensors(inputs)
    advantages, returns = core_algos.compute_reinforce_plus_plus_outcome_advantage(
      given["token_rewards"], given["mask"], config=SimpleNamespace(gamma=gamma)
    )
    GOLDEN.case(
      "reinforce_pp",
      f"REINFORCE++, gamma {gamma}",
      f"{MODULE}.compute_reinforce_plus_plus_outcome_advantage",
      inputs,
      dict(advantages=advantages, returns=returns),
      settings=dict(
        gamma=gamma, baseline="none", outcome=False, whiten="mean and std", variance="unbiased"
      ),
      note=(
        "rewards of tokens, with any KL already in them; gaps in the mask are skipped without a discount; the variance is "
        "over n − 1 (OpenRLHF: n)"
      ),
    )
  rewards = record.group_rewards()[::2, :2]
  masks = np.asarray(record.MASK, np.float64)
  last = record.T - 1 - np.argmax(masks[:, ::-1], axis=1)
  placed = np.zeros_like(masks)
  placed[np.arange(record.B), last] = rewards.reshape(-1)
  advantages, returns = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
    torch.tensor(placed), torch.tensor(masks), index=np.array([0, 0, 1, 1])
  )
  GOLDEN.case(
    "reinforce_pp",
    "REINFORCE++ with the group's baseline",
    f"{MODULE}.compute_reinforce_plus_plus_baseline_outcome_advantage",
    dict(rewards=rewards, mask=masks),
    dict(advantages=advantages),
    settings=dict(
      gamma=1.0, baseline="group", outcome=True, whiten="mean and std", variance="unbiased"
    ),
    note="every token of a response has its reward minus the group's mean, whitened over the batch's tokens",
  )


def record_remax():
  x = record.trajectories()
  inputs = dict(token_rewards=x["rewards"], baselines=x["bootstrap"], mask=x["mask"])
  given = tensors(inputs)
  advantages, returns = core_algos.compute_remax_outcome_advantage(
    given["token_rewards"], given["baselines"], given["mask"]
  )
  GOLDEN.case(
    "remax",
    "the greedy response's reward as the baseline",
    f"{MODULE}.compute_remax_outcome_advantage",
    inputs,
    dict(advantages=advantages * given["mask"], returns=returns * given["mask"]),
    settings=dict(gamma=1.0),
  )


def actor(**settings):
  return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **settings)


def policy_case(kind, name, function, inputs, mode, settings, options, note):
  x = tensors(inputs, "logps")
  advantages = x["advantages"]
  if advantages.ndim == 1:
    advantages = advantages[:, None].expand_as(x["logps"])
  config = actor(**options)
  if mode == "seq-mean-token-sum-norm":
    config.global_batch_info["loss_scale_factor"] = LENGTH
  loss, metrics = getattr(core_algos, f"compute_policy_loss_{function}")(
    x["old_logps"], x["logps"], advantages, x["mask"], mode, config
  )
  loss.backward()
  found = dict(mean_loss=loss.detach())
  if kind == "ppo_policy":
    found["clip_fraction"] = metrics["actor/pg_clipfrac"]
  GOLDEN.case(
    kind,
    name,
    f"{MODULE}.compute_policy_loss_{function}",
    inputs,
    found,
    settings=settings | AGGREGATIONS[mode],
    gradients=dict(logps=x["logps"].grad),
    note=note,
  )


def record_policy_loss():
  step = record.group_step()
  inputs = {key: step[key] for key in ("logps", "old_logps", "mask")}
  inputs["advantages"] = record.policy_step(12)["advantages"]
  for mode in AGGREGATIONS:
    for high, dual_clip in ((0.2, 3.0), (0.28, 1.5)):
      policy_case(
        "ppo_policy",
        f"{mode}, clip {high} above, dual clip {dual_clip}",
        "vanilla",
        inputs,
        mode,
        dict(clip_eps_low=0.2, clip_eps_high=high, dual_clip=dual_clip),
        dict(clip_ratio_low=0.2, clip_ratio_high=high, clip_ratio_c=dual_clip),
        "the dual clip is always on, 3 by default; the log-ratio is clamped at ±20; the clipped fraction does not count "
        "the dual clip",
      )


def record_group_losses():
  inputs = record.group_step()
  clip = dict(clip_eps_low=0.2, clip_eps_high=0.2, kl_coef=0.0)
  narrow = dict(clip_eps_low=3e-4, clip_eps_high=4e-4, kl_coef=0.0)
  gspo = (
    "the ratio of a token is sg(s) π / sg(π), s the exponential of the mean log-ratio: with one advantage per response and "
    "the mean over sequences of the mean over tokens, GSPO's own gradient; there is no dual clip"
  )
  cases = [
    ("GRPO", "vanilla", "token-mean", clip | dict(loss_type="clip", dual_clip=3.0), {}, "token"),
    (
      "GRPO, mean over sequences",
      "vanilla",
      "seq-mean-token-mean",
      clip | dict(loss_type="clip", dual_clip=3.0),
      {},
      "token",
    ),
    (
      "Dr. GRPO",
      "vanilla",
      "seq-mean-token-sum-norm",
      clip | dict(loss_type="clip", dual_clip=3.0),
      {},
      "token",
    ),
    ("GSPO", "gspo", "seq-mean-token-mean", clip | dict(loss_type="clip"), {}, "sequence_token"),
    ("GSPO, token mean", "gspo", "token-mean", clip | dict(loss_type="clip"), {}, "sequence_token"),
    (
      "GSPO, its paper's clip",
      "gspo",
      "seq-mean-token-mean",
      narrow | dict(loss_type="clip"),
      dict(clip_ratio_low=3e-4, clip_ratio_high=4e-4),
      "sequence_token",
    ),
    ("CISPO", "cispo", "token-mean", clip | dict(loss_type="cispo"), {}, "token"),
    (
      "CISPO, capped above alone",
      "cispo",
      "token-mean",
      dict(loss_type="cispo", clip_eps_low=1.0, clip_eps_high=0.5, kl_coef=0.0),
      dict(clip_ratio_low=1.0, clip_ratio_high=0.5),
      "token",
    ),
    (
      "SAPO",
      "sapo",
      "seq-mean-token-mean",
      dict(loss_type="sapo", temperature_pos=1.0, temperature_neg=1.0625, kl_coef=0.0),
      dict(tau_pos=1.0, tau_neg=1.0625),
      "token",
    ),
    (
      "GMPO",
      "geo_mean",
      "seq-mean-token-mean",
      dict(loss_type="gmpo", clip_eps_low=0.375, clip_eps_high=0.375, kl_coef=0.0),
      dict(clip_ratio_low=0.375, clip_ratio_high=0.375),
      "sequence",
    ),
    ("GPG", "gpg", "token-mean", dict(loss_type="gpg", kl_coef=0.0), {}, "token"),
  ]
  notes = dict(
    vanilla="the dual clip is always on, 3 by default",
    gspo=gspo,
    cispo="−sg(clip(ratio, 1 − clip_eps_low, 1 + clip_eps_high)) A log π: bounded below too, which TRL's is not",
    sapo="4 / τ σ(τ (ratio − 1)) in place of the ratio, τ by the advantage's sign",
    geo_mean=(
      "−A exp(mean of clipped log-ratios), clipped in log space on the side that the advantage's sign asks for "
      "(arXiv:2507.20673); the mean over rows, also those without tokens"
    ),
    gpg="−A log π",
  )
  for name, function, mode, settings, options, ratio in cases:
    given = {key: value for key, value in inputs.items() if key != "ref_logps"}
    settings = dict(dual_clip=None, ratio=ratio) | settings
    policy_case("grpo", name, function, given, mode, settings, options, notes[function])
  for mode in ("token-mean", "seq-mean-token-mean"):
    record_kl_loss(inputs, mode)


def record_kl_loss(inputs, mode):
  """The policy loss and the KL estimate, added as the actor does."""
  for estimator in ("k1", "k2", "k3", "abs", "k3+"):
    x = tensors(inputs, "logps")
    advantages = x["advantages"][:, None].expand_as(x["logps"])
    loss, _ = core_algos.compute_policy_loss_vanilla(
      x["old_logps"], x["logps"], advantages, x["mask"], mode, actor()
    )
    kl = core_algos.kl_penalty(x["logps"], x["ref_logps"], estimator)
    loss = loss + 0.0625 * core_algos.agg_loss(kl, x["mask"], mode)
    loss.backward()
    straight_through = estimator.endswith("+")
    GOLDEN.case(
      "grpo",
      f"{mode}, {estimator} in the loss",
      f"{MODULE}.compute_policy_loss_vanilla, kl_penalty, agg_loss",
      inputs,
      dict(mean_loss=loss.detach()),
      settings=dict(
        loss_type="clip",
        clip_eps_low=0.2,
        clip_eps_high=0.2,
        dual_clip=3.0,
        kl_coef=0.0625,
        kl_estimator=estimator.rstrip("+"),
        kl_unbiased_gradient=straight_through,
        ratio="token",
        **AGGREGATIONS[mode],
      ),
      gradients=dict(logps=x["logps"].grad),
      note="the dual clip is always on" + "; k3's value with k2's gradient" * straight_through,
    )


def record_aggregation():
  inputs = dict(losses=record.trajectories()["rewards"], mask=np.asarray(record.MASK, np.float64))
  empty = inputs | dict(mask=record.group_step(empty_row=True)["mask"])
  for name, given in (("ragged rows", inputs), ("a row without tokens", empty)):
    for mode, settings in AGGREGATIONS.items():
      x = tensors(given, "losses")
      scale = dict(loss_scale_factor=LENGTH) if "length" in settings else {}
      loss = core_algos.agg_loss(x["losses"], x["mask"], mode, **scale)
      loss.backward()
      GOLDEN.case(
        "aggregate",
        f"{mode}, {name}",
        f"{MODULE}.agg_loss",
        given,
        dict(mean_loss=loss.detach()),
        settings=settings,
        gradients=dict(losses=x["losses"].grad),
        note="rows without tokens are left out of a mean over sequences",
      )


def record_kl():
  for name, inputs in (("near", record.token_pairs()), ("wide", record.wide_token_pairs())):
    for penalty in ("k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"):
      x = tensors(inputs, "logps")
      kl = core_algos.kl_penalty(x["logps"], x["ref_logps"], penalty)
      kl.mean().backward()
      GOLDEN.case(
        "kl_penalty",
        f"{penalty}, {name}",
        f"{MODULE}.kl_penalty",
        inputs,
        dict(kl=kl.detach()),
        settings=dict(
          estimator=penalty.rstrip("+"),
          clamp=10.0 if "k3" in penalty else None,
          log_ratio_clamp=20.0 if "k3" in penalty else None,
          unbiased_gradient=penalty.endswith("+"),
          importance=False,
        ),
        gradients=dict(logps=x["logps"].grad),
        note=(
          "k3 alone is clamped, its log-ratio at ±20 and its value at 10, where its own gradient is 0; with + the gradient "
          "is k2's, logps − ref_logps, whatever the estimator"
        ),
      )


def record_value_loss():
  for seed, clip_eps in ((3, 0.2), (13, 0.45)):
    for mode in ("token-mean", "seq-mean-token-mean"):
      inputs = record.value_step(seed)
      x = tensors(inputs, "values")
      loss, clip_fraction = core_algos.compute_value_loss(
        x["values"], x["returns"], x["old_values"], x["mask"], clip_eps, mode
      )
      loss.backward()
      GOLDEN.case(
        "ppo_value",
        f"{mode}, eps {clip_eps}",
        f"{MODULE}.compute_value_loss",
        inputs,
        dict(mean_loss=loss.detach(), clip_fraction=clip_fraction),
        settings=dict(clip_eps=clip_eps, **AGGREGATIONS[mode]),
        gradients=dict(values=x["values"].grad),
        note="half the aggregate of the larger square",
      )


def record_sampler_weights():
  step = record.group_step()
  inputs = dict(old_logps=step["old_logps"], sampler_logps=step["ref_logps"], mask=step["mask"])
  x = tensors(inputs)
  for level in ("token", "sequence"):
    for mode, low, high in (("truncate", None, 1.5), ("mask", 0.5, 1.5)):
      threshold = high if low is None else f"{low}_{high}"
      weights, _ = rollout_corr_helper.compute_rollout_correction_weights(
        x["old_logps"] - x["sampler_logps"], x["mask"], level, threshold
      )
      GOLDEN.case(
        "sampler_weights",
        f"{level}, {mode}, between {low} and {high}",
        "verl.trainer.ppo.rollout_corr_helper.compute_rollout_correction_weights",
        inputs,
        dict(weights=weights),
        settings=dict(level=level, mode=mode, low=low, high=high),
        note="the ratio of a whole response is the exponential of the summed log-ratio, which is clamped at ±20",
      )


if __name__ == "__main__":
  record_gae()
  record_group_advantages()
  record_reinforce()
  record_remax()
  record_policy_loss()
  record_group_losses()
  record_aggregation()
  record_kl()
  record_value_loss()
  record_sampler_weights()
  GOLDEN.write()
