import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlhf_jax.ops import sampling

LOGITS = jnp.log(jnp.asarray([[0.4, 0.05, 0.3, 0.2, 0.05], [0.02, 0.9, 0.03, 0.03, 0.02]]))


def draws(logits, count, seed=0):
  keys = jax.random.split(jax.random.key(seed), count)
  rows = jnp.broadcast_to(logits[None], (count, logits.shape[0]))
  return np.asarray(jax.jit(sampling.categorical)(keys, rows))


def kept(logits):
  return [set(np.flatnonzero(np.isfinite(row))) for row in np.asarray(logits)]


# One block of the cumulative distribution, several, and a last one that is not full.
@pytest.mark.parametrize("vocabulary", [7, 256, 700])
def test_draws_follow_the_distribution(vocabulary):
  logits = jnp.asarray(np.random.default_rng(vocabulary).normal(0, 1, vocabulary), jnp.float32)
  count = 40 * vocabulary
  observed = np.bincount(draws(logits, count), minlength=vocabulary)
  expected = np.asarray(jax.nn.softmax(logits), np.float64)
  expected *= count / expected.sum()
  assert scipy_stats.chisquare(observed, expected).pvalue > 0.01


def test_a_token_of_probability_zero_is_never_drawn():
  logits = jnp.zeros(600).at[jnp.asarray([0, 5, 255, 256, 599])].set(-jnp.inf)
  logits = logits.at[300:599].set(-jnp.inf)  # the last block holds nothing at all
  drawn = set(draws(logits, 20_000))
  assert drawn == set(range(1, 300)) - {5, 255, 256}


def test_a_certain_token_is_always_drawn():
  for token in (0, 255, 256, 511, 599):
    logits = jnp.full(600, -jnp.inf).at[token].set(0.0)
    assert set(draws(logits, 50)) == {token}


def test_a_row_depends_on_its_own_key_alone():
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 13)), jnp.float32)
  keys = jax.random.split(jax.random.key(3), 6)
  together = sampling.categorical(keys, logits)
  alone = [sampling.categorical(keys[i : i + 1], logits[i : i + 1])[0] for i in range(6)]
  turned = sampling.categorical(keys[::-1], logits[::-1])[::-1]
  np.testing.assert_array_equal(together, alone)
  np.testing.assert_array_equal(together, turned)


def test_rows_with_different_keys_differ():
  assert len(set(draws(jnp.zeros(1000), 50))) > 40


def test_top_k_keeps_the_k_largest():
  assert kept(sampling.truncate(LOGITS, top_k=2))[0] == {0, 2}
  assert kept(sampling.truncate(LOGITS, top_k=1)) == [{0}, {1}]
  assert kept(sampling.truncate(LOGITS, top_k=99)) == [set(range(5))] * 2


# The second row's first token alone holds 0.9.
@pytest.mark.parametrize(
  ("top_p", "first", "second"),
  [
    (0.39, {0}, {1}),
    (0.41, {0, 2}, {1}),
    (0.69, {0, 2}, {1}),
    (0.89, {0, 2, 3}, {1}),
    (1e-6, {0}, {1}),
    (1.0, set(range(5)), set(range(5))),
  ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, first, second):
  assert kept(sampling.truncate(LOGITS, top_p=top_p)) == [first, second]


@pytest.mark.parametrize(
  ("min_p", "first", "second"), [(0.1, {0, 1, 2, 3, 4}, {1}), (0.6, {0, 2}, {1}), (1.0, {0}, {1})]
)
def test_min_p_is_relative_to_the_most_probable(min_p, first, second):
  assert kept(sampling.truncate(LOGITS, min_p=min_p)) == [first, second]


def test_filters_apply_one_after_another():
  # Top 3 of row 0 are 4/9, 3/9, 2/9 of what is left; 0.75 needs the first two.
  assert kept(sampling.truncate(LOGITS, top_k=3, top_p=0.75))[0] == {0, 2}
  assert kept(sampling.truncate(LOGITS, top_p=0.75))[0] == {0, 2, 3}


def test_equally_probable_tokens_are_kept_or_dropped_together():
  tied = jnp.log(jnp.asarray([[0.3, 0.3, 0.3, 0.1]]))
  assert kept(sampling.truncate(tied, top_p=0.4)) == [{0, 1, 2}]
  assert kept(sampling.truncate(tied, top_k=2)) == [{0, 1, 2}]


def test_what_is_kept_renormalises():
  probs = jax.nn.softmax(sampling.truncate(LOGITS, top_k=2), axis=-1)
  np.testing.assert_allclose(probs[0], [4 / 7, 0, 3 / 7, 0, 0], rtol=1e-6)


def test_without_filters_nothing_changes():
  np.testing.assert_array_equal(sampling.truncate(LOGITS), LOGITS)
