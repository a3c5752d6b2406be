"""Golden numbers from TRL 1.16: GRPO and RLOO, advantages and losses, importance weights, the overlong penalty.

  pip install torch==2.13.0 && pip install transformers accelerate datasets numpy && pip install --no-deps trl==1.16.0
  python tests/parity/rl_trl_1_16_golden.py

Recorded with transformers 5.24.0 and written to `rl_trl_1_16.json`. The losses are `_compute_loss` itself, with the
method that asks a model for log-probabilities replaced by one that returns ours. Advantages and importance
weights stand in the middle of `_generate_and_score_completions`: `record.excerpt` executes those statements as
they stand.
"""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np  # noqa: E402
import record  # noqa: E402
import torch  # noqa: E402
from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.rloo_trainer import RLOOTrainer  # noqa: E402

GOLDEN = record.Recorder("trl", "trl", "torch", "transformers", file="rl_trl_1_16")
GRPO, RLOO = "trl.GRPOTrainer", "trl.RLOOTrainer"

ACCELERATOR = SimpleNamespace(
  gather=lambda x: x,
  reduce=lambda x, reduction: x,
  num_processes=1,
  process_index=0,
)

GROUP_ADVANTAGES = record.excerpt(
  GRPOTrainer._generate_and_score_completions,
  "unscorable_mask = ",
  "# Slice to keep only the local part",
)
LEAVE_ONE_OUT = record.excerpt(
  RLOOTrainer._generate_and_score_completions,
  "unscorable_mask = ",
  "# Slice to keep only the local part",
)
SAMPLER_WEIGHTS = record.excerpt(
  GRPOTrainer._generate_and_score_completions,
  "if self.use_vllm and self.vllm_importance_sampling_correction:",
  "# Compute the per-token log probabilities for the reference model",
)


def tensor(value, requires_grad: bool = False):
  return torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=requires_grad)


def record_group_advantages():
  rewards = record.group_rewards()
  for scale, std in (("group", "of its group"), ("batch", "of the batch"), ("none", "none")):
    self = SimpleNamespace(
      multi_objective_aggregation="sum_then_normalize",
      reward_weights=torch.ones(1),
      scale_rewards=scale,
    )
    found = GROUP_ADVANTAGES(
      self=self,
      rewards_per_func=tensor(rewards).reshape(-1, 1),
      num_generations=rewards.shape[1],
      device="cpu",
    )
    GOLDEN.case(
      "group_advantages",
      f"GRPO, scaled by the standard deviation: {std}",
      f"{GRPO}._generate_and_score_completions",
      dict(rewards=rewards),
      dict(advantages=found.advantages.reshape(rewards.shape)),
      settings=dict(
        method="dr_grpo" if scale == "none" else "grpo", scale=scale, variance="unbiased", eps=1e-4
      ),
      note="divides by the standard deviation + 1e-4; Tunix and verl add 1e-6, OpenRLHF 1e-9",
    )


def record_several_rewards():
  """Each reward normalized in its group, then summed, then normalized in the batch."""
  rewards = np.stack([record.group_rewards(), record.group_rewards(26)], axis=-1)
  weights = [1.0, 0.5]
  self = SimpleNamespace(
    multi_objective_aggregation="normalize_then_sum",
    reward_weights=tensor(weights),
    reward_funcs=weights,
  )
  found = GROUP_ADVANTAGES(
    self=self,
    rewards_per_func=tensor(rewards).reshape(-1, 2),
    num_generations=rewards.shape[1],
    device="cpu",
  )
  GOLDEN.case(
    "group_advantages",
    "GDPO, two rewards",
    f"{GRPO}._generate_and_score_completions",
    dict(rewards=rewards),
    dict(advantages=found.advantages.reshape(rewards.shape[:2])),
    settings=dict(
      method="gdpo", scale="group, then batch", weights=weights, variance="unbiased", eps=1e-4
    ),
    note="rewards are [N, G, K]; arXiv:2601.05242",
  )


def record_overlong_penalty():
  lengths = np.array([1, 12, 13, 14, 17, 20, 21])
  penalty = get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
  GOLDEN.case(
    "overlong_penalty",
    "before, inside and after the buffer",
    "trl.rewards.get_soft_overlong_punishment",
    dict(lengths=lengths),
    dict(penalty=penalty([[0] * length for length in lengths])),
    settings=dict(max_length=20, buffer=8, factor=1.0),
    note="arXiv:2503.14476, eq. 13",
  )


