"""The train step compiles once, stops on KL, and steps as far as the learning rate says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.config import hyperparameters
from rlhf_jax.training import optimizer
from rlhf_jax.training.step import init_state, make_train_step
from rlhf_jax.types import Algorithm, Mean, keep_extra, no_annotation, no_extra


@hyperparameters
class Config:
  learning_rate: float = 0.1
  target: float = 2.0
  stop_kl: float | None = None
  stop_ratio: float | None = None


def distance_to_target(traces: list):
  """½ (w − target · x)², whose gradient is w − target · x; "KL" and "ratio" are how far w has come."""

  def loss(params, frozen, batch, config, extra):
    traces.append(1)
    error = params["w"] - config.target * batch["x"]
    terms = {"square": Mean(jnp.sum(0.5 * jnp.square(error)), jnp.asarray(error.size, jnp.float32))}
    moved = Mean(jnp.abs(params["w"]), jnp.ones(()))
    return terms, {"policy/approx_kl": moved, "policy/ratio": moved}

  return Algorithm(no_extra, no_annotation, loss, keep_extra)


def run(config, steps, *, traces=None, **parts):
  algorithm, tx = distance_to_target([] if traces is None else traces), optax.identity()
  state = init_state(jax.random.key(0), {"w": jnp.zeros(())}, algorithm, tx, config)
  train_step = jax.jit(make_train_step(algorithm, tx, **parts))
  for step in range(steps):
    moved = dataclasses.replace(config, target=config.target + 0.0 * step)
    state, metrics = train_step(state, {}, {"x": jnp.ones(8)}, moved)
  return state, metrics


def test_a_step_goes_the_learning_rate_times_the_gradient():
  state, metrics = run(Config(learning_rate=0.25, target=2.0), 1)
  assert float(state.params["w"]) == pytest.approx(0.5)
  assert float(metrics["loss/total"].value) == pytest.approx(2.0)
  assert float(metrics["optim/grad_norm"].value) == pytest.approx(2.0)
  assert int(state.step) == 1


@pytest.mark.parametrize("parts", [{}, dict(epochs=2, minibatches=2), dict(accumulate=2)])
def test_steps_and_changed_coefficients_trace_once(parts):
  traces = []
  run(Config(), 1, traces=traces, **parts)
  once = len(traces)
  traces.clear()
  state, _ = run(Config(), 4, traces=traces, **parts)
  assert len(traces) == once
  assert int(state.step) == 4


def test_epochs_and_minibatches_are_that_many_updates():
  state, _ = run(Config(learning_rate=0.5, target=1.0), 1, epochs=2, minibatches=4)
  assert float(state.params["w"]) == pytest.approx(1 - 0.5**8)


@pytest.mark.parametrize("rules", [("stop_kl",), ("stop_ratio",), ("stop_kl", "stop_ratio")])
def test_updates_cease_once_the_kl_or_the_ratio_exceeds_its_limit(rules):
  # w after each update: 0.5, 0.75, 0.875, ...; the first update that starts from w > 0.6 is the last.
  config = Config(learning_rate=0.5, target=1.0, **dict(zip(rules, (0.6, 10.0), strict=False)))
  state, metrics = run(config, 1, epochs=2, minibatches=4)
  assert float(state.params["w"]) == pytest.approx(0.875)
  assert float(metrics["optim/stopped"].value) > 0
  free, _ = run(dataclasses.replace(config, **{rules[0]: 10.0}), 1, epochs=2, minibatches=4)
  assert float(free.params["w"]) == pytest.approx(1 - 0.5**8)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
  whole, _ = run(Config(), 3)
  parts, _ = run(Config(), 3, accumulate=4)
  np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-6)


@pytest.mark.parametrize("schedule, last", [("constant", 1.0), ("linear", 0.1), ("cosine", 0.0245)])
def test_schedules_rise_to_one_and_fall_as_named(schedule, last):
  settings = optimizer.Settings(
    optimizer="sgd", b1=0.0, schedule=schedule, clip_norm=None, warmup=0.5
  )
  tx = optimizer.make_optimizer(settings, updates=20)
  state, scales = tx.init({"w": jnp.zeros(())}), []
  for _ in range(20):
    update, state = tx.update({"w": jnp.ones(())}, state, {"w": jnp.zeros(())})
    scales.append(float(update["w"]))
  np.testing.assert_allclose(scales[:11], np.linspace(0.1, 1.0, 11), rtol=1e-5)
  assert scales[-1] == pytest.approx(last, abs=1e-3)


def directions(name: str, gradients, eps: float) -> list[float]:
  tx = optimizer.DIRECTIONS[name](optimizer.Settings(b1=0.9, b2=0.99, eps=eps))
  state, found = tx.init({"w": jnp.zeros(())}), []
  for gradient in gradients:
    update, state = tx.update({"w": jnp.asarray(gradient)}, state)
    found.append(float(update["w"]))
  return found


def test_tensorflows_adam_by_hand():
  """m 0.05, then −0.055; v 0.0025, then 0.012475; √(1 − β₂ᵗ)/(1 − β₁ᵗ) 1, then 0.7424598."""
  expected = [0.05 / 0.15, -0.7424598 * 0.055 / (0.1116915 + 0.1)]
  np.testing.assert_allclose(directions("adam_tf", [0.5, -1.0], eps=0.1), expected, rtol=1e-5)
  # Where ε is nothing, the two agree; where it counts, TensorFlow's first steps are smaller.
  few = [0.5, -1.0, 2.0]
  same = directions("adamw", few, eps=1e-12)
  np.testing.assert_allclose(directions("adam_tf", few, eps=1e-12), same, rtol=1e-5)
  assert directions("adam_tf", [0.5], eps=0.1) < directions("adamw", [0.5], eps=0.1)


@pytest.mark.parametrize("name", sorted(optimizer.DIRECTIONS))
def test_every_optimizer_descends(name):
  tx = optimizer.make_optimizer(optimizer.Settings(optimizer=name, schedule="constant"), 50)
  params = {"w": jnp.full((3, 2), 4.0)}
  state = tx.init(params)
  for _ in range(50):
    update, state = tx.update(params, state, params)  # the gradient of ½ w²
    params = jax.tree.map(lambda p, u: p - 0.1 * u, params, update)
  assert float(jnp.abs(params["w"]).max()) < 1.0
