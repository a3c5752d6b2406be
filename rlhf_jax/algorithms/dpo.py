"""Direct preference optimisation (arXiv:2305.18290, eq. 7) and the losses that stand on the same two log-ratios.

    u = log π(y|x) / π_ref(y|x),  summed over the response;  h = u_w − u_l
    L(θ) = E f(u_w, u_l)

The mean is over pairs. `loss_type` names f, β = `beta`:

  sigmoid       −log σ(β h)
  robust        the same, unbiased though a share `label_smoothing` of labels is flipped (arXiv:2403.00409)
  hinge         max(0, 1 − β h)                                         SLiC (arXiv:2305.10425, eq. 4, on DPO's margin)
  ipo           (h − 1/(2β))²                                           (arXiv:2310.12036, eq. 17)
  exo_pair      KL(softmax(β u) ‖ (1 − ε, ε)), ε = `label_smoothing`     (arXiv:2402.00856, eq. 16)
  nca_pair      −log σ(β u_w) − ½ log σ(−β u_w) − ½ log σ(−β u_l)        (arXiv:2402.05369, two answers)
  bco_pair      −log σ(β u_w − δ) − log σ(δ − β u_l)                     (arXiv:2404.04656, on pairs)
  sppo_hard     (u_w − 1/(2β))² + (u_l + 1/(2β))²                        (arXiv:2405.00675, eq. 4.7; its η is 1/β)
  aot           −log σ(β (sort_i(π's margins) − sort_i(π_ref's)))        (arXiv:2406.05882, paired)
  aot_unpaired  −log σ(β (sort_i(u_w) − sort_i(u_l)))                    (arXiv:2406.05882, unpaired)
  apo_zero      σ(−β u_w) + σ(β u_l)                                     (arXiv:2408.06266, eq. 7, plus a constant)
  apo_down      σ(β u_w) + σ(−β h)                                       (arXiv:2408.06266, eq. 8, plus a constant)
  discopop      (1 − σ(βh/τ)) · −log σ(β h) + σ(βh/τ) · e^(−β h)         (arXiv:2406.08414, eq. 5)

A pair whose `preference` p is not 1 (a tie is ½) has the loss p f(u_w, u_l) + (1 − p) f(u_l, u_w). So does
`label_smoothing` ε, with p (1 − ε) + (1 − p) ε for p: with sigmoid that is cDPO
(https://ericmitchell.ai/cdpo.pdf, eq. 3). `margin` subtracts each pair's own margin from β h (arXiv:2402.10571).

`divergence` keeps π near π_ref by another f-divergence than reverse KL: u = f'(π/π_ref) (arXiv:2309.16240).
`average_logps` divides log-probabilities by the response's length, which TRL does for IPO.
`length_decay` α counts a token α beyond the length of the pair's shorter response (LD-DPO, arXiv:2409.06411).
`wpo` weights a pair by how probable its answers are now (arXiv:2406.11827, eq. 2).
`nll_coef` adds −log π(y_w|x) / |y_w| (RPO, arXiv:2404.19733; TRL divides by the batch's tokens instead).
`sync_every` moves the reference towards the policy by `sync_mix` every so many steps (TR-DPO, arXiv:2404.09656).

δ of bco_pair is the mean reward of all batches so far, this one included. What a loss takes from the whole batch
(δ, the sorting of aot) is worked out in annotate(), so that neither micro-batches nor devices change it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import batchwise, reward, stats
from rlhf_jax.ops import preference as preference_ops
from rlhf_jax.types import Algorithm, Policy, PreferenceBatch

Array = jax.Array

TRAINS = "policy"
DATA = "pairs"


def _exo_pair(u_w, u_l, c):
  log_p, log_q = jax.nn.log_sigmoid(c.beta * (u_w - u_l)), jax.nn.log_sigmoid(c.beta * (u_l - u_w))
  eps = c.label_smoothing
  return jnp.exp(log_p) * (log_p - jnp.log1p(-eps)) + jnp.exp(log_q) * (log_q - jnp.log(eps))


def _discopop(u_w, u_l, c):
  h = c.beta * (u_w - u_l)
  mix = jax.nn.sigmoid(h / c.discopop_tau)
  return (1.0 - mix) * -jax.nn.log_sigmoid(h) + mix * jnp.exp(-h)


def _sigmoid(u_w, u_l, c):
  return -jax.nn.log_sigmoid(c.beta * (u_w - u_l))


# Each maps the two log-ratios of a pair, float32[B] each, to its loss float32[B]. Under aot they come sorted.
LOSSES = {
  "sigmoid": _sigmoid,
  "robust": _sigmoid,
  "aot": _sigmoid,
  "aot_unpaired": _sigmoid,
  "ipo": lambda w, l, c: jnp.square(w - l - 1.0 / (2.0 * c.beta)),
  "hinge": lambda w, l, c: jax.nn.relu(1.0 - c.beta * (w - l)),
  "exo_pair": _exo_pair,
  "nca_pair": lambda w, l, c: (
    jax.nn.softplus(-c.beta * w) + 0.5 * (jax.nn.softplus(c.beta * w) + jax.nn.softplus(c.beta * l))
  ),
  "bco_pair": lambda w, l, c: jax.nn.softplus(-c.beta * w) + jax.nn.softplus(c.beta * l),
  "sppo_hard": lambda w, l, c: (
    jnp.square(w - 1.0 / (2.0 * c.beta)) + jnp.square(l + 1.0 / (2.0 * c.beta))
  ),
  "apo_zero": lambda w, l, c: jax.nn.sigmoid(-c.beta * w) + jax.nn.sigmoid(c.beta * l),
  "apo_down": lambda w, l, c: jax.nn.sigmoid(c.beta * w) + jax.nn.sigmoid(-c.beta * (w - l)),
  "discopop": _discopop,
}
SORTED = ("aot", "aot_unpaired")

# f'(π/π_ref) of the log-ratio u, up to a constant that two answers have in common.
DIVERGENCES = {
  "reverse_kl": lambda u, c: u,
  "forward_kl": lambda u, c: -jnp.exp(-u),
  "jensen_shannon": lambda u, c: u - jax.nn.softplus(u),
  "alpha": lambda u, c: -jnp.expm1(-c.divergence_alpha * u) / c.divergence_alpha,
}


@hyperparameters
class Config:
  learning_rate: float = option(1e-6, above=0)
  beta: float = option(0.1, above=0)
  loss_type: str = option("sigmoid", choices=tuple(LOSSES))
  label_smoothing: float = option(0.0, at_least=0, below=0.5)  # exo_pair needs more than 0: 1e-3
  divergence: str = option("reverse_kl", choices=tuple(DIVERGENCES))
  divergence_alpha: float = option(0.5, above=0, below=1)
  average_logps: bool = False  # per token instead of summed
  length_decay: float = option(1.0, at_least=0, at_most=1)
  discopop_tau: float = option(0.05, above=0)
  margin: bool = False  # subtract each pair's margin from its difference of rewards
  wpo: bool = False
  nll_coef: float | None = option(None, at_least=0)
  sync_every: int | None = option(None, at_least=1)  # steps
  sync_mix: float = option(0.6, above=0, at_most=1)

  def assert_sound(self, where: str) -> None:
    if self.loss_type == "exo_pair" and self.label_smoothing == 0:
      raise ValueError(
        f"{where}.loss_type='exo_pair' takes the logarithm of {where}.label_smoothing; set that to 1e-3, "
        "as its paper does."
      )
    if self.loss_type in SORTED and self.wpo:
      raise ValueError(
        f"{where}.wpo weights pairs and {where}.loss_type={self.loss_type!r} sorts them apart; leave one out."
      )


@struct.dataclass
class Batch:
  """Pairs, and what their losses take from the whole batch."""

  pairs: PreferenceBatch
  delta: Array  # float32[B], BCO's reward of an indifferent answer, the same in all rows
  sorted_loss: batchwise.Linear | None  # of aot: the loss as a function of π's two numbers a row


def dpo_loss(
  logps_w,
  logps_l,
  ref_logps_w,
  ref_logps_l,
  config: Config,
  *,
  preference=1.0,
  margin=0.0,
  delta=0.0,
) -> Array:
  """Loss float32[B] from sequence log-probabilities float32[B]; no model in sight.

  One number a pair, but under aot and aot_unpaired one a rank.
  """
  if config.loss_type in SORTED:
    return sorted_loss(*margins(logps_w, logps_l, ref_logps_w, ref_logps_l, config), config)
  link = lambda u: DIVERGENCES[config.divergence](u, config)
  u_w = link(logps_w - ref_logps_w) - (delta + margin) / config.beta
  u_l = link(logps_l - ref_logps_l) - delta / config.beta
  loss, eps = LOSSES[config.loss_type], config.label_smoothing
  if config.loss_type == "robust":
    weight = (preference - eps) / (1.0 - 2.0 * eps)
  elif config.loss_type == "exo_pair":
    weight = preference  # ε is in its target already
  else:
    weight = preference * (1.0 - eps) + (1.0 - preference) * eps
  return preference_ops.both_ways(lambda w, l: loss(w, l, config), u_w, u_l, weight)


def margins(logps_w, logps_l, ref_logps_w, ref_logps_l, config: Config) -> tuple[Array, Array]:
  """The two numbers of a pair that aot and aot_unpaired sort over the batch, float32[B] each."""
  if config.loss_type == "aot":
    return logps_w - logps_l, ref_logps_w - ref_logps_l
  return logps_w - ref_logps_w, logps_l - ref_logps_l


def sorted_loss(above: Array, below: Array, config: Config) -> Array:
  """−log σ of β times the difference at each rank, float32[B]: how far `above` dominates `below`."""
  difference = config.beta * (jnp.sort(above) - jnp.sort(below))
  return reward.logistic_loss(difference, 1.0 - config.label_smoothing)


def token_weights(mask: Array, other: Array, config: Config) -> Array:
  """What a token's log-probability counts in its response's, float32[B, T]; `other` is the other answer's mask."""
  length = jnp.sum(mask, axis=-1, keepdims=True)
  shared = jnp.minimum(length, jnp.sum(other, axis=-1, keepdims=True))
  weights = mask * jnp.where(jnp.cumsum(mask, axis=-1) <= shared, 1.0, config.length_decay)
  return weights / jnp.maximum(length, 1.0) if config.average_logps else weights


