"""The one train step: annotate a batch, learn from it, let the algorithm's own state follow."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.training import optimizer, parts
from rlhf_jax.types import Algorithm, Mean, TrainState

# The options of an algorithm that end a batch's updates early, and the metric that each bounds.
STOP_RULES = {"stop_kl": "policy/approx_kl", "stop_ratio": "policy/ratio"}


# On a CPU, instructions in the order that needs least memory, not in the one that overlaps most.
LEAN = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def init_state(key, params, algorithm: Algorithm, tx, config) -> TrainState:
  """A fresh state at step 0. `params` and `key` are taken as they are."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    key=key,
    extra=algorithm.init_extra(params, config),
  )


def start(setup, purpose: str, algorithm: Algorithm, tx, optim, config, params, train_step):
  """(initial state on the mesh with `params()`, jitted step): the state is donated and its layout pinned.

  What `params` makes is given up again before the first step, for the state has a copy of its own.
  """

  def fresh(params) -> TrainState:
    params = jax.tree.map(jnp.copy, params)  # donated later, so nobody else's arrays
    return init_state(setup.key(f"{purpose} state"), params, algorithm, tx, config)

  params = setup.place(params())
  layout = layout_of(setup, optim, jax.eval_shape(fresh, params))
  return jax.jit(fresh, out_shardings=layout)(params), jitted(train_step, layout)


def layout_of(setup, optim, state: TrainState) -> TrainState:
  """Where each leaf of a state lies: on the mesh, its optimizer's moments in the memory that `optim` names."""
  layout = setup.layout(state)
  if optim.optimizer_memory == "device":
    return layout
  in_host = lambda where, leaf: where.with_memory_kind(optimizer.HOST) if leaf.ndim else where
  return layout.replace(opt_state=jax.tree.map(in_host, layout.opt_state, state.opt_state))


def jitted(train_step, layout):
  """`train_step` compiled, its state donated and laid out as `layout` says."""
  on_cpu = all(d.platform == "cpu" for d in jax.tree.leaves(layout)[0].device_set)
  return jax.jit(
    train_step,
    donate_argnums=0,
    out_shardings=(layout, None),
    compiler_options=LEAN if on_cpu else None,
  )


def make_train_step(
  algorithm: Algorithm,
  tx: optax.GradientTransformation,
  *,
  epochs: int = 1,
  minibatches: int = 1,
  accumulate: int = 1,
) -> Callable:
  """`(state, frozen, batch, config) -> (state, metrics)`, pure, for any algorithm.

  The batch's rows are permuted anew in each of `epochs` passes and learned from in `minibatches`
  parts, an optimizer update each. `accumulate` splits every part once more, to save memory: the
  gradient stays that of the whole part, since losses are kept as sum and count until the end; what `annotate` looks at is split by
  `parts.make_algorithm`. Where the algorithm has
  `at_once` and a pass is one update of the whole batch, the first one's is the look at the batch as well.
  Metrics are dicts of `Mean`. With a `config.stop_kl` or `config.stop_ratio`, updates cease once a part's
  `policy/approx_kl` or `policy/ratio` exceeds it.
  """

  def learn(state: TrainState, frozen, batch, config, loss=algorithm.loss):
    """One update: the state after it, what it measured, and what else `loss` gives."""
    gradients, metrics, rest = _gradients(loss, state, frozen, batch, config, accumulate)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -config.learning_rate * u, updates)
    metrics["optim/grad_norm"] = Mean(optax.global_norm(gradients), jnp.ones(()))
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state), metrics, rest

  def learn_in_parts(state: TrainState, frozen, batch, config, first=None):
    """Updates of all passes, or of all after the one that measured `first`, which no rule stops: its ratios are 1."""
    limits = {
      metric: getattr(config, rule)
      for rule, metric in STOP_RULES.items()
      if getattr(config, rule, None) is not None
    }
    size = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    rows_of_parts = order[first is not None :].reshape(-1, size // minibatches)

    def one(carry, rows):
      state, stopped = carry
      part = algorithm.per_update(jax.tree.map(lambda x: x[rows], batch), config)
      update = lambda: learn(state, frozen, part, config)[:2]
      if not limits:
        state, metrics = update()
        return (state, stopped), metrics
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(update)[1])
      state, metrics = jax.lax.cond(stopped, lambda: (state, nothing), update)
      for metric, limit in limits.items():
        stopped |= metrics[metric].value > limit
      metrics["optim/stopped"] = Mean(stopped.astype(jnp.float32), jnp.ones(()))
      return (state, stopped), metrics

    (state, _), metrics = jax.lax.scan(one, (state, jnp.zeros((), bool)), rows_of_parts)
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    if first is None:
      return state, metrics
    if limits:
      first["optim/stopped"] = Mean(jnp.zeros(()), jnp.ones(()))
    return state, jax.tree.map(jnp.add, first, metrics)

  def train_step(state: TrainState, frozen, batch, config):
    if minibatches * accumulate == 1 and algorithm.at_once is not None:
      state, learned, (batch, metrics) = learn(state, frozen, batch, config, algorithm.at_once)
      if epochs > 1:
        state, learned = learn_in_parts(state, frozen, batch, config, learned)
    else:
      batch, metrics = algorithm.annotate(state.params, frozen, batch, config, state.extra)
      if epochs * minibatches > 1:
        state, learned = learn_in_parts(state, frozen, batch, config)
      else:
        state, learned, _ = learn(state, frozen, algorithm.per_update(batch, config), config)
    metrics = {**metrics, **learned}
    values = {name: mean.value for name, mean in metrics.items()}
    values["rollout/episodes"] = jnp.asarray(jax.tree.leaves(batch)[0].shape[0], jnp.float32)
    extra = algorithm.update_extra(state.extra, state.params, values, config)
    return state.replace(step=state.step + 1, extra=extra), metrics

  return train_step


def _gradients(loss: Callable, state: TrainState, frozen, batch, config, accumulate: int):
  def objective(params, batch, counts):
    terms, metrics, *rest = loss(params, frozen, batch, config, state.extra)
    counts = counts or {name: term.count for name, term in terms.items()}
    total = sum(t.sum / jnp.maximum(counts[name], 1e-8) for name, t in terms.items())
    losses = {f"loss/{name}": term for name, term in terms.items()}
    return total, ({**losses, **metrics}, rest)

  gradient = jax.grad(objective, has_aux=True)
  if accumulate == 1:
    gradients, (metrics, rest) = gradient(state.params, batch, None)
  else:
    micro = parts.split(batch, accumulate)

    def counts_of(part):  # depends on masks alone: the compiler drops the model from this pass
      terms, _ = loss(state.params, frozen, part, config, state.extra)
      return {name: term.count for name, term in terms.items()}

    counts = jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.lax.map(counts_of, micro))
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], micro), counts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, (metrics, rest)), _ = jax.lax.scan(
      lambda sums, part: (add(sums, gradient(state.params, part, counts)), None), zeros, micro
    )
  metrics["loss/total"] = Mean(
    sum(m.value for name, m in metrics.items() if name.startswith("loss/")), jnp.ones(())
  )
  return gradients, metrics, rest
