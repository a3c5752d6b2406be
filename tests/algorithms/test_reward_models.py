"""Reward models of every form of feedback: losses by hand, against their equations in float64, and what they recover.

A scorer here is a table: `params["scores"]` are the rewards themselves, so nothing stands between a
loss and the numbers that it is about.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize, special

from rlhf_jax import types
from rlhf_jax.algorithms import (
  reward_from_classes,
  reward_from_marks,
  reward_from_rankings,
  reward_from_ratings,
  reward_from_tokens,
  reward_model,
  reward_odin,
)
from rlhf_jax.ops import reward


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def sequences(*shape) -> types.Sequences:
  """Answers that are their own row numbers: the k-th answer of the batch is the token k, after a prompt of one token."""
  rows = jnp.arange(np.prod(shape)).reshape(shape)
  tokens = jnp.stack([jnp.zeros_like(rows), rows], axis=-1)
  ones = jnp.ones_like(tokens, jnp.int32)
  chosen = jnp.zeros(tokens.shape).at[..., 1].set(1.0)
  return types.Sequences(tokens, jnp.cumsum(ones, axis=-1) - 1, ones, chosen)


def rows_of(batch: types.Sequences):
  return batch.tokens[:, 1]


SCORER = types.Scorer(
  score=lambda params, frozen, batch: jnp.asarray(params["scores"])[rows_of(batch)],
  outputs=lambda params, frozen, batch: jnp.asarray(params["scores"])[rows_of(batch)],
  tokens=lambda params, frozen, batch: params["scores"],
)


def loss_of(module, config, params, batch):
  """The sum of the terms' values."""
  algorithm = module.make(SCORER)
  batch, _ = algorithm.annotate(params, {}, batch, config, {})
  terms, _ = algorithm.loss(params, {}, batch, config, {})
  return sum(term.value for term in terms.values())


def assert_slope(function, params):
  """The gradient in every direction of `params`, by central differences."""
  params = jax.tree.map(jnp.asarray, params)
  flat, unravel = ravel_pytree(params)
  function = jax.jit(function)
  got, _ = ravel_pytree(jax.grad(function)(params))
  h = 1e-5
  for i in range(flat.size):
    step = jnp.zeros_like(flat).at[i].set(h)
    slope = (function(unravel(flat + step)) - function(unravel(flat - step))) / (2 * h)
    np.testing.assert_allclose(got[i], slope, rtol=1e-6, atol=1e-8)


def labelled(labels) -> types.LabelledBatch:
  return types.LabelledBatch(sequences(len(labels)), jnp.asarray(labels))


# Pairs.

CHOSEN, REJECTED = np.array([1.0, 0.5, -1.0, 2.0]), np.array([0.0, 1.5, -1.5, 0.5])
PREFERENCE = np.array([1.0, 0.5, 0.7, 0.0])
MARGIN = np.array([0.25, 0.0, -0.5, 1.0])


def pairs(preference=PREFERENCE, margin=MARGIN) -> types.PreferenceBatch:
  """Pairs (0, B), (1, B + 1), …: the scores are all chosen, then all rejected."""
  B = len(preference)
  rows = sequences(2 * B)
  chosen, rejected = jax.tree.map(lambda x: x[:B], rows), jax.tree.map(lambda x: x[B:], rows)
  return types.PreferenceBatch(chosen, rejected, jnp.asarray(preference), jnp.asarray(margin))


def table(chosen=CHOSEN, rejected=REJECTED, **link) -> dict:
  made = {"scores": np.concatenate([chosen, rejected])}
  return {**made, "link": link} if link else made


def log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def bradley_terry(config) -> float:
  """The documented formula, in NumPy."""
  d = CHOSEN - REJECTED - (MARGIN if config.margin else 0.0)
  p = (1 - config.label_smoothing) * PREFERENCE + config.label_smoothing * (1 - PREFERENCE)
  return np.mean(-p * log_sigmoid(d) - (1 - p) * log_sigmoid(-d))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [False, True])
def test_bradley_terry_is_its_formula(margin, smoothing):
  config = reward_model.Config(margin=margin, label_smoothing=smoothing)
  loss = lambda p: loss_of(reward_model, config, p, pairs())
  np.testing.assert_allclose(loss(table()), bradley_terry(config), rtol=1e-12)
  assert_slope(loss, table())