def wpo_weights(logps: Array, collision: Array, mask: Array) -> Array:
  """exp of the response's mean log π(y_t) − log Σ_v π(v)², float32[B], without gradient."""
  return jax.lax.stop_gradient(jnp.exp(preference_ops.average_logps(logps - collision, mask)))


def make(policy: Policy) -> Algorithm:
  """DPO on batches of `PreferenceBatch`; the reference's log-probabilities are computed if absent."""

  def evaluate(params, frozen, pairs):
    return preference_ops.of_both(lambda rows: policy.evaluate(params, frozen, rows, 1.0), pairs)

  def sums(logps_w, logps_l, pairs, config):
    """Sequence log-probabilities of policy and reference, float32[B] each, in the order of `dpo_loss`."""
    mask_w, mask_l = pairs.chosen.response_mask, pairs.rejected.response_mask
    weights_w = token_weights(mask_w, mask_l, config)
    weights_l = token_weights(mask_l, mask_w, config)
    return (
      stats.row_sum(logps_w, weights_w),
      stats.row_sum(logps_l, weights_l),
      stats.row_sum(pairs.ref_chosen_logps, weights_w),
      stats.row_sum(pairs.ref_rejected_logps, weights_l),
    )

  def init_extra(params, config):
    extra = {}
    if config.sync_every is not None:
      extra |= {"reference": params, "steps": jnp.zeros((), jnp.int32)}
    if config.loss_type == "bco_pair":
      extra |= {"delta": stats.Mean(jnp.zeros(()), jnp.zeros(()))}
    return extra

  def annotate(params, frozen, pairs, config, extra):
    if config.sync_every is not None or pairs.ref_chosen_logps is None:
      kept = extra if config.sync_every is not None else frozen
      ref_w, ref_l = evaluate(kept["reference"], frozen, pairs)
      pairs = pairs.replace(ref_chosen_logps=ref_w.logps, ref_rejected_logps=ref_l.logps)
    batch = Batch(pairs, delta=jnp.zeros_like(pairs.preference), sorted_loss=None)
    if config.loss_type in SORTED:
      now = sums(*(side.logps for side in evaluate(params, frozen, pairs)), pairs, config)
      mean = lambda above, below: jnp.mean(sorted_loss(above, below, config))
      batch = batch.replace(sorted_loss=batchwise.linearize(mean, *margins(*now, config)))
    if config.loss_type == "bco_pair":
      now = sums(*(side.logps for side in evaluate(params, frozen, pairs)), pairs, config)
      mean_reward = config.beta * jnp.mean(0.5 * (now[0] - now[2] + now[1] - now[3]))
      delta = stats.Mean(extra["delta"].sum + mean_reward, extra["delta"].count + 1.0)
      batch = batch.replace(delta=jnp.full_like(batch.delta, delta.value))
      return batch, {"rewards/implicit": stats.Mean(mean_reward, jnp.ones(()))}
    return batch, {}

  def loss(params, frozen, batch, config, extra):
    pairs = batch.pairs
    side_w, side_l = evaluate(params, frozen, pairs)
    mask_w, mask_l = pairs.chosen.response_mask, pairs.rejected.response_mask
    now = sums(side_w.logps, side_l.logps, pairs, config)
    if batch.sorted_loss is not None:
      losses = batchwise.per_row(batch.sorted_loss, *margins(*now, config))
    else:
      losses = dpo_loss(
        *now,
        config,
        preference=pairs.preference,
        margin=pairs.margin if config.margin else 0.0,
        delta=batch.delta,
      )
    if config.wpo:
      losses *= wpo_weights(side_w.logps, side_w.collision, mask_w)
      losses *= wpo_weights(side_l.logps, side_l.collision, mask_l)
    terms = {"dpo": stats.batch_mean(losses)}
    if config.nll_coef is not None:
      nll = -preference_ops.average_logps(side_w.logps, mask_w)
      terms["nll"] = stats.batch_mean(config.nll_coef * nll)
    rewards = config.beta * (now[0] - now[2]), config.beta * (now[1] - now[3])
    return terms, preference_ops.pair_metrics(*rewards, side_w.logps, side_l.logps, pairs)

  def update_extra(extra, params, metrics, config):
    extra = dict(extra)
    if config.loss_type == "bco_pair":
      seen = extra["delta"]
      extra["delta"] = stats.Mean(seen.sum + metrics["rewards/implicit"], seen.count + 1.0)
    if config.sync_every is not None:
      steps = extra["steps"] + 1
      mix = jnp.where(steps % config.sync_every == 0, config.sync_mix, 0.0)
      mixed = jax.tree.map(lambda r, p: r + mix * (p - r), extra["reference"], params)
      extra |= {"reference": mixed, "steps": steps}
    return extra

  return Algorithm(init_extra, annotate, loss, update_extra)
