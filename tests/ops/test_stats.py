import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import stats
from rlhf_jax.types import Mean

VALUES = jnp.asarray([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]])
MASK = jnp.asarray([[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
POISON = [1e9, -1e9, np.nan, np.inf]


def test_masked_statistics_by_hand():
  # 1, 2, 5, 7: mean 15/4, squares 79/4, variance 79/4 - 225/16 = 91/16
  np.testing.assert_allclose(stats.masked_mean(VALUES, MASK), 3.75, rtol=1e-6)
  np.testing.assert_allclose(stats.masked_var(VALUES, MASK), 91 / 16, rtol=1e-6)
  np.testing.assert_allclose(stats.row_sum(VALUES, MASK), [8.0, 7.0], rtol=1e-6)


def test_whitened_values_have_mean_zero_and_variance_one():
  whitened = stats.whiten(VALUES, MASK)
  np.testing.assert_allclose(stats.masked_mean(whitened, MASK), 0.0, atol=1e-6)
  np.testing.assert_allclose(stats.masked_var(whitened, MASK), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(whitened * (1 - MASK), np.zeros((2, 5)))


def test_whitening_without_the_shift_keeps_the_mean():
  whitened = stats.whiten(VALUES, MASK, shift_mean=False)
  np.testing.assert_allclose(stats.masked_mean(whitened, MASK), 3.75, rtol=1e-6)
  np.testing.assert_allclose(stats.masked_var(whitened, MASK), 1.0, rtol=1e-5)


FUNCTIONS = {
  "masked_mean": stats.masked_mean,
  "masked_var": stats.masked_var,
  "whiten": stats.whiten,
  "row_sum": stats.row_sum,
  "explained_variance": lambda x, mask: stats.explained_variance(x, 2.0 * VALUES, mask),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_lies_outside_the_mask_never_reaches_the_result(name, poison):
  poisoned = jnp.where(MASK > 0, VALUES, poison)
  clean, got = FUNCTIONS[name](VALUES, MASK), FUNCTIONS[name](poisoned, MASK)
  np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize("name", ["masked_mean", "masked_var", "whiten", "row_sum"])
def test_nor_the_gradient(name):
  total = lambda x: jnp.sum(jnp.square(FUNCTIONS[name](x, MASK)))
  clean = jax.grad(total)(VALUES)
  got = jax.grad(total)(jnp.where(MASK > 0, VALUES, jnp.nan))
  np.testing.assert_array_equal(got, clean)


def test_an_empty_mask_gives_zeros_and_not_nan():
  nothing = jnp.zeros_like(MASK)
  assert stats.masked_mean(VALUES, nothing) == 0
  assert stats.masked_var(VALUES, nothing) == 0
  np.testing.assert_array_equal(stats.whiten(VALUES, nothing), np.zeros((2, 5)))


def test_means_of_unequal_parts_add_up_to_the_mean_of_the_whole():
  whole = stats.masked_sum(VALUES, MASK)
  parts = [stats.masked_sum(VALUES[i : i + 1], MASK[i : i + 1]) for i in range(2)]
  summed = Mean(*(a + b for a, b in zip(*parts, strict=True)))
  assert float(summed.value) == float(whole.value) == 3.75


def test_batch_mean_counts_every_entry():
  mean = stats.batch_mean(VALUES)
  assert (float(mean.sum), float(mean.count), float(mean.value)) == (55.0, 10.0, 5.5)


def test_explained_variance_is_one_when_perfect_and_zero_for_the_mean():
  np.testing.assert_allclose(stats.explained_variance(VALUES, VALUES, MASK), 1.0)
  constant = jnp.full_like(VALUES, 3.75)
  np.testing.assert_allclose(stats.explained_variance(constant, VALUES, MASK), 0.0, atol=1e-6)