@pytest.mark.parametrize(
  ("config", "preference", "expected"),
  [
    (dict(), 1.0, 0.31326169),  # log(1 + 1/e)
    (dict(), 0.5, 0.81326169),  # and half of that, half of log(1 + e)
    (dict(), 0.0, 1.31326169),
    (dict(margin=True), 1.0, 0.47407698),  # log(1 + e^-0.5)
    (dict(label_smoothing=0.1), 1.0, 0.41326169),
    (dict(centering=0.01), 1.0, 0.31326169 + 0.01 * 9.0),  # (2 + 1)²
  ],
)
def test_a_pair_by_hand(config, preference, expected):
  batch = pairs(np.array([preference]), np.array([0.5]))
  got = loss_of(reward_model, reward_model.Config(**config), table([2.0], [1.0]), batch)
  np.testing.assert_allclose(got, expected, rtol=1e-7)


@pytest.mark.parametrize(
  ("ties", "link", "preference", "expected"),
  [
    # Rao and Kupper, strengths 3 : 1, θ = 2: 3 / (3 + 2), 1 / (1 + 6), and what remains
    ("rao_kupper", dict(log_threshold=np.log(np.log(2.0))), 1.0, 3 / 5),
    ("rao_kupper", dict(log_threshold=np.log(np.log(2.0))), 0.0, 1 / 7),
    ("rao_kupper", dict(log_threshold=np.log(np.log(2.0))), 0.5, 1 - 3 / 5 - 1 / 7),
    # Davidson, strengths 3 : 1, ν = √3: 3 : 1 : √3 · √3
    ("davidson", dict(log_nu=0.5 * np.log(3.0)), 1.0, 3 / 7),
    ("davidson", dict(log_nu=0.5 * np.log(3.0)), 0.0, 1 / 7),
    ("davidson", dict(log_nu=0.5 * np.log(3.0)), 0.5, 3 / 7),
  ],
)
def test_a_tie_by_hand(ties, link, preference, expected):
  batch = pairs(np.array([preference]), np.zeros(1))
  params = table([np.log(3.0) + 5], [5.0], **link)
  got = loss_of(reward_model, reward_model.Config(ties=ties), params, batch)
  np.testing.assert_allclose(got, -np.log(expected), rtol=1e-12)


TIES = {"rao_kupper": dict(log_threshold=-0.7), "davidson": dict(log_nu=0.4)}


@pytest.mark.parametrize("ties", TIES)
def test_ties_have_the_slopes_of_their_differences(ties):
  config = reward_model.Config(ties=ties, margin=True, label_smoothing=0.1)
  assert_slope(lambda p: loss_of(reward_model, config, p, pairs()), table(**TIES[ties]))


@pytest.mark.parametrize(
  ("ties", "link"),
  [("rao_kupper", dict(log_threshold=-40.0)), ("davidson", dict(log_nu=-40.0))],
)
def test_where_nobody_ties_it_is_bradley_terry(ties, link):
  preference = np.array([1.0, 0.9, 0.7, 0.0])
  losses = [
    loss_of(reward_model, reward_model.Config(ties=name), table(**more), pairs(preference))
    for name, more in (("half", {}), (ties, link))
  ]
  np.testing.assert_allclose(*losses, rtol=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_equal_answers_tie_at_first_as_often_as_the_data_do(ties):
  labels = np.array([[1.0], [0.5], [0.5], [0.0], [1.0]] * 100)
  link = reward_model.begin(reward_model.Config(ties=ties), labels).link
  params = table([3.0], [3.0], **link)
  loss = loss_of(reward_model, reward_model.Config(ties=ties), params, pairs([0.5], [0.0]))
  np.testing.assert_allclose(np.exp(-loss), 200.5 / 501, rtol=1e-6)
  for alike in (labels * 0, labels * 0 + 0.5):  # none tie, all tie
    begun = reward_model.begin(reward_model.Config(ties=ties), alike)
    assert np.isfinite(list(begun.link.values())).all()


def test_the_accuracy_of_pairs_leaves_ties_out():
  # right; a tie; right, and decided softly; wrong, for the second was the better
  _, metrics = reward_model.make(SCORER).loss(table(), {}, pairs(), reward_model.Config(), {})
  np.testing.assert_allclose(metrics["rewards/accuracy"].value, 2 / 3)
  assert metrics["rewards/accuracy"].count == 3


# Length kept apart.

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(5, 2))
OUTPUTS = RNG.normal(size=(8, 2))


