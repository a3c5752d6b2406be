"""Policies and reward models over a tiny language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import heads, lora, policy, registry
from rlhf_jax.ops import reward, steps
from rlhf_jax.types import Reading

SCALE = 2.0


@pytest.fixture(scope="module")
def model(config):
  return registry.language_model(config)


@pytest.fixture(scope="module")
def adapter(params):
  fresh = lora.init(jax.random.key(0), params, rank=2, targets=("q", "v"))
  return jax.tree.map(lambda x: x + 0.1, fresh)


@pytest.fixture(scope="module")
def head(config):
  return heads.init_head(jax.random.key(1), config.hidden_size, 0.5)


def hidden_of(model, weights, rows):
  return jax.jit(model.hidden)(weights, rows.tokens, rows.positions, rows.segments)


def evaluate(model, params, frozen, rows, temperature=1.0, **options):
  made = policy.make_policy(model, lora_scale=SCALE, **options)
  return jax.jit(made.evaluate)(params, frozen, rows, temperature)


def test_log_probabilities_are_those_of_the_logits_before_each_token(model, params, rows):
  stats = evaluate(model, {"model": {}}, {"base": params}, rows, 0.7, chunk=4)
  logits = model.unembed(params, hidden_of(model, params, rows)) / 0.7
  logps = jax.nn.log_softmax(logits)
  segments = np.asarray(rows.segments)
  for b in range(3):
    for t in range(7):
      inside = t > 0 and segments[b, t] and segments[b, t - 1]
      want = logps[b, t - 1, rows.tokens[b, t]] if inside else 0.0
      entropy = -jnp.sum(jnp.exp(logps[b, t - 1]) * logps[b, t - 1]) if inside else 0.0
      np.testing.assert_allclose(stats.logps[b, t], want, rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(stats.entropy[b, t], entropy, rtol=1e-5, atol=1e-5)


def test_a_reference_without_an_adapter_is_the_base(model, params, adapter, rows):
  frozen = {"base": params, "reference": {"model": {}}}
  reference = evaluate(model, frozen["reference"], frozen, rows)
  base = evaluate(model, {"model": params}, {}, rows)
  np.testing.assert_array_equal(reference.logps, base.logps)
  adapted = evaluate(model, {"model": adapter}, frozen, rows)
  assert np.abs(adapted.logps - base.logps).max() > 0.01


def test_adapters_count_with_their_scale(model, params, adapter, rows):
  attached = evaluate(model, {"model": adapter}, {"base": params}, rows)
  merged = evaluate(model, {"model": lora.merge(params, adapter, SCALE)}, {}, rows)
  np.testing.assert_allclose(attached.logps, merged.logps, rtol=1e-4, atol=1e-4)


def test_values_are_read_before_their_token_and_are_0_at_the_first(model, params, head, rows):
  tree = {"model": {}, "value_head": head}
  values = evaluate(model, tree, {"base": params}, rows, critic="shared").values
  read = heads.apply_head(head, hidden_of(model, params, rows))
  np.testing.assert_allclose(values[0, 1:], read[0, :-1], rtol=1e-5)
  np.testing.assert_allclose(values[1], [0, 0, 0, *read[1, 2:6]], rtol=1e-5)
  np.testing.assert_allclose(values[2], [0, *read[2, :4], 0, 0], rtol=1e-5)


def test_a_separate_critic_reads_values_from_its_own_trunk(model, params, adapter, head, rows):
  critic = {"model": adapter, "value_head": head}
  frozen = {"base": params}
  separate = evaluate(model, {"model": {}, "critic": critic}, frozen, rows, critic="separate")
  shared = evaluate(model, critic, frozen, rows, critic="shared")
  np.testing.assert_allclose(separate.values, shared.values, rtol=1e-6)
  assert np.abs(separate.logps - shared.logps).max() > 0.01


@pytest.mark.parametrize("critic", policy.CRITICS)
def test_there_are_no_values_without_a_head(model, params, rows, critic):
  assert evaluate(model, {"model": {}}, {"base": params}, rows, critic=critic).values is None


def test_comparing_gives_both_sides_and_the_exact_divergence(model, params, adapter, rows):
  made = policy.make_policy(model, lora_scale=SCALE)
  frozen = {"base": params}
  ours, theirs, kl = jax.jit(made.compare)({"model": adapter}, {"model": {}}, frozen, rows, 1.3)
  np.testing.assert_allclose(
    ours.logps, evaluate(model, {"model": adapter}, frozen, rows, 1.3).logps, rtol=1e-5
  )
  np.testing.assert_allclose(
    theirs.logps, evaluate(model, {"model": {}}, frozen, rows, 1.3).logps, rtol=1e-5
  )
  weights = lora.attach(params, adapter, SCALE), params
  p, q = (jax.nn.log_softmax(model.unembed(w, hidden_of(model, w, rows)) / 1.3) for w in weights)
  want = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
  np.testing.assert_allclose(kl[0, 1:], want[0, :-1], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(kl[2], [0, *want[2, :4], 0, 0], rtol=1e-4, atol=1e-6)


def test_only_what_trains_has_a_gradient(model, params, adapter, head, rows):
  made = policy.make_policy(model, lora_scale=SCALE, critic="shared")

  def loss(tree):
    stats = made.evaluate(tree, {"base": params}, rows, 1.0)
    return jnp.sum(stats.logps) + jnp.sum(stats.values)

  gradients = jax.jit(jax.grad(loss))({"model": adapter, "value_head": head})
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_an_unknown_critic_is_refused(model):
  with pytest.raises(ValueError, match="critic='twin' is not one of none, shared, separate"):
    policy.make_policy(model, critic="twin")


def score(model, params, frozen, rows):
  return jax.jit(policy.make_scorer(model, lora_scale=SCALE).score)(params, frozen, rows)


def test_a_reward_is_read_at_the_last_token_of_each_row(model, params, adapter, head, rows):
  scores = score(model, {"model": adapter, "reward_head": head}, {"base": params}, rows)
  hidden = hidden_of(model, lora.attach(params, adapter, SCALE), rows)
  want = heads.apply_head(head, jnp.stack([hidden[0, 6], hidden[1, 6], hidden[2, 4]]))
  np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_a_reward_depends_on_neither_padding_nor_neighbours(model, params, head, rows):
  tree, frozen = {"model": {}, "reward_head": head}, {"base": params}
  together = score(model, tree, frozen, rows)
  alone = [score(model, tree, frozen, jax.tree.map(lambda x: x[i : i + 1], rows)) for i in range(3)]  # noqa: B023
  np.testing.assert_allclose(together, jnp.concatenate(alone), rtol=1e-5, atol=1e-5)
  padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (2, 3))), rows)
  np.testing.assert_allclose(score(model, tree, frozen, padded), together, rtol=1e-5, atol=1e-5)


def test_a_reward_model_may_bring_its_own_base(model, params, head, rows):
  own = jax.tree.map(lambda x: 0.5 * x, params)
  tree = {"model": {}, "reward_head": head, "base": own}
  want = score(model, {"model": own, "reward_head": head}, {}, rows)
  np.testing.assert_array_equal(score(model, tree, {"base": params}, rows), want)


def test_gain_and_bias_are_given_to_the_score_alone(model, params, head, rows):
  tree, frozen = {"model": {}, "reward_head": head}, {"base": params}
  plain = score(model, tree, frozen, rows)
  normalization = heads.normalize(heads.unnormalized(), plain)
  scores = score(model, {**tree, "normalization": normalization}, frozen, rows)
  np.testing.assert_allclose([jnp.mean(scores), jnp.std(scores)], [0.0, 1.0], atol=1e-5)
  again = heads.normalize(normalization, 3.0 * scores + 2.0)  # of scores read under the first
  np.testing.assert_allclose(
    again["gain"] * plain + again["bias"], (scores - 2.0) / 3.0, rtol=1e-5, atol=1e-5
  )
  scorer = policy.make_scorer(model, lora_scale=SCALE)
  said = scorer.outputs({**tree, "normalization": normalization}, frozen, rows)
  np.testing.assert_allclose(said, plain[:, None], rtol=1e-5)


@pytest.mark.parametrize(("weights", "expected"), [(None, 1 / 3), ((1.0, 0.0, -2.0), None)])
def test_several_outputs_are_weighed_in_the_score(model, params, rows, weights, expected):
  head = heads.init_head(jax.random.key(4), model.config.hidden_size, 1.0, outputs=3)
  head["bias"] = jnp.arange(3.0)
  tree, frozen = {"model": {}, "reward_head": head}, {"base": params}
  scorer = policy.make_scorer(model, reading=Reading(weights=weights))
  said = jax.jit(scorer.outputs)(tree, frozen, rows)
  hidden = hidden_of(model, params, rows)
  want = (
    jnp.stack([hidden[0, 6], hidden[1, 6], hidden[2, 4]]) @ head["kernel"] + jnp.arange(3.0)[None]
  )
  np.testing.assert_allclose(said, want, rtol=1e-4, atol=1e-5)
  weighed = said @ (np.full(3, expected) if weights is None else np.asarray(weights))
  np.testing.assert_allclose(scorer.score(tree, frozen, rows), weighed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregate", reward.AGGREGATES)
@pytest.mark.parametrize("of_steps", [False, True])
def test_token_scores_become_one_over_the_response_or_its_steps(
  model, params, head, rows, aggregate, of_steps
):
  tree, frozen = {"model": {}, "reward_head": head}, {"base": params}
  lines = steps.lines(["\n" if i % 2 else "x" for i in range(model.config.vocab_size)])
  scorer = policy.make_scorer(
    model, reading=Reading(aggregate=aggregate, steps=of_steps), lines=lines
  )
  z = jax.jit(scorer.tokens)(tree, frozen, rows)
  np.testing.assert_allclose(
    z, heads.apply_head(head, hidden_of(model, params, rows)), rtol=1e-4, atol=1e-5
  )
  mask = rows.response_mask
  where = steps.ends(lines, rows.tokens, mask) if of_steps else mask
  assert 0 < jnp.sum(where) <= jnp.sum(mask)
  want = reward.AGGREGATES[aggregate](z, where)
  np.testing.assert_allclose(scorer.score(tree, frozen, rows), want, rtol=1e-4, atol=1e-5)


def test_steps_without_lines_are_refused(model):
  with pytest.raises(ValueError, match="needs `lines`"):
    policy.make_scorer(model, reading=Reading(aggregate="min", steps=True))


def test_a_head_of_deviation_0_says_0():
  head = heads.init_head(jax.random.key(0), 5, 0.0)
  np.testing.assert_array_equal(heads.apply_head(head, jnp.ones((2, 3, 5))), jnp.zeros((2, 3)))
  head = {"kernel": jnp.arange(3.0), "bias": jnp.float32(0.5)}
  np.testing.assert_allclose(heads.apply_head(head, jnp.array([[1.0, 2.0, 3.0]])), [8.5])
