"""Mean scores and paired gains, with intervals that one can check."""

import numpy as np
import pytest

from rlhf_jax.evaluation import scores
from rlhf_jax.evaluation.classification import Z95


def test_right_and_wrong_have_wilsons_interval_also_where_all_are_wrong():
  value, low, high = scores.mean([1.0, 0.0, 0.0, 1.0, 0.0])
  # (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) at p = 2/5, n = 5
  z2 = Z95**2
  ends = (0.4 + z2 / 10 + np.asarray([-1, 1]) * Z95 * np.sqrt(0.048 + z2 / 100)) / (1 + z2 / 5)
  np.testing.assert_allclose([value, low, high], [0.4, *ends], rtol=1e-12)
  nothing = scores.mean([0.0] * 5)
  assert nothing[:2] == (0.0, 0.0) and nothing.high == pytest.approx(z2 / 5 / (1 + z2 / 5))


def test_other_scores_have_a_bootstrap_interval_of_the_width_of_the_mean():
  drawn = np.random.default_rng(0).normal(3.0, 2.0, 400)
  value, low, high = scores.mean(drawn)
  assert value == pytest.approx(drawn.mean())
  half = Z95 * drawn.std() / 20
  np.testing.assert_allclose([low, high], [value - half, value + half], atol=0.15 * half)


def test_a_gain_is_paired_so_that_what_both_share_widens_nothing():
  rng = np.random.default_rng(1)
  difficulty, better = rng.normal(0, 10.0, 300), rng.normal(0.5, 0.1, 300)
  gain = scores.gain(difficulty + better, difficulty)
  assert gain.value == pytest.approx(better.mean())
  assert gain.high - gain.low < 0.03  # unpaired it would be above 3
  assert scores.gain(difficulty, difficulty) == (0.0, 0.0, 0.0)


def test_scores_that_cannot_be_compared_are_refused():
  with pytest.raises(ValueError, match="2 and 1 scores; give one of each per prompt"):
    scores.gain([1.0, 2.0], [1.0])
  with pytest.raises(ValueError, match="1 scores are not finite, the first is of prompt 1"):
    scores.mean([1.0, np.nan])
  with pytest.raises(ValueError, match="give one per prompt"):
    scores.mean([])