def record_leave_one_out():
  inputs = dict(rewards=record.group_rewards()[:2, :2]) | record.token_pairs()
  inputs |= dict(mask=np.asarray(record.MASK, np.float64))
  pairs = (("plain", record.group_rewards()), ("KL in the reward", inputs["rewards"]))
  for name, rewards in pairs:
    for normalize in (False, True):
      beta = 0.125 * (name != "plain")
      self = SimpleNamespace(
        reward_weights=torch.ones(1),
        reward_clip_range=None,
        beta=beta,
        normalize_advantages=normalize,
      )
      found = LEAVE_ONE_OUT(
        self=self,
        rewards_per_func=tensor(rewards).reshape(-1, 1),
        num_generations=rewards.shape[1],
        device="cpu",
        gather=lambda x: x,
        old_per_token_logps=tensor(inputs["logps"]),
        ref_per_token_logps=tensor(inputs["ref_logps"]),
        completion_mask=tensor(inputs["mask"]),
      )
      GOLDEN.case(
        "group_advantages",
        f"RLOO, {name}{', normalized over the batch' * normalize}",
        f"{RLOO}._generate_and_score_completions",
        inputs if beta else dict(rewards=rewards),
        dict(advantages=found.advantages.reshape(rewards.shape)),
        settings=dict(
          method="rloo",
          scale="none",
          kl_coef=beta,
          kl_estimator="k1",
          normalize=normalize,
          **(dict(variance="unbiased", eps=1e-4) if normalize else {}),
        ),
        note=(
          "k1 summed over a response's tokens is subtracted from its reward before the baseline; normalizing subtracts "
          "the batch's mean and divides by its standard deviation, over n − 1, + 1e-4"
        ),
      )


def grpo_loss(
  x: dict,
  *,
  loss_type: str,
  clip_eps_low=0.2,
  clip_eps_high=0.2,
  dual_clip=None,
  kl_coef=0.0,
  kl_importance=False,
  ratio="token",
  length=10,
  temperature_pos=1.0,
  temperature_neg=1.0625,
  off_policy_threshold=None,
  gamma=None,
):
  mask = x["mask"]
  prompt = torch.ones(len(mask), 1)
  k_pos, lambda_pos, k_neg, lambda_neg = gamma or (2.0, 3.0, 3.0, 2.0)
  self = SimpleNamespace(
    _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
      x["logps"],
      torch.zeros_like(mask),
      None,
    ),
    aux_loss_enabled=False,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=off_policy_threshold,
    get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
    get_gamma_weights=GRPOTrainer.get_gamma_weights,
    importance_sampling_level=ratio,
    beta=kl_coef,
    loss_type=loss_type,
    epsilon_low=clip_eps_low,
    epsilon_high=clip_eps_high,
    use_vllm=False,
    max_completion_length=length,
    current_gradient_accumulation_steps=1,
    _entropy_bonus_enabled=False,
    model=SimpleNamespace(training=True),
    accelerator=ACCELERATOR,
    _metrics=defaultdict(lambda: defaultdict(list)),
    args=SimpleNamespace(
      use_bias_correction_kl=kl_importance,
      delta=dual_clip,
      sapo_temperature_pos=temperature_pos,
      sapo_temperature_neg=temperature_neg,
      steps_per_generation=1,
      vespo_k_pos=k_pos,
      vespo_lambda_pos=lambda_pos,
      vespo_k_neg=k_neg,
      vespo_lambda_neg=lambda_neg,
    ),
  )
  inputs = dict(
    prompt_ids=prompt,
    prompt_mask=prompt,
    completion_ids=mask,
    completion_mask=mask,
    advantages=x["advantages"],
    old_per_token_logps=x["old_logps"],
    ref_per_token_logps=x["ref_logps"],
    num_items_in_batch=mask.sum(),
  )
  return GRPOTrainer._compute_loss(self, None, inputs)


