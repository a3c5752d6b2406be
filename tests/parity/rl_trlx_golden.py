"""Golden numbers from trlx: PPO's joint loss and advantages, ILQL's loss and each of its terms.

  pip install torch==2.13.0 "transformers>=4.56,<5" accelerate numpy
  git clone https://github.com/CarperAI/trlx && git -C trlx checkout 3340c2f3a56d1d14fdd5f13ad575121fa26b6d92
  PYTHONPATH=trlx python tests/parity/rl_trlx_golden.py

Written to `rl_trlx.json`. The package's own `__init__`, which imports its trainers, is left out; packages that it imports
and the recorded functions do not use are replaced by empty modules.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types

import numpy as np
import record
import torch

record.Absent("deepspeed", "torchtyping", "ray", "datasets", "attrs", "cattrs", "einops", "tqdm")

SPEC = importlib.machinery.PathFinder.find_spec("trlx")
sys.modules["trlx"] = types.ModuleType("trlx")
sys.modules["trlx"].__path__ = SPEC.submodule_search_locations

from trlx.data.ilql_types import ILQLBatch  # noqa: E402
from trlx.models.modeling_ilql import ILQLConfig  # noqa: E402
from trlx.models.modeling_ppo import PPOConfig  # noqa: E402

GOLDEN = record.Recorder(
  "trlx", "trlx", "torch", "transformers", file="rl_trlx", version="0.7.0, 3340c2f3a56d"
)
PPO = "trlx.models.modeling_ppo.PPOConfig"


def tensors(inputs: dict, *differentiated: str) -> dict:
  return {
    key: torch.tensor(np.asarray(value), dtype=torch.float64, requires_grad=key in differentiated)
    for key, value in inputs.items()
  }


def ppo(**settings) -> PPOConfig:
  unused = dict.fromkeys(
    ("ppo_epochs", "num_rollouts", "chunk_size", "init_kl_coef", "target", "horizon", "gen_kwargs")
  )
  unused |= dict(scale_reward=None, ref_mean=None, ref_std=None, cliprange_reward=10.0)
  defaults = dict(gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=1.0)
  return PPOConfig(name="PPOConfig", **unused, **defaults | settings)


def record_gae():
  inputs = record.trajectories() | dict(mask=np.ones((record.B, record.T)))
  inputs |= dict(bootstrap=np.zeros(record.B))
  x = tensors(inputs)
  for gamma, lambda_ in ((1.0, 0.95), (0.9, 0.7)):
    for whiten in (False, True):
      advantages, returns = ppo(gamma=gamma, lam=lambda_).get_advantages_and_returns(
        x["values"], x["rewards"], record.T, use_whitening=whiten
      )
      GOLDEN.case(
        "gae",
        f"whole rows, gamma {gamma}, lambda {lambda_}{', whitened' * whiten}",
        f"{PPO}.get_advantages_and_returns",
        inputs,
        dict(advantages=advantages, returns=returns),
        settings=dict(gamma=gamma, lambda_=lambda_, whiten=whiten, variance="unbiased"),
        note="it knows no mask: its trainer whitens over padding too; the variance is over n − 1",
      )


def record_loss():
  steps = {"": (record.policy_step(), record.value_step(), 1.0)}
  steps[", a narrow clip"] = (record.policy_step(12), record.value_step(13), 0.125)
  for name, (policy, value, value_coef) in steps.items():
    clip_eps = 0.05 if name else 0.2
    config = ppo(cliprange=clip_eps, vf_coef=value_coef)
    x = tensors(policy | value, "logps", "values")
    arguments = lambda x: (
      *(x["logps"], x["values"], x["old_logps"], x["old_values"]),
      *(x["advantages"], x["returns"], x["mask"]),
    )
    loss, stats = config.loss(*arguments(x))
    loss.backward()
    clip = dict(clip_eps_low=clip_eps, clip_eps_high=clip_eps, dual_clip=None)
    GOLDEN.case(
      "ppo_loss",
      f"policy and value loss together, value coefficient {value_coef}{name}",
      f"{PPO}.loss",
      policy | value,
      dict(mean_loss=loss.detach()),
      settings=clip | dict(value_clip_eps=0.2, value_coef=value_coef, aggregation="token"),
      gradients=dict(logps=x["logps"].grad, values=x["values"].grad),
      note="the value loss is halved, then multiplied by the coefficient, 1 by default",
    )
    # The two terms do not share an argument: their gradients are those of the joint loss.
    GOLDEN.case(
      "ppo_policy",
      "token mean" + name,
      f"{PPO}.loss",
      policy,
      dict(mean_loss=stats["losses/policy_loss"], clip_fraction=stats["policy/clipfrac"]),
      settings=clip | dict(aggregation="token"),
      gradients=dict(logps=x["logps"].grad),
    )
    GOLDEN.case(
      "ppo_value",
      "token mean" + name,
      f"{PPO}.loss",
      value,
      dict(mean_loss=stats["losses/value_loss"], clip_fraction=stats["values/clipfrac"]),
      settings=dict(clip_eps=0.2, aggregation="token"),
      gradients=dict(values=x["values"].grad / value_coef),
    )


def offline(seed: int = 24, rows: int = 3, steps: int = 6, vocabulary: int = 5) -> dict:
  """Answers of 6, 3 and 1 tokens: statistics before each token, and the value after the last."""
  rng = np.random.default_rng(seed)
  table = lambda: record.grid(rng.normal(0, 1.5, (rows, steps, vocabulary)))
  alive = np.arange(steps + 1) < np.array([6, 3, 1])[:, None]
  return dict(
    logits=table(),
    q1=table(),
    q2=table(),
    target_q1=table(),
    target_q2=table(),
    values=record.grid(rng.normal(0, 1.5, (rows, steps + 1))),
    tokens=rng.integers(0, vocabulary, (rows, steps)),
    rewards=record.grid(rng.normal(0, 1, (rows, steps))) * alive[:, :-1],
    mask=alive.astype(np.float64),
  )


def record_ilql():
  defaults = dict(tau=0.7, gamma=0.99, cql_coef=0.1, awac_coef=1.0, beta=0.0, two_qs=True)
  cases = {
    "defaults": {},
    "one Q": dict(two_qs=False),
    "AWAC weighted by advantages": dict(beta=0.5),
    "tau 0.5": dict(tau=0.5),
    "tau 0.9, gamma 1, strong CQL": dict(tau=0.9, gamma=1.0, cql_coef=1.0),
    "without CQL and AWAC": dict(cql_coef=0.0, awac_coef=0.0),
  }
  for name, changes in cases.items():
    settings = defaults | changes
    inputs = offline()
    if not settings["two_qs"]:
      del inputs["q2"], inputs["target_q2"]
    heads = ("q1", "q2") if settings["two_qs"] else ("q1",)
    x = tensors(inputs, *heads, "logits", "values")
    rows, steps = inputs["tokens"].shape
    tokens = torch.tensor(inputs["tokens"])
    config = ILQLConfig(
      name="ILQLConfig",
      tau=settings["tau"],
      gamma=settings["gamma"],
      cql_scale=settings["cql_coef"],
      awac_scale=settings["awac_coef"],
      alpha=0.001,
      beta=settings["beta"],
      steps_for_target_q_sync=5,
      two_qs=settings["two_qs"],
      gen_kwargs={},
    )
    # A prompt of one token before every answer; its last state is after the last token.
    labels = ILQLBatch(
      input_ids=torch.nn.functional.pad(tokens, (1, 0)),
      attention_mask=None,
      rewards=x["rewards"],
      states_ixs=torch.arange(steps + 1).expand(rows, -1),
      actions_ixs=torch.arange(steps).expand(rows, -1),
      dones=torch.tensor(inputs["mask"]).long(),
    )
    logits = torch.nn.functional.pad(x["logits"], (0, 0, 0, 1))
    outputs = (
      logits,
      ([x[q] for q in heads], [x[f"target_{q}"] for q in heads], x["values"][..., None]),
    )
    loss, stats = config.loss(outputs, labels)
    loss.backward()
    learned = (*heads, "values", *(["logits"] if settings["awac_coef"] else []))
    GOLDEN.case(
      "ilql",
      name,
      "trlx.models.modeling_ilql.ILQLConfig.loss",
      inputs,
      dict(
        mean_loss=loss.detach(),
        **{term: stats[f"losses/loss_{term}"] for term in ("q", "v", "cql", "awac")},
      ),
      settings=settings,
      gradients={key: x[key].grad for key in learned},
      note=(
        "q, v, cql and awac are the terms before their coefficients; q and cql sum over the two heads; squares are not "
        "halved; the target of Q is r + gamma V(next), that of V the smaller target Q; the AWAC weight exp(beta (Q − V)) is "
        "unclipped; `mask` is 1 at states with a token to come, every mean is over those; gradients go through "
        "V in its own term alone"
      ),
    )


if __name__ == "__main__":
  record_gae()
  record_loss()
  record_ilql()
  GOLDEN.write()
