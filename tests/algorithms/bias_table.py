"""Whose gradient is climbed on average, exactly, on the language of 27 sequences: two tables in Markdown.

  python tests/algorithms/bias_table.py

Vocabulary 3, length 3, float64, all answers enumerated: an arbitrary policy and reference, no whitening, the first update
of a batch. `test_ppo_details.py` holds the first table to what theory says.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from test_enumeration import BETA, SCORES, log_probability, table
from test_policy_gradients_family import exact_gradient, expected_gradient

from rlhf_jax.algorithms import a2c, grpo, ppo, reinforce, reinforce_pp, remax, rloo
from rlhf_jax.ops import kl

PPO = dict(gae_lambda=1.0, whiten_advantages="none", aggregation="sum")
GROUP = dict(group=2, kl_in="reward", kl_estimator="k1", kl_coef=BETA, aggregation="sum")
CRITIC = {"values": jnp.asarray(np.random.default_rng(4).normal(size=13))}


class Bias(NamedTuple):
  what: str
  where: str
  cosine: float  # between the expected and the exact gradient; NaN where the expected one is 0
  length: float  # of the expected one, in lengths of the exact one
  error: float  # of their difference, in the same


def bias(what: str, where: str, got, exact) -> Bias:
  length = lambda x: float(jnp.sqrt(jnp.sum(x * x)))
  product = float(jnp.sum(got * exact))
  nothing = length(got) < 1e-12 * length(exact)
  cosine = float("nan") if nothing else product / length(got) / length(exact)
  return Bias(what, where, cosine, length(got) / length(exact), length(got - exact) / length(exact))


def kl_gradient():
  """−∇ KL(π ‖ π_ref) over whole answers."""

  def penalty(logits):
    logp = log_probability(logits)
    return -jnp.sum(jnp.exp(logp) * (logp - log_probability(table(3))))

  return jax.grad(penalty)(table(2))


def of_kl(estimator: str, place: str, module=ppo, *, batch=1, **options):
  """The expected gradient of the penalty alone, with a coefficient of 1."""
  config = module.Config(kl_in=place, kl_estimator=estimator, kl_coef=1.0, **options)
  return expected_gradient(
    module, config, table(2), table(3), batch=batch, scores=np.zeros(27), critic=CRITIC
  )


def of_estimators() -> list[Bias]:
  """Every estimator of the KL in every place."""
  exact = kl_gradient()
  found = [
    bias(estimator, place, of_kl(estimator, place, **PPO), exact)
    for place in ("reward", "loss")
    for estimator in (*kl.KL_ESTIMATORS, "exact")
  ]
  clamped = of_kl("k1", "reward", kl_clamp=1.0, **PPO)
  weighted = dict(group=2, kl_weighted=True, aggregation="sum", batch=2)
  return [
    *found,
    bias("k1, clamped to ±1", "reward", clamped, exact),
    *(
      bias(
        f"{estimator}, weighted by the ratio",
        "loss",
        of_kl(estimator, "loss", grpo, **weighted),
        exact,
      )
      for estimator in ("k1", "k3")
    ),
  ]


def of_algorithms() -> list[Bias]:
  """Each algorithm's expected gradient of E[score] − β KL against the exact one."""
  exact = exact_gradient(table(2), table(3))
  grouped = dict(group=2, kl_coef=BETA)
  cases = {
    "reinforce, no baseline": (reinforce, reinforce.Config(baseline="none", kl_coef=BETA), 1),
    "reinforce, the batch's mean (2 answers)": (reinforce, reinforce.Config(kl_coef=BETA), 2),
    "rloo": (rloo, rloo.Config(**grouped), 2),
    "rloo, normalised": (rloo, rloo.Config(normalize_advantages=True, **grouped), 2),
    "remax": (remax, remax.Config(kl_coef=BETA), 1),
    "a2c": (a2c, a2c.Config(kl_coef=BETA, entropy_coef=None), 1),
    "ppo, λ = 1": (ppo, ppo.Config(kl_coef=BETA, **PPO), 1),
    "ppo, λ = 0.95, a critic that knows nothing": (
      ppo,
      ppo.Config(kl_coef=BETA, **PPO | dict(gae_lambda=0.95)),
      1,
    ),
    "ppo, λ = 1, whitened (2 answers)": (
      ppo,
      ppo.Config(kl_coef=BETA, **PPO | dict(whiten_advantages="batch")),
      2,
    ),
    "reinforce_pp (2 answers)": (reinforce_pp, reinforce_pp.Config(kl_coef=BETA), 2),
    "grpo, scale='none'": (grpo, grpo.Config(scale="none", **GROUP), 2),
    "grpo, scale='group_std'": (grpo, grpo.Config(scale="group_std", **GROUP), 2),
  }
  return [
    bias(
      name,
      "",
      expected_gradient(
        module, config, table(2), table(3), batch=batch, scores=SCORES, greedy=0.6, critic=CRITIC
      ),
      exact,
    )
    for name, (module, config, batch) in cases.items()
  ]


def markdown(rows: list[Bias], where: bool) -> str:
  heads = ["estimator", "in the", "cosine", "length", "relative error"]
  lines = [heads if where else ["algorithm", *heads[2:4]]]
  for row in rows:
    numbers = ["–" if np.isnan(n) else f"{n:.3f}" for n in row[2:]]
    lines.append([row.what, row.where, *numbers] if where else [row.what, *numbers[:2]])
  lines.insert(1, ["---"] * len(lines[0]))
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
  with jax.enable_x64(True):
    print(markdown(of_estimators(), where=True))
    print()
    print(markdown(of_algorithms(), where=False))