# TRL's name for a loss: what it does to the ratio, and how it adds up the tokens.
LOSSES = dict(
  grpo=("clip", "sequence"),
  bnpo=("clip", "token"),
  dapo=("clip", "token"),
  dr_grpo=("clip", "fixed_length"),
  luspo=("clip", "sum"),
  cispo=("cispo", "token"),
  sapo=("sapo", "sequence"),
  vespo=("vespo", "token"),
)
LOSS_NOTES = dict(
  grpo="the mean over every response, where OpenRLHF, Tunix and verl leave responses without tokens out",
  bnpo="the token mean of a micro-batch; TRL's dapo divides by the tokens of the accumulated batch",
  dapo="given the batch's own token count",
  dr_grpo="divides by the number of responses times the longest allowed length",
  luspo="token losses summed within a response, so that longer ones weigh more",
  cispo=(
    "−sg(min(ratio, cap)) A log π: TRL's epsilon_high is the cap itself, recorded here as 1 + clip_eps_high, and none "
    "below, recorded as clip_eps_low 1; verl's epsilons are those of PPO"
  ),
  sapo="4 / τ σ(τ (ratio − 1)) in place of the ratio, τ by the advantage's sign",
  vespo=(
    "−sg(φ(w)) A log π with w the ratio of whole sequences (a sum, not a mean) and φ(w) = w^k exp(λ (1 − w)), k and λ by "
    "the advantage's sign"
  ),
)


def grpo_case(name, inputs, *, loss_type, note=None, **settings):
  x = {key: tensor(value, key == "logps") for key, value in inputs.items()}
  theirs = dict(clip_eps_high=1.0 + settings["clip_eps_high"]) if loss_type == "cispo" else {}
  loss = grpo_loss(x, loss_type=loss_type, **settings | theirs)
  loss.backward()
  surrogate, aggregation = LOSSES[loss_type]
  full = dict(
    loss_type=surrogate,
    clip_eps_low=0.2,
    clip_eps_high=0.2,
    dual_clip=None,
    kl_coef=0.0,
    kl_estimator="k3",
    kl_importance=False,
    ratio="token",
    aggregation=aggregation,
  )
  if surrogate == "vespo":
    k_pos, lambda_pos, k_neg, lambda_neg = (2.0, 3.0, 3.0, 2.0)
    full |= dict(k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg)
  if surrogate == "sapo":
    full |= dict(temperature_pos=1.0, temperature_neg=1.0625)
  if aggregation == "fixed_length":
    full |= dict(length=10)
  GOLDEN.case(
    "grpo",
    name,
    f"{GRPO}._compute_loss",
    inputs,
    dict(mean_loss=loss.detach()),
    settings=full | settings,
    gradients=dict(logps=x["logps"].grad),
    note="; ".join(filter(None, (LOSS_NOTES[loss_type], note))),
  )


def record_grpo():
  inputs = record.group_step()
  higher = dict(clip_eps_low=0.2, clip_eps_high=0.28)
  for loss_type in ("grpo", "bnpo", "dapo", "dr_grpo"):
    settings = higher if loss_type in ("bnpo", "dapo") else {}
    grpo_case(loss_type, inputs, loss_type=loss_type, **settings)
  grpo_case(
    "grpo, on policy",
    inputs | dict(old_logps=inputs["logps"]),
    loss_type="grpo",
    kl_coef=0.0625,
    note="at ratio 1 the gradient is REINFORCE's, and the KL term's that of k3 in the loss",
  )
  for loss_type in ("grpo", "dapo", "dr_grpo"):
    grpo_case(f"{loss_type}, KL", inputs, loss_type=loss_type, kl_coef=0.0625, **higher)
  grpo_case(
    "grpo, KL weighted by the ratio",
    inputs,
    loss_type="grpo",
    kl_coef=0.0625,
    kl_importance=True,
    note="k3 times the unclipped ratio, through which the gradient flows too",
  )
  for dual_clip in (3.0, 1.5):
    grpo_case(
      f"grpo, two-sided clip at {dual_clip}",
      inputs,
      loss_type="grpo",
      dual_clip=dual_clip,
      note=(
        "the ratio is capped at delta before the minimum: the dual clip of arXiv:1912.09729 as long as delta is above 1 + "
        "clip_eps_high"
      ),
    )
  capped = dict(clip_eps_low=1.0, clip_eps_high=0.5)
  grpo_case("cispo", inputs, loss_type="cispo", **capped)
  grpo_case("cispo, KL", inputs, loss_type="cispo", kl_coef=0.0625, **capped)
  grpo_case("sapo", inputs, loss_type="sapo")
  grpo_case("sapo, sharper", inputs, loss_type="sapo", temperature_pos=2.0, temperature_neg=3.0)
  grpo_case("vespo", inputs, loss_type="vespo")
  gspo = "the ratio is the exponential of the mean log-ratio, differentiated through every token"
  grpo_case("GSPO", inputs, loss_type="grpo", ratio="sequence", note=gspo)
  grpo_case(
    "GSPO, its paper's clip",
    inputs,
    loss_type="grpo",
    ratio="sequence",
    clip_eps_low=3e-4,
    clip_eps_high=4e-4,
    note=gspo,
  )
  grpo_case(
    "GSPO, KL weighted by the ratio",
    inputs,
    loss_type="grpo",
    ratio="sequence",
    kl_coef=0.0625,
    kl_importance=True,
    note=gspo + "; k3 of a token times the sequence's ratio",
  )
  grpo_case("LUSPO", inputs, loss_type="luspo", ratio="sequence", note=gspo)
  grpo_case(
    "grpo, off-policy responses masked",
    inputs,
    loss_type="grpo",
    off_policy_threshold=0.0625,
    note=(
      "a response with negative advantage and mean log(π_old / π) above the threshold adds nothing (arXiv:2512.02556)"
    ),
  )
  empty = record.group_step(empty_row=True)
  for loss_type in ("grpo", "dapo", "dr_grpo"):
    grpo_case(f"{loss_type}, a response without tokens", empty, loss_type=loss_type)


