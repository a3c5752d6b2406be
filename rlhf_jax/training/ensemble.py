"""Several reward models trained at once by `vmap`, and how they make one.

`share="trunk"` is M heads on one trunk, which costs little more than one and whose members differ by their heads'
beginning alone. `share="adapters"` is M members of their own, adapters (or whole models) and heads: the train step is
mapped over the state's leading axis, and each member learns what it would have learned by itself.

`combine` makes one reward of the members' scores, each given its own gain and bias first: "mean", "min", or
"penalized", mean − λ std (arXiv:2312.09244, section 4; arXiv:2310.02743 subtracts λ var, "penalized_variance"). "average" makes
one model of the members' weights instead (WARM, arXiv:2401.12187, eq. 1), which scores as fast as one: adapters average exactly, since

    1/M Σ_m A_m B_m = [A_1 … A_M] [B_1 … B_M]ᵀ / M

is an adapter of rank M r. Weights that are averaged must have begun alike, so then the heads do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.models import heads
from rlhf_jax.types import Algorithm, Params, TrainState, no_annotation

COMBINE = ("mean", "min", "penalized", "penalized_variance", "average")


@hyperparameters
class Settings:
  """How many reward models, what they share, and how they make one."""

  members: int = option(1, at_least=1)
  share: str = option("trunk", choices=("trunk", "adapters"))
  bootstrap: bool = False  # each member draws its own records, with replacement
  combine: str = option("mean", choices=COMBINE)
  disagreement_coef: float = option(1.0, at_least=0)  # λ of the penalized

  def assert_sound(self, where: str) -> None:
    if self.members == 1:
      if self.bootstrap:
        raise ValueError(f"{where}.bootstrap is for several members; set {where}.members.")
      return
    for name, wrong in (("bootstrap", self.bootstrap), ("combine", self.combine == "average")):
      if wrong and self.share == "trunk":
        raise ValueError(
          f"{where}.{name}={getattr(self, name)!r} needs members of their own; set {where}.share='adapters'."
        )


def stacked(members: list[Params]) -> Params:
  """Trees of the same form as one, members in front."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def each(params: Params) -> list[Params]:
  """The members of a reward model as reward models of their own; itself where it has none."""
  if "members" not in params:
    return [params]
  shared = {n: x for n, x in params.items() if n not in ("members", "normalization")}
  M = jax.tree.leaves(params["members"])[0].shape[0]
  member = lambda i: jax.tree.map(lambda x: x[i], params["members"])
  return [{**shared, **member(i)} for i in range(M)]


def average(members: Params) -> Params:
  """One model of stacked ones: the mean of their weights, of adapters the mean of what they add."""
  if "lora_a" in members:
    a, b = members["lora_a"], members["lora_b"]  # [M, in, r], [M, r, out]
    M, size_in, rank = a.shape
    return {
      "lora_a": jnp.moveaxis(a, 0, 1).reshape(size_in, M * rank),
      "lora_b": b.reshape(M * rank, -1) / M,
    }
  mean = lambda x: average(x) if isinstance(x, dict) else jnp.mean(x, axis=0)
  return {name: mean(x) for name, x in members.items()}


def unnormalized(settings: Settings) -> Params:
  """The part of a reward model's parameters that does not train: gain and bias, of each member too."""
  one = heads.unnormalized()
  if settings.members == 1 or settings.combine == "average":
    return {"normalization": one}
  return {"normalization": one, "members": {"normalization": stacked([one] * settings.members)}}


def scoring(settings: Settings, trained: Params, fixed: Params) -> Params:
  """The `Scorer` parameters of what was trained and what was not."""
  if settings.members == 1:
    return {**trained, **fixed}
  if settings.combine == "average":
    return {**average(trained), **fixed}
  if settings.share == "trunk":
    trained, members = {"model": trained["model"]}, trained["members"]
  else:
    trained, members = {}, trained
  return {
    **trained,
    "members": {**members, **fixed["members"]},
    "normalization": fixed["normalization"],
    "disagreement_coef": jnp.asarray(settings.disagreement_coef, jnp.float32),
  }


def normalize(settings: Settings, trained: Params, score: Callable[[Params], jax.Array]) -> Params:
  """Gain and bias of every member, and then of what they make together.

  `score` maps `Scorer` parameters to scores of the same texts.
  """
  fixed = unnormalized(settings)
  whole = scoring(settings, trained, fixed)
  if "members" in whole:
    of_members = [heads.normalize(heads.unnormalized(), score(one)) for one in each(whole)]
    fixed["members"] = {"normalization": stacked(of_members)}
    whole = scoring(settings, trained, fixed)
  return {**fixed, "normalization": heads.normalize(fixed["normalization"], score(whole))}


def on_one_trunk(algorithm: Algorithm, name: str) -> Algorithm:
  """`algorithm` for params {"model": ..., "members": ...}: the mean of the members' losses from one pass of the trunk."""
  if algorithm.annotate is not no_annotation:
    raise ValueError(
      f"{name} looks at whole batches first, once a member; set {name}.share='adapters'."
    )

  def loss(params, frozen, batch, config, extra):
    def of_member(member):
      return algorithm.loss({"model": params["model"], **member}, frozen, batch, config, extra)

    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(of_member)(params["members"]))

  return algorithm._replace(loss=loss)


def at_once(tx: optax.GradientTransformation, train_step: Callable, own_batches: bool):
  """(optimizer, train step) for params and optimizer state with members in front; metrics are the members' means.

  With `own_batches` the members stand second in every array of a batch, after its rows.
  """
  axes = TrainState(step=None, params=0, opt_state=0, key=None, extra=None)
  mapped = jax.vmap(
    train_step, in_axes=(axes, None, 1 if own_batches else None, None), out_axes=(axes, 0)
  )

  def together(state: TrainState, frozen, batch, config):
    state, metrics = mapped(state, frozen, batch, config)
    return state, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

  return optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update)), together
