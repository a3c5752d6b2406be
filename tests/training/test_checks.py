"""What a run must show of itself: the reported total, and a KL that its controller holds at the target."""

import functools
import json

import jax
import jax.numpy as jnp
import optax
import pytest

from rlhf_jax import types
from rlhf_jax.algorithms import ppo
from rlhf_jax.training import checks
from rlhf_jax.training.step import init_state, make_train_step

ROW = {
  "rewards/shaped": 2.0,
  "policy/kl_coef": 0.5,
  "policy/kl_penalty": 3.0,
  "rewards/total": 0.5,
}


def test_a_total_that_is_not_score_less_kl_is_found():
  assert checks.total([ROW, ROW]).holds
  wrong = checks.total([ROW, {**ROW, "rewards/total": 0.51}])
  assert not wrong.holds and "IS NOT" in wrong.says and wrong.found["total_error"] > 1e-3
  in_loss = {**ROW, "rewards/total": 2.0}
  assert checks.total([in_loss], in_reward=False).holds and not checks.total([in_loss]).holds
  assert checks.total([{"rewards/total": 1.0}]) is None  # of an algorithm that does not log it


@pytest.mark.parametrize(("last", "holds"), [(6.5, True), (5.5, True), (6.7, False), (5.3, False)])
def test_the_kl_of_the_last_fifth_is_compared_with_its_target(last, holds):
  rows = [{"policy/kl_k1": 60.0}] * 8 + [{"policy/kl_k1": last - 1}, {"policy/kl_k1": last + 1}]
  found = checks.held(rows, 6.0)
  assert found.holds == holds and found.found["kl_last_fifth"] == pytest.approx(last)


def test_a_stages_own_rows_are_read(tmp_path):
  config = ppo.Config(kl_target=6.0, kl_horizon=10.0)
  assert checks.of_stage(tmp_path, "ppo", config) == []
  rows = [{"stage": s, "step": 1, "policy/kl_k1": kl, **ROW} for s, kl in (("a2c", 1), ("ppo", 6))]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert [check.holds for check in checks.of_stage(tmp_path, "ppo", config)] == [True, True]
  assert len(checks.of_stage(tmp_path, "ppo", ppo.Config())) == 1


def test_a_run_reports_its_checks(tiny_run):
  results = json.loads((tiny_run[1] / "results.json").read_text())
  assert results["ppo/total_error"] < checks.ROUNDING and "ppo/kl_target" not in results


# A policy of one token out of five, a table of logits; some tokens score better.
SCORES = jnp.asarray([0.0, 0.5, 1.0, 2.0, -1.0])
B = 256


def evaluate(params, frozen, rows, temperature):
  logps = jax.nn.log_softmax(params["logits"])[rows.tokens]
  values = jnp.broadcast_to(params["value"], logps.shape)
  return types.TokenStats(logps, jnp.zeros_like(logps), values)


def compare(params, other, frozen, rows, temperature):
  mine, theirs = (evaluate(p, frozen, rows, temperature) for p in (params, other))
  return mine, theirs, jnp.zeros_like(mine.logps)


@functools.partial(jax.jit, static_argnames="steps")
def metrics_of(config: ppo.Config, steps: int) -> dict[str, jax.Array]:
  """Of each step of PPO from the uniform policy, float32[steps] each."""
  algorithm, tx = ppo.make(types.Policy(evaluate, compare)), optax.scale_by_adam()
  start = {"logits": jnp.zeros(5), "value": jnp.zeros(())}
  train = make_train_step(algorithm, tx, epochs=config.epochs)
  ones = jnp.ones((B, 1))

  def one(state, key):
    tokens = jax.random.categorical(key, state.params["logits"], shape=(B, 1))
    rollout = types.Rollout(
      sequences=types.Sequences.from_mask(tokens, ones, ones),
      logps=jnp.zeros((B, 1)),
      rewards=SCORES[tokens],
      truncated=jnp.zeros(B, bool),
    )
    state, metrics = train(state, {"reference": start}, rollout, config)
    return state, {name: metric.value for name, metric in metrics.items()}

  state = init_state(jax.random.key(1), start, algorithm, tx, config)
  keys = jax.random.split(jax.random.key(2), steps)
  return jax.lax.scan(one, state, keys)[1]


@pytest.mark.parametrize("target", [0.3, 0.8])
def test_the_controller_holds_the_kl_at_its_target(target):
  config = ppo.Config(learning_rate=0.05, epochs=2, kl_coef=0.5, kl_target=target)
  found = jax.device_get(metrics_of(config.for_run("ppo", steps=150, episodes=B), steps=150))
  rows = [{name: float(values[i]) for name, values in found.items()} for i in range(150)]
  assert checks.held(rows, target).holds, checks.held(rows, target).says
  assert checks.total(rows).holds
  assert rows[-1]["policy/kl_coef"] != pytest.approx(0.5, rel=0.1)  # it had to move for that