def uneven(batch: types.PreferenceBatch) -> types.PreferenceBatch:
  """Responses of 1, 2, … tokens in no order."""
  B = len(batch.preference)
  lengths = np.random.default_rng(1).permutation(2 * B)
  masks = (np.arange(2 * B)[None] < 1 + lengths[:, None]).astype(float)
  widen = lambda x, mask: jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 2 * B))), x).replace(
    response_mask=jnp.pad(jnp.asarray(mask), ((0, 0), (2, 0)))
  )
  return batch.replace(
    chosen=widen(batch.chosen, masks[:B]), rejected=widen(batch.rejected, masks[B:])
  )


def odin(outputs, kernel, config) -> float:
  """The documented formula, in NumPy."""
  batch = uneven(pairs())
  n = np.sum(np.concatenate([batch.chosen.response_mask, batch.rejected.response_mask]), axis=1)
  d = np.sum(outputs[:4] - outputs[4:], axis=1)
  ranking = np.mean(-PREFERENCE * log_sigmoid(d) - (1 - PREFERENCE) * log_sigmoid(-d))
  quality, length = (np.corrcoef(outputs[:, i], n)[0, 1] for i in range(2))
  cosine = np.dot(*kernel.T) / np.prod(np.linalg.norm(kernel, axis=0))
  return (
    ranking + config.length_coef * (abs(quality) - length) + config.orthogonal_coef * abs(cosine)
  )


@pytest.mark.parametrize("sign", [1.0, -1.0])  # of the correlation that is to vanish
def test_odin_is_its_formula(sign):
  config = reward_odin.Config(length_coef=0.7, orthogonal_coef=0.3)
  outputs = sign * OUTPUTS
  params = {"scores": outputs, "reward_head": {"kernel": KERNEL}}
  loss = lambda p: loss_of(reward_odin, config, p, uneven(pairs()))
  np.testing.assert_allclose(loss(params), odin(outputs, KERNEL, config), rtol=1e-12)
  got = jax.grad(loss)(jax.tree.map(jnp.asarray, params))
  for name, x in (("scores", outputs), ("kernel", KERNEL)):
    mine = got["scores"] if name == "scores" else got["reward_head"]["kernel"]
    for i in np.ndindex(x.shape):
      up, down = x.copy(), x.copy()
      up[i] += 1e-6
      down[i] -= 1e-6
      at = lambda y: odin(y, KERNEL, config) if name == "scores" else odin(outputs, y, config)  # noqa: B023
      np.testing.assert_allclose(mine[i], (at(up) - at(down)) / 2e-6, rtol=1e-5, atol=1e-8)


def test_odin_scores_by_quality_alone():
  assert reward_odin.reading(reward_odin.Config()).weights == (1.0, 0.0)
  assert reward_odin.begin(reward_odin.Config(), np.ones((3, 1))).outputs == 2


# Rankings.

SCORES = np.array([[0.3, -1.0, 2.0, 0.5], [1.0, 1.5, -0.5, 0.0], [0.2, 0.4, -0.3, 1.1]])
RANKS = np.array([[2, 3, 1, 4], [1, 2, 2, 3], [1, 0, 2, 2]])  # strict; a tie; a tie and an unranked


def rankings(ranks=RANKS) -> types.RankingBatch:
  return types.RankingBatch(sequences(*ranks.shape), jnp.asarray(ranks))


RANKING_SCORER = types.Scorer(
  score=lambda params, frozen, batch: jnp.asarray(params["scores"]).ravel()[rows_of(batch)]
)


def ranking_loss(config, scores, ranks):
  algorithm = reward_from_rankings.make(RANKING_SCORER)
  terms, _ = algorithm.loss({"scores": scores}, {}, rankings(ranks), config, {})
  return sum(term.value for term in terms.values())


