"""Importance weights: by hand, against the recorded numbers of other libraries, and by enumeration."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import importance

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
MASK = jnp.asarray([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
SAMPLER = jnp.log(jnp.asarray([[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]]))
LEARNER = jnp.log(jnp.asarray([[0.9, 0.5, 0.75], [0.9, 0.25, 0.9]]))  # ratios 2, 1.5 and 0.5


@pytest.mark.parametrize(
  "level, mode, low, high, expected",
  [
    ("token", "truncate", 0.0, 9.0, [[0, 2, 1.5], [0, 0.5, 0]]),
    ("token", "truncate", 0.75, 1.75, [[0, 1.75, 1.5], [0, 0.75, 0]]),
    ("token", "mask", 0.75, 1.75, [[0, 0, 1.5], [0, 0, 0]]),
    ("sequence", "truncate", 0.0, 9.0, [[0, 3, 3], [0, 0.5, 0]]),
    ("sequence", "truncate", 0.0, 2.5, [[0, 2.5, 2.5], [0, 0.5, 0]]),
    ("sequence", "mask", 0.0, 2.5, [[0, 0, 0], [0, 0.5, 0]]),
  ],
)
def test_weights_are_ratios_within_their_bounds(level, mode, low, high, expected):
  weights = importance.weights(LEARNER, SAMPLER, MASK, level=level, mode=mode, low=low, high=high)
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


def recorded():
  for name in ("rl_trl_1_16", "rl_verl"):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    for case in golden["cases"]:
      if case["kind"] == "sampler_weights":
        yield pytest.param(case, id=f"{golden['library']}: {case['name']}")


@pytest.mark.parametrize("case", recorded())
def test_weights_are_those_of_other_libraries(case):
  x = {name: jnp.asarray(value, jnp.float32) for name, value in case["inputs"].items()}
  low, high = case["settings"]["low"] or 0.0, case["settings"]["high"]
  weights = importance.weights(
    x["old_logps"],
    x["sampler_logps"],
    x["mask"],
    level=case["settings"]["level"],
    mode=case["settings"]["mode"],
    low=low,
    high=high,
  )
  theirs = jnp.broadcast_to(jnp.asarray(case["outputs"]["weights"]), x["mask"].shape) * x["mask"]
  np.testing.assert_allclose(weights, theirs, rtol=2e-6, atol=1e-7)


def test_what_stands_outside_the_mask_never_counts():
  poison = lambda x: jnp.where(MASK > 0, x, jnp.nan)
  bounds = dict(level="sequence", mode="truncate", low=0.0, high=9.0)
  weights = importance.weights(poison(LEARNER), poison(SAMPLER), MASK, **bounds)
  np.testing.assert_array_equal(weights, importance.weights(LEARNER, SAMPLER, MASK, **bounds))
  metrics = importance.mismatch(poison(LEARNER), poison(SAMPLER), MASK)
  log2 = np.log(2)
  assert metrics["rollout/mismatch"].value == pytest.approx((2 * log2 + np.log(1.5)) / 3, rel=1e-6)
  assert metrics["rollout/mismatch_max"].value == pytest.approx(log2, rel=1e-6)
  k3 = sum(r - 1 - np.log(r) for r in (2.0, 1.5, 0.5)) / 3
  assert metrics["rollout/mismatch_kl"].value == pytest.approx(k3, rel=1e-5)


V, T = 3, 3
ANSWERS = np.asarray(list(itertools.product(range(V), repeat=T)))  # [27, T]


def logps_of(logits, answers):
  """log π of every token, float64[N, T]; `logits[t]` float64[V ** t, V], one row a beginning."""
  columns = []
  for t in range(T):
    row = (
      np.ravel_multi_index(tuple(answers[:, :t].T), (V,) * t) if t else np.zeros(len(answers), int)
    )
    logp = jax.nn.log_softmax(logits[t][row], axis=-1)
    columns.append(jnp.take_along_axis(logp, jnp.asarray(answers[:, t])[:, None], axis=1)[:, 0])
  return jnp.stack(columns, axis=1)


def gradients(level, high=np.inf):
  """(exact, expected with weights, expected without) gradients of E[score] when another policy wrote."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    draw = lambda: [jnp.asarray(rng.normal(size=(V**t, V))) for t in range(T)]
    learner, scores = draw(), jnp.asarray(rng.normal(size=len(ANSWERS)))
    sampler = [x + 0.5 * d for x, d in zip(learner, draw(), strict=True)]
    p = lambda logits: jnp.exp(jnp.sum(logps_of(logits, ANSWERS), axis=1))
    exact = jax.grad(lambda logits: jnp.sum(p(logits) * scores))(learner)
    mask, written = jnp.ones(ANSWERS.shape), logps_of(sampler, ANSWERS)
    weights = importance.weights(
      logps_of(learner, ANSWERS), written, mask, level=level, mode="truncate", low=0.0, high=high
    )

    def expected(weights):
      surrogate = lambda logits: jnp.sum(
        p(sampler) * scores * jnp.sum(weights * logps_of(logits, ANSWERS), axis=1)
      )
      return jax.grad(surrogate)(learner)

    flat = lambda tree: np.concatenate([np.ravel(x) for x in tree])
    return flat(exact), flat(expected(weights)), flat(expected(mask))


def cosine(a, b):
  return a @ b / np.sqrt((a @ a) * (b @ b))


def test_whole_answers_are_corrected_exactly():
  exact, weighted, unweighted = gradients("sequence")
  np.testing.assert_allclose(weighted, exact, atol=1e-12)
  assert cosine(unweighted, exact) < 0.98


def test_tokens_are_corrected_in_part():
  exact, weighted, unweighted = gradients("token")
  error = lambda x: np.linalg.norm(x - exact) / np.linalg.norm(exact)
  assert 0.01 < error(weighted) < error(unweighted)


def test_a_bound_leaves_a_bias():
  exact, weighted, _ = gradients("sequence", high=1.5)
  assert 1e-3 < 1 - cosine(weighted, exact) < 0.05
