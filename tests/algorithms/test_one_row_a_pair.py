"""Both answers of a pair in one row, their prompt once: what is learned is what two rows would teach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import dpo, reward_model
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Layout, Pair
from rlhf_jax.models import heads, llama, policy, registry

V, D = 17, 8
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=12,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_positions=32,
    initializer_range=0.3,
  )
)
POLICY = policy.make_policy(MODEL, critic="shared", chunk=8)
SCORER = policy.make_scorer(MODEL)
APART = Layout(12)
NARROW = Layout(12, asked=8, shared=16, asked_shared=12)
WIDE = Layout(12, asked=9, shared=21, asked_shared=13)
FORKED = Layout(12, asked=8, shared=16, asked_shared=12, fork=6)
PACKED = Layout(12, asked=8, shared=16, packed=3)  # rows of 12, 7, 5, 5 and 5 tokens


def answered(prompt: list[int], response: list[int]) -> Example:
  return Example.prompt("p", prompt).continued("a", response)


# Of uneven length; answers that begin alike, of which one is the other's beginning, that are equal; no prompt.
PAIRS = [
  Pair(answered([3, 1, 4, 1, 5], [9, 2, 6]), answered([3, 1, 4, 1, 5], [5, 3, 5, 8])),
  Pair(answered([2, 7], [1, 8, 2, 8]), answered([2, 7], [1, 8, 4]), preference=0.5),
  Pair(answered([6, 6], [2]), answered([6, 6], [2, 3, 4])),
  Pair(answered([1, 6, 1], [8, 0]), answered([1, 6, 1], [8, 0])),
  Pair(answered([], [4, 5, 6]), answered([], [7, 8]), preference=0.8),
]


@pytest.fixture(scope="module")
def params():
  keys = jax.random.split(jax.random.key(0), 3)
  return {
    "model": MODEL.init(keys[0]),
    "value_head": heads.init_head(keys[1], D, 0.5),
    "reward_head": heads.init_head(keys[2], D, 0.5, outputs=2),
  }


@pytest.fixture(scope="module")
def frozen():
  return {"base": {}, "reference": {"model": MODEL.init(jax.random.key(9))}}


def batch_of(layout: Layout, pairs=PAIRS):
  return jax.tree.map(jnp.asarray, examples.collate_records(pairs, layout))


def sides(rows, found):
  """What was found of the answers' own tokens, chosen and rejected; 0 elsewhere."""
  mask = jnp.stack([rows.chosen.response_mask, rows.rejected.response_mask], axis=1)
  return jax.tree.map(lambda x: np.asarray(x * mask), found)


def told(params, layout, pairs=PAIRS):
  """Log-probabilities, entropies and values of every response token, [B, 2, T] each."""
  batch = batch_of(layout, pairs)
  rows = batch.both if batch.together is None else batch.together
  found = jax.jit(POLICY.evaluate)(params, {}, rows, 0.7)
  if batch.together is None:
    found = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2), axis=1), found)
  return sides(batch, found)


@pytest.fixture(scope="module")
def apart(params):
  return told(params, APART)


@pytest.mark.parametrize("layout", [NARROW, WIDE, FORKED, PACKED])
def test_a_shared_prompt_and_its_padding_change_nothing_that_is_said_of_an_answer(
  params, apart, layout
):
  for got, want in zip(told(params, layout), apart, strict=True):
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_continuation_does_not_see_the_other(params, apart):
  others = [pair._replace(rejected=answered(pair.chosen.tokens[:1], [16, 0])) for pair in PAIRS]
  for got, want in zip(told(params, NARROW, others), apart, strict=True):
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [NARROW, PACKED])
@pytest.mark.parametrize(
  ("algorithm", "config"),
  [
    (dpo.make(POLICY), dpo.Config(beta=0.5, wpo=True, nll_coef=0.3)),
    (reward_model.make(SCORER), reward_model.Config(centering=0.1)),
  ],
  ids=["dpo", "reward_model"],
)
def test_loss_and_gradient_are_those_of_answers_apart(params, frozen, algorithm, config, layout):
  def total(params, batch):
    extra = algorithm.init_extra(params, config)
    batch, _ = algorithm.annotate(params, frozen, batch, config, extra)
    terms, metrics = algorithm.loss(params, frozen, batch, config, extra)
    return sum(term.value for term in terms.values()), metrics

  learn = jax.jit(jax.value_and_grad(total, has_aux=True))
  (expected, expected_metrics), expected_gradient = learn(params, batch_of(APART))
  (loss, metrics), gradient = learn(params, batch_of(layout))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), metrics, expected_metrics
  )
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected_gradient))
  for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("layout", [NARROW, PACKED])
def test_scores_of_tokens_are_aggregated_over_each_answer(params, layout):
  score = jax.jit(policy.make_scorer(MODEL, reading=policy.Reading(aggregate="mean")).score)
  tree = {**params, "reward_head": heads.init_head(jax.random.key(3), D, 0.5)}
  shared = score(tree, {}, batch_of(layout).together)
  plain = score(tree, {}, batch_of(APART).both)
  np.testing.assert_allclose(shared.T.ravel(), plain, rtol=1e-5, atol=1e-5)
