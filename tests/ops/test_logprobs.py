import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import logprobs

B, T, D, V = 2, 7, 3, 11


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
  segments = jnp.asarray([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]], jnp.int32)
  return hidden, kernel, tokens, segments


def naive(hidden, kernel, tokens, segments, temperature):
  """Log-probabilities and entropies from all logits at once."""
  logp = jax.nn.log_softmax((hidden @ kernel)[:, :-1] / temperature, axis=-1)
  logps = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  align = lambda x: jnp.where(
    logprobs.predicted(segments), jnp.pad(x, ((0, 0), (1, 0))), jnp.zeros((B, T))
  )
  return align(logps), align(entropy), align(jnp.log(jnp.sum(jnp.exp(2 * logp), axis=-1)))


def token_stats(hidden, kernel, tokens, segments, temperature=1.0, chunk=logprobs.CHUNK):
  unembed = lambda hidden: hidden @ kernel
  return logprobs.token_stats(hidden, tokens, segments, unembed, temperature, chunk=chunk)


# In chunks of 1, 3 (which does not divide the six predictions' two rows), 8, and all at once.
@pytest.mark.parametrize("chunk", [1, 3, 8, 512])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_all_logits_at_once_in_value_and_gradient(chunk, temperature):
  hidden, kernel, tokens, segments = inputs()
  weights = jnp.asarray(np.random.default_rng(5).normal(size=(2, B, T)), jnp.float32)

  def loss(function, hidden, kernel):
    logps, entropy, collision = function(hidden, kernel)
    return jnp.sum(weights[0] * logps + weights[1] * entropy), (logps, entropy, collision)

  ours = lambda h, k: token_stats(h, k, tokens, segments, temperature, chunk)
  plain = lambda h, k: naive(h, k, tokens, segments, temperature)
  grad = jax.grad(loss, argnums=(1, 2), has_aux=True)
  (gradients, values), (expected_gradients, expected) = (
    grad(ours, hidden, kernel),
    grad(plain, hidden, kernel),
  )
  for got, want in zip([*values, *gradients], [*expected, *expected_gradients], strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_log_probability_stands_at_the_token_it_belongs_to():
  hidden, kernel, tokens, segments = inputs(1)
  logps, *_ = token_stats(hidden, kernel, tokens, segments)
  assert logps[0, 0] == 0  # nothing predicts the first token
  expected = jax.nn.log_softmax(hidden[0, 3] @ kernel)[tokens[0, 4]]
  np.testing.assert_allclose(logps[0, 4], expected, rtol=1e-5)
  np.testing.assert_array_equal(logps[1, :3], np.zeros(3))  # padding, then a first token


def test_temperature_divides_the_logits():
  hidden, kernel, tokens, segments = inputs(2)
  warm = token_stats(hidden, kernel, tokens, segments, temperature=2.0)
  flat = token_stats(hidden, kernel / 2.0, tokens, segments)
  for got, want in zip(warm, flat, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_packed_segments_equal_rows_of_their_own():
  hidden, kernel, tokens, _ = inputs(3)
  packed = jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0]], jnp.int32)
  logps, entropy, _ = token_stats(hidden, kernel, tokens, packed)
  for row, start, end in ((0, 0, 3), (0, 3, 7), (1, 0, 2), (1, 2, 5)):
    alone = token_stats(
      hidden[row : row + 1, start:end],
      kernel,
      tokens[row : row + 1, start:end],
      jnp.ones((1, end - start), jnp.int32),
    )
    np.testing.assert_allclose(logps[row, start:end], alone[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy[row, start:end], alone[1][0], rtol=1e-5, atol=1e-6)
  assert not np.any(logps[1, 5:])


def test_probabilities_of_the_next_token_sum_to_one():
  hidden, kernel, tokens, segments = inputs(4)
  total = sum(
    jnp.exp(token_stats(hidden, kernel, tokens.at[:, 5].set(v), segments)[0][:, 5])
    for v in range(V)
  )
  np.testing.assert_allclose(total, np.ones(B), rtol=1e-5)


def test_entropy_of_equal_logits_is_log_v():
  _, kernel, tokens, segments = inputs()
  _, entropy, _ = token_stats(jnp.zeros((B, T, D)), kernel, tokens, segments)
  np.testing.assert_allclose(entropy[0, 1:], np.full(T - 1, np.log(V)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [3, 512])
def test_comparison_is_the_stats_of_both_and_the_kl_summed_over_the_vocabulary(chunk):
  hidden, kernel, tokens, segments = inputs(5)
  other = inputs(6)[0]
  unembed = lambda hidden: hidden @ kernel

  def compare(p, q):
    return logprobs.compare_stats(p, q, tokens, segments, unembed, unembed, 0.8, chunk=chunk)

  of_p, of_q, got = compare(hidden, other)
  for found, state in ((of_p, hidden), (of_q, other)):
    alone = logprobs.token_stats(state, tokens, segments, unembed, 0.8, chunk=chunk)
    for a, b in zip(found, alone[:2], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  logp, logq = (jax.nn.log_softmax(h @ kernel / 0.8) for h in (hidden, other))
  expected = jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)[:, :-1]
  np.testing.assert_allclose(got[0, 1:], expected[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got[1, 3:], expected[1, 2:], rtol=1e-4, atol=1e-5)
  assert not np.any(got[1, :3])
  np.testing.assert_allclose(compare(hidden, hidden)[2], np.zeros((B, T)), atol=1e-6)


def test_the_logits_of_all_tokens_never_exist_at_once():
  B, T, D, V, chunk = 2, 65, 3, 101, 16
  hidden, kernel = jnp.zeros((B, T, D)), jnp.zeros((D, V))
  tokens, segments = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T), jnp.int32)

  def loss(hidden, kernel):
    logps, entropy, _ = token_stats(hidden, kernel, tokens, segments, chunk=chunk)
    return jnp.sum(logps + entropy)

  sizes = [
    np.prod(shape, dtype=int)
    for shape in shapes(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, kernel).jaxpr)
    if V in shape
  ]
  assert max(sizes) == chunk * V