def log_plackett_luce(scores, order, below) -> float:
  """Σ over the order of s_i − log Σ of those not yet placed."""
  return sum(
    scores[i] - np.log(sum(np.exp(scores[j]) for j in [*order[place:], *below]))
    for place, i in enumerate(order)
  )


def by_enumeration(scores, ranks, unranked) -> float:
  """The mean of −log P over every order that the ranks allow."""
  below = [j for j in range(len(ranks)) if ranks[j] == 0 and unranked == "below"]
  ranked = [j for j in range(len(ranks)) if ranks[j] > 0]
  orders = [
    order
    for order in itertools.permutations(ranked)
    if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(order))
  ]
  return -np.mean([log_plackett_luce(scores, list(order), below) for order in orders])


def by_breslow(scores, ranks, unranked) -> float:
  below = [j for j in range(len(ranks)) if ranks[j] == 0 and unranked == "below"]
  total = 0.0
  for i in range(len(ranks)):
    if ranks[i] > 0:
      left = [j for j in range(len(ranks)) if ranks[j] >= ranks[i]] + below
      total += np.log(sum(np.exp(scores[j]) for j in left)) - scores[i]
  return total


def by_top_one(scores, ranks, unranked) -> float:
  present = [j for j in range(len(ranks)) if ranks[j] > 0 or unranked == "below"]
  best = [j for j in present if ranks[j] == min(r for r in ranks if r > 0)]
  return np.log(sum(np.exp(scores[j]) for j in present)) - np.mean([scores[j] for j in best])


@pytest.mark.parametrize("unranked", ["below", "ignored"])
@pytest.mark.parametrize(
  ("loss", "ties", "oracle"),
  [
    ("plackett_luce", "half", by_enumeration),
    ("plackett_luce", "breslow", by_breslow),
    ("top_one", "half", by_top_one),
  ],
)
def test_rankings_are_their_formula(loss, ties, oracle, unranked):
  config = reward_from_rankings.Config(loss=loss, ties=ties, unranked=unranked)
  got = lambda p: ranking_loss(config, p["scores"], RANKS)
  want = np.mean([oracle(s, r, unranked) for s, r in zip(SCORES, RANKS, strict=True)])
  np.testing.assert_allclose(got({"scores": SCORES}), want, rtol=1e-12)
  assert_slope(got, {"scores": SCORES})


def test_a_ranking_by_hand():
  # Strengths 1 : 2 : 3, best last: 3/6 · 2/3.
  scores = np.log(np.array([[1.0, 2.0, 3.0]]))
  config = reward_from_rankings.Config()
  got = ranking_loss(config, scores, np.array([[3, 2, 1]]))
  np.testing.assert_allclose(got, np.log(3.0), rtol=1e-12)
  # Only the best is known: 3/6, be it by softmax or because the others are below it.
  np.testing.assert_allclose(
    ranking_loss(config, scores, np.array([[0, 0, 1]])), np.log(2.0), rtol=1e-12
  )
  top = reward_from_rankings.Config(loss="top_one")
  np.testing.assert_allclose(ranking_loss(top, scores, np.array([[3, 2, 1]])), np.log(2.0))


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [1, 1], [1, 0]])
def test_two_ranked_answers_are_a_pair(ranks):
  """A tie is the soft label a half, and what was left unranked was worse."""
  label = {(1, 2): 1.0, (2, 1): 0.0, (1, 1): 0.5, (1, 0): 1.0}[tuple(ranks)]
  got = ranking_loss(reward_from_rankings.Config(), np.array([[0.3, -0.8]]), np.array([ranks]))
  want = loss_of(reward_model, reward_model.Config(), table([0.3], [-0.8]), pairs([label], [0.0]))
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("loss, ties", reward_from_rankings.LOSSES)
def test_answers_that_fill_a_short_ranking_up_are_not_below_it(loss, ties):
  config = reward_from_rankings.Config(loss=loss, ties=ties)
  filled = ranking_loss(config, np.array([[0.3, -0.8, 2.0]]), np.array([[1, 2, -1]]))
  short = ranking_loss(config, np.array([[0.3, -0.8]]), np.array([[1, 2]]))
  below = ranking_loss(config, np.array([[0.3, -0.8, 2.0]]), np.array([[1, 2, 0]]))
  np.testing.assert_allclose(filled, short, rtol=1e-12)
  assert below > filled + 0.1