def record_rloo():
  inputs = record.group_step()
  del inputs["ref_logps"]
  for clip_eps in (0.2, 1.0):
    x = {key: tensor(value, key == "logps") for key, value in inputs.items()}
    self = SimpleNamespace(
      _get_per_token_logps_and_entropies=lambda *args, x=x, **kwargs: (
        x["logps"],
        torch.zeros_like(x["mask"]),
        None,
      ),
      aux_loss_enabled=False,
      epsilon_low=clip_eps,
      epsilon_high=clip_eps,
      model=SimpleNamespace(training=True),
      accelerator=ACCELERATOR,
      _metrics=defaultdict(lambda: defaultdict(list)),
    )
    prompt = torch.ones(record.B, 1)
    batch = dict(
      prompt_ids=prompt,
      prompt_mask=prompt,
      completion_ids=x["mask"],
      completion_mask=x["mask"],
      advantages=x["advantages"],
      old_logps=(x["old_logps"] * x["mask"]).sum(1),
    )
    loss = RLOOTrainer._compute_loss(self, None, batch)
    loss.backward()
    GOLDEN.case(
      "grpo",
      f"RLOO, clip {clip_eps}",
      f"{RLOO}._compute_loss",
      inputs,
      dict(mean_loss=loss.detach()),
      settings=dict(
        loss_type="clip",
        clip_eps_low=clip_eps,
        clip_eps_high=clip_eps,
        dual_clip=None,
        kl_coef=0.0,
        ratio="sequence_sum",
        aggregation="sequence",
      ),
      gradients=dict(logps=x["logps"].grad),
      note="one ratio for a whole response, the exponential of the summed log-ratio, and the mean over responses",
    )


def record_sampler_weights():
  inputs = record.group_step()
  inputs = dict(
    old_logps=inputs["old_logps"], sampler_logps=inputs["ref_logps"], mask=inputs["mask"]
  )
  for level in ("token", "sequence"):
    for mode in ("truncate", "mask"):
      for low, high in ((None, 1.5), (0.5, 1.5)):
        x = {key: tensor(value) for key, value in inputs.items()}
        self = SimpleNamespace(
          vllm_importance_sampling_mode=f"{level}_{mode}",
          vllm_importance_sampling_clip_min=low,
          vllm_importance_sampling_clip_max=high,
          use_vllm=True,
          vllm_importance_sampling_correction=True,
        )
        found = SAMPLER_WEIGHTS(
          self=self,
          completion_mask=x["mask"],
          tool_mask=None,
          old_per_token_logps=x["old_logps"],
          sampling_per_token_logps=x["sampler_logps"],
        )
        weights = found.vllm_importance_sampling_ratio * x["mask"]
        GOLDEN.case(
          "sampler_weights",
          f"{level}, {mode}, between {low} and {high}",
          f"{GRPO}._generate_and_score_completions",
          inputs,
          dict(weights=weights),
          settings=dict(level=level, mode=mode, low=low, high=high),
          note="the ratio of a whole response is the exponential of the summed log-ratio",
        )


if __name__ == "__main__":
  record_group_advantages()
  record_several_rewards()
  record_leave_one_out()
  record_grpo()
  record_rloo()
  record_sampler_weights()
  record_overlong_penalty()
  GOLDEN.write()