def shapes(jaxpr):
  """Shapes of everything a program computes, its loops' bodies included."""
  for equation in jaxpr.eqns:
    yield from (v.aval.shape for v in equation.outvars)
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
      if is_jaxpr(value):
        yield from shapes(getattr(value, "jaxpr", value))


def is_jaxpr(x):
  return hasattr(x, "eqns")


def test_what_is_asked_for_is_what_all_would_say_and_the_rest_is_0():
  hidden, kernel, tokens, segments = inputs()
  asked = jnp.asarray([[2, 5, 0], [6, 4, -1]])
  unembed = lambda hidden: hidden @ kernel
  everything = token_stats(hidden, kernel, tokens, segments)
  wanted = np.zeros((B, T))
  wanted[[0, 0, 1, 1], [2, 5, 6, 4]] = 1
  few = logprobs.token_stats(hidden, tokens, segments, unembed, asked=asked, chunk=2)
  for got, want in zip(few, everything, strict=True):
    np.testing.assert_allclose(got, want * wanted, rtol=1e-5, atol=1e-6)


def test_branches_follow_the_last_token_that_all_see():
  segments = jnp.asarray([[0, 1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2, 2, 0]])
  branches = jnp.asarray([[0, 0, 0, 1, 2, 2, 1, 1, 2], [0, 0, 0, 1, 1, 2, 3, 3, 0]])
  before = [[-1, -1, 1, 2, 2, 4, -1, 6, -1], [-1, 0, -1, 2, 3, 2, 2, 6, -1]]
  np.testing.assert_array_equal(logprobs.predecessors(segments, branches), before)


@pytest.mark.parametrize("size", [8192, 1733 * 3, 257, 5])  # in slices of 4,096 and 1,733; in one
def test_the_normalizer_is_that_of_the_whole_vocabulary(size):
  logits = 5 * jax.random.normal(jax.random.key(0), (3, 2, size))
  logits = logits.at[0, 0, 1:].set(-jnp.inf)
  np.testing.assert_allclose(
    logprobs.normalizer(logits), jax.nn.logsumexp(logits, axis=-1), rtol=1e-6
  )