@pytest.mark.parametrize("ranks", [[0, 0, 0, 0], [0, 1, 0, 0]])
@pytest.mark.parametrize("loss", ["plackett_luce", "top_one"])
def test_a_ranking_that_says_nothing_has_neither_loss_nor_gradient(loss, ranks):
  config = reward_from_rankings.Config(loss=loss, unranked="ignored")
  value, slope = jax.value_and_grad(lambda s: ranking_loss(config, s, np.array([ranks])))(
    jnp.asarray(SCORES[:1])
  )
  np.testing.assert_allclose(value, 0.0, atol=1e-12)
  np.testing.assert_allclose(slope, np.zeros((1, 4)), atol=1e-12)


def test_long_rankings_need_breslows_ties():
  ranks = np.arange(1, 12)[None].astype(float)
  with pytest.raises(ValueError, match="has 11 answers.*set ties='breslow'"):
    reward_from_rankings.begin(reward_from_rankings.Config(), ranks)
  reward_from_rankings.begin(reward_from_rankings.Config(ties="breslow"), ranks)


# Ratings.

RATINGS = np.array([[4.0, 1.0], [2.0, np.nan], [5.0, 3.0]])
PREDICTED = np.array([[3.0, 1.5], [2.5, 9.0], [2.0, 0.0]])


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    # errors 1, .5 | .5, none | 3, 3, over the five that were given
    (dict(), (1.0 + 0.25 + 0.25 + 9.0 + 9.0) / 5),
    (dict(loss="huber", huber_delta=2.0), (0.5 + 0.125 + 0.125 + 4.0 + 4.0) / 5),
  ],
)
def test_ratings_by_hand(config, expected):
  config = reward_from_ratings.Config(**config)
  loss = lambda p: loss_of(reward_from_ratings, config, p, labelled(RATINGS))
  np.testing.assert_allclose(loss({"scores": PREDICTED}), expected, rtol=1e-12)
  assert_slope(loss, {"scores": PREDICTED})


def test_a_missing_rating_has_no_gradient():
  loss = lambda x: loss_of(
    reward_from_ratings, reward_from_ratings.Config(), {"scores": x}, labelled(RATINGS)
  )
  slope = jax.grad(loss)(jnp.asarray(PREDICTED))
  assert np.isfinite(slope).all() and slope[1, 1] == 0.0


def test_ratings_begin_at_each_scales_mean():
  begun = reward_from_ratings.begin(reward_from_ratings.Config(), RATINGS)
  assert begun.outputs == 2
  np.testing.assert_allclose(begun.bias, [11 / 3, 2.0])


def test_weights_of_another_number_of_scales_are_refused():
  with pytest.raises(ValueError, match="has 3 numbers and the ratings have 2 scales"):
    reward_from_ratings.begin(reward_from_ratings.Config(weights=(1.0, 0.0, 0.0)), RATINGS)


def test_a_scale_that_nobody_used_is_refused():
  with pytest.raises(ValueError, match="nobody rated anything on scale 1 of 2"):
    reward_from_ratings.begin(reward_from_ratings.Config(), np.array([[1.0, np.nan]] * 3))


# Classes.

CUTPOINTS = np.array([-1.0, 0.5, 2.0])
LINK = dict(first=-1.0, log_gaps=np.log(np.diff(CUTPOINTS)))


def probabilities(score, cutpoints) -> np.ndarray:
  below = [0.0, *special.expit(np.asarray(cutpoints) - score), 1.0]
  return np.diff(below)


def test_classes_are_their_formula():
  labels = np.array([[0.0], [1.0], [np.nan], [3.0], [2.0]])
  scores = np.array([0.2, -0.3, 5.0, 1.0, 0.7])
  given = [i for i in range(5) if not np.isnan(labels[i, 0])]
  want = [-np.log(probabilities(scores[i], CUTPOINTS)[int(labels[i, 0])]) for i in given]
  loss = lambda p: loss_of(reward_from_classes, reward_from_classes.Config(), p, labelled(labels))
  params = {"scores": scores, "link": LINK}
  np.testing.assert_allclose(loss(params), np.mean(want), rtol=1e-12)
  assert_slope(loss, params)


def test_classes_by_hand():
  # Three classes with cutpoints ∓ log 3 and score 0: a quarter, a half, a quarter.
  link = dict(first=-np.log(3.0), log_gaps=np.log([2 * np.log(3.0)]))
  for label, expected in ((0.0, 0.25), (1.0, 0.5), (2.0, 0.25)):
    params = {"scores": np.zeros(1), "link": link}
    loss = loss_of(reward_from_classes, reward_from_classes.Config(), params, labelled([[label]]))
    np.testing.assert_allclose(loss, -np.log(expected), rtol=1e-12)


def test_far_from_its_class_a_score_still_has_a_slope():
  def loss(score):
    return jnp.sum(
      reward.cumulative_link_loss(score, jnp.asarray([0, 1, 2]), jnp.asarray([-1.0, 1.0]))
    )

  for far in (-200.0, 200.0):
    value, slope = jax.value_and_grad(loss)(jnp.full(3, far, jnp.float32))
    assert np.isfinite(value) and value > 190
    np.testing.assert_allclose(np.abs(slope), [far > 0, 1, far < 0], atol=1e-6)


def test_two_classes_are_logistic_regression():
  labels = np.array([[0.0], [1.0], [1.0]])
  scores = np.array([0.2, -0.3, 1.0])
  of_classes = loss_of(
    reward_from_classes,
    reward_from_classes.Config(),
    {"scores": scores, "link": dict(first=0.4)},
    labelled(labels),
  )
  of_marks = loss_of(
    reward_from_marks, reward_from_marks.Config(), {"scores": scores - 0.4}, labelled(labels)
  )
  np.testing.assert_allclose(of_classes, of_marks, rtol=1e-12)


def test_classes_begin_as_often_as_the_data_have_them():
  labels = np.repeat([0.0, 1.0, 2.0, 3.0], [10, 20, 50, 20])[:, None]
  link = reward_from_classes.begin(reward_from_classes.Config(), labels).link
  got = probabilities(0.0, reward.cutpoints(jax.tree.map(jnp.asarray, link)))
  np.testing.assert_allclose(got, [0.1, 0.2, 0.5, 0.2], rtol=1e-9)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([[0.0], [2.0]], "are 0, 2; they should be 0, 1"),
    ([[1.0], [2.0]], "are 1, 2; they should be 0, 1"),
    ([[0.0], [0.5]], "are 0, 0.5; they should be"),
    ([[0.0], [0.0]], "at least two"),
    ([[np.nan]], "are none"),
    ([[0.0, 1.0]], "have 2 classes each"),
  ],
)
def test_classes_with_a_gap_are_refused(labels, message):
  with pytest.raises(ValueError, match=message):
    reward_from_classes.begin(reward_from_classes.Config(), np.array(labels))


# Marks.


def test_marks_by_hand():
  # σ(log 3) = 3/4: right costs log 4/3, wrong log 4, and the third has no mark.
  params = {"scores": np.log(3.0) * np.ones(3)}
  loss = lambda p: loss_of(
    reward_from_marks, reward_from_marks.Config(), p, labelled([[1.0], [0.0], [np.nan]])
  )
  np.testing.assert_allclose(loss(params), 0.5 * (np.log(4 / 3) + np.log(4)), rtol=1e-12)
  assert_slope(loss, params)


def test_marks_begin_at_their_log_odds():
  begun = reward_from_marks.begin(reward_from_marks.Config(), np.array([[1.0], [1.0], [0.0], [1]]))
  np.testing.assert_allclose(begun.bias, np.log(3.0))


@pytest.mark.parametrize(
  ("labels", "message"),
  [([[1.0], [5.0]], "one is 5"), ([[-1.0], [1.0]], "one is -1"), ([[1.0], [1.0]], "both kinds")],
)
def test_marks_of_another_scale_or_one_kind_are_refused(labels, message):
  with pytest.raises(ValueError, match=message):
    reward_from_marks.begin(reward_from_marks.Config(), np.array(labels))


# Tokens.


def test_tokens_by_hand():
  # Labels: on the prompt (which counts nowhere), none, 1 and 3/4; scores with σ = 1/2 and 3/4.
  answers = types.Sequences(
    tokens=jnp.ones((1, 4), jnp.int32),
    positions=jnp.arange(4)[None],
    segments=jnp.ones((1, 4), jnp.int32),
    response_mask=jnp.asarray([[0.0, 1, 1, 1]]),
  )
  batch = types.LabelledBatch(answers, jnp.asarray([[0.0, np.nan, 1.0, 0.75]]))
  params = {"scores": np.array([[9.0, 9.0, 0.0, np.log(3.0)]])}
  loss = lambda p: loss_of(reward_from_tokens, reward_from_tokens.Config(), p, batch)
  expected = (np.log(2.0) + 0.75 * np.log(4 / 3) + 0.25 * np.log(4)) / 2
  np.testing.assert_allclose(loss(params), expected, rtol=1e-12)
  assert_slope(loss, params)


@pytest.mark.parametrize(
  ("aggregate", "expected"),
  [
    ("mean", [np.log(3.0) / 3, 0.0]),
    ("min", [-np.log(3.0), 0.0]),
    # 3/4 · 1/4 · 3/4
    ("product", [np.log(9 / 64), 0.0]),
    ("last", [np.log(3.0), 0.0]),
  ],
)
def test_token_scores_become_one_by_hand(aggregate, expected):
  scores = jnp.log(3.0) * jnp.asarray([[1.0, -1.0, 7.0, 1.0, -9.0], [5.0, 5, 5, 5, 5]])
  mask = jnp.asarray([[1.0, 1, 0, 1, 0], [0.0, 0, 0, 0, 0]])
  function = reward.AGGREGATES[aggregate]
  np.testing.assert_allclose(function(scores, mask), expected, rtol=1e-12, atol=1e-12)
  assert np.isfinite(jax.grad(lambda z: jnp.sum(function(z, mask)))(scores)).all()


# What they recover. Abilities that are planted in the probability of every possible answer are what the
# expected loss is least at.

ABILITIES = np.array([0.7, -1.2, 0.1, 0.4])
PAIRS = [np.array(side) for side in zip(*itertools.permutations(range(4), 2), strict=True)]


def recovered(expected_loss, params):
  """Where the expected loss is least, from `params` on."""
  flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
  value = jax.jit(jax.value_and_grad(lambda x: expected_loss(unravel(x))))
  found = optimize.minimize(
    lambda x: jax.device_get(value(x)), flat, jac=True, method="BFGS", options=dict(gtol=1e-9)
  )
  return jax.device_get(unravel(jnp.asarray(found.x)))


def centred(x):
  return x - np.mean(x)


def test_abilities_are_recovered_from_pairs():
  w, l = PAIRS
  batch = pairs(special.expit(ABILITIES[w] - ABILITIES[l]), np.zeros(len(w)))
  loss = lambda p: loss_of(
    reward_model, reward_model.Config(), {"scores": jnp.concatenate([p[w], p[l]])}, batch
  )
  np.testing.assert_allclose(centred(recovered(loss, np.zeros(4))), ABILITIES, atol=1e-6)


def test_margins_are_taken_off_the_abilities():
  """People prefer w as if it were weaker by the margin, which is then added to what was learned."""
  w, l = PAIRS
  margin = np.full(len(w), 0.3)
  batch = pairs(special.expit(ABILITIES[w] - ABILITIES[l] - margin), margin)
  config = reward_model.Config(margin=True)
  loss = lambda p: loss_of(reward_model, config, {"scores": jnp.concatenate([p[w], p[l]])}, batch)
  np.testing.assert_allclose(centred(recovered(loss, np.zeros(4))), ABILITIES, atol=1e-6)


@pytest.mark.parametrize("ties", TIES)
def test_abilities_and_the_inclination_to_tie_are_recovered(ties):
  w, l = PAIRS
  d = ABILITIES[w] - ABILITIES[l]
  if ties == "davidson":
    weights = np.stack([np.exp(d / 2), np.exp(-d / 2), np.full(len(d), np.exp(0.4))])
    probability = weights / weights.sum(axis=0)
  else:
    first, second = special.expit(d - np.exp(-0.7)), special.expit(-d - np.exp(-0.7))
    probability = np.stack([first, second, 1 - first - second])

  def loss(p):
    said = [
      reward_model.TIES[ties](p["r"][w] - p["r"][l], label, label == 0.5, p["link"])
      for label in (jnp.ones(len(w)), jnp.zeros(len(w)), jnp.full(len(w), 0.5))
    ]
    return jnp.mean(jnp.sum(probability * jnp.stack(said), axis=0))

  start = {"r": np.zeros(4), "link": {name: 0.0 for name in TIES[ties]}}
  found = recovered(loss, start)
  np.testing.assert_allclose(centred(found["r"]), ABILITIES, atol=1e-6)
  for name, value in TIES[ties].items():
    np.testing.assert_allclose(found["link"][name], value, atol=1e-6)


@pytest.mark.parametrize("loss", ["plackett_luce", "top_one"])
def test_abilities_are_recovered_from_rankings(loss):
  orders = list(itertools.permutations(range(4)))
  probability = np.exp([log_plackett_luce(ABILITIES, list(order), []) for order in orders])
  ranks = 1 + np.argsort(orders, axis=1)
  function = reward_from_rankings.LOSSES[loss, "half"]

  def expected(p):
    losses = function(jnp.tile(p[None], (24, 1)), jnp.asarray(ranks), jnp.zeros((24, 4), bool))
    return jnp.sum(probability * losses)

  np.testing.assert_allclose(centred(recovered(expected, np.zeros(4))), ABILITIES, atol=1e-6)


def test_abilities_are_recovered_from_who_made_the_best_two():
  orders = [o for o in itertools.permutations(range(4), 2)]
  below = np.array([[j not in o for j in range(4)] for o in orders])
  probability = np.exp(
    [log_plackett_luce(ABILITIES, list(o), [j for j in range(4) if j not in o]) for o in orders]
  )
  ranks = np.array([[o.index(j) + 1 if j in o else 0 for j in range(4)] for o in orders])

  def expected(p):
    scores = jnp.tile(p[None], (12, 1))
    losses = reward.plackett_luce_loss(scores, jnp.asarray(ranks), jnp.asarray(below))
    return jnp.sum(probability * losses)

  np.testing.assert_allclose(centred(recovered(expected, np.zeros(4))), ABILITIES, atol=1e-6)


def test_abilities_and_cutpoints_are_recovered_from_classes():
  probability = np.stack([probabilities(a, CUTPOINTS) for a in ABILITIES])  # [4, K]

  def expected(p):
    cutpoints = reward.cutpoints(p["link"])
    losses = [reward.cumulative_link_loss(p["r"], jnp.full(4, k), cutpoints) for k in range(4)]
    return jnp.mean(jnp.sum(probability.T * jnp.stack(losses), axis=0))

  start = {"r": np.zeros(4), "link": dict(first=0.0, log_gaps=np.zeros(2))}
  found = recovered(expected, start)
  np.testing.assert_allclose(centred(found["r"]), ABILITIES, atol=1e-5)
  got = reward.cutpoints(found["link"]) - np.mean(found["r"])
  np.testing.assert_allclose(got, CUTPOINTS, atol=1e-5)


def test_abilities_are_recovered_from_marks_and_steps_of_known_rates():
  rates = special.expit(ABILITIES)
  marks = lambda p: loss_of(
    reward_from_marks, reward_from_marks.Config(), {"scores": p}, labelled(rates[:, None])
  )
  np.testing.assert_allclose(recovered(marks, np.zeros(4)), ABILITIES, atol=1e-6)
  answers = sequences(4)
  batch = types.LabelledBatch(answers, jnp.stack([jnp.full(4, np.nan), jnp.asarray(rates)], axis=1))
  tokens = lambda p: loss_of(
    reward_from_tokens, reward_from_tokens.Config(), {"scores": jnp.stack([p, p], axis=1)}, batch
  )
  np.testing.assert_allclose(recovered(tokens, np.zeros(4)), ABILITIES, atol=1e-6)


def test_ratings_recover_their_means():
  noise = np.array([[-1.0], [0.0], [1.0]])
  ratings = (ABILITIES[None] + noise).ravel()[:, None]
  loss = lambda p: loss_of(
    reward_from_ratings,
    reward_from_ratings.Config(),
    {"scores": jnp.tile(p, 3)[:, None]},
    labelled(ratings),
  )
  np.testing.assert_allclose(recovered(loss, np.zeros(4)), ABILITIES, atol=1e-6)
