"""What holds for the decoder of every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import decoder, registry
from rlhf_jax.types import Sequences


@pytest.fixture(scope="session")
def model(config):
  return registry.language_model(config)


@pytest.fixture(scope="session")
def prefill(model):
  return jax.jit(model.prefill)


@pytest.fixture(scope="session")
def decode_step(model):
  return jax.jit(model.decode_step)


@pytest.fixture(scope="session")
def run(model):
  """(params, rows) -> hidden[B, T, D], compiled once a shape."""
  hidden = jax.jit(model.hidden)
  return lambda params, rows: hidden(params, rows.tokens, rows.positions, rows.segments)


def loss(model, params, rows):
  hidden = model.hidden(params, rows.tokens, rows.positions, rows.segments)
  logits = model.unembed(params, hidden)
  return jnp.sum(rows.response_mask * jax.nn.logsumexp(logits, axis=-1))


def value_and_grad(config, params, rows, **options):
  model = registry.language_model(config, **options)
  return jax.jit(jax.value_and_grad(lambda p: loss(model, p, rows)))(params)


def assert_trees_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


def test_the_parameters_are_one_subtree_per_layer(config, params):
  names = {f"layers_{i}" for i in range(config.num_layers)}
  assert names < set(params) and ("unembed" in params) == (not config.tied)
  assert params["embed"]["embedding"].shape == (config.vocab_size, config.hidden_size)


def test_a_token_sees_nothing_that_comes_after_it(run, params, rows):
  changed = rows.replace(tokens=rows.tokens.at[:, 4].set(3 - rows.tokens[:, 4] % 2))
  before, after = run(params, rows), run(params, changed)
  real = rows.segments[:, :4, None] > 0
  np.testing.assert_array_equal(before[:, :4] * real, after[:, :4] * real)
  assert np.abs(before[:, 4:5] - after[:, 4:5]).max() > 0.1


@pytest.mark.parametrize("prompt", [3, 5])
def test_prefill_and_decoding_give_the_hidden_states_of_a_full_pass(
  model, run, prefill, decode_step, params, rows, prompt
):
  full = run(params, rows)
  cut = lambda x: x[:2, :prompt]  # rows that do not end inside the prompt
  cache = model.init_cache(2, 9)
  hidden, cache = prefill(params, cut(rows.tokens), cut(rows.positions), cut(rows.segments), cache)
  states = [hidden]
  for t in range(prompt, 7):
    hidden, cache = decode_step(params, rows.tokens[:2, t], cache)
    states.append(hidden[:, None])
  real = rows.segments[:2, :, None] > 0
  np.testing.assert_allclose(
    jnp.concatenate(states, axis=1) * real, full[:2] * real, rtol=1e-5, atol=1e-5
  )


def test_decoding_continues_a_prompt_that_was_padded_on_the_right(
  model, run, prefill, decode_step, params, rows
):
  """Row 2 holds five tokens and two of padding, which decoding must skip."""
  row = jax.tree.map(lambda x: x[2:], rows)
  cache = model.init_cache(1, 8)
  _, cache = prefill(params, row.tokens, row.positions, row.segments, cache)
  decoded, _ = decode_step(params, jnp.array([11]), cache)
  whole = Sequences.from_mask(
    jnp.append(row.tokens[:, :5], 11)[None], jnp.ones((1, 6)), jnp.ones((1, 6))
  )
  np.testing.assert_allclose(decoded, run(params, whole)[:, -1], rtol=1e-5, atol=1e-5)


def test_a_second_turn_is_prefilled_after_the_first(model, run, prefill, params, rows):
  full = run(params, rows)
  cache = model.init_cache(3, 7)
  part = lambda a, b: (rows.tokens[:, a:b], rows.positions[:, a:b], rows.segments[:, a:b])
  first, cache = prefill(params, *part(0, 4), cache)
  second, cache = prefill(params, *part(4, 7), cache)
  real = rows.segments[..., None] > 0
  both = jnp.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both * real, full * real, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(cache.positions, [7, 5, 5])


@pytest.mark.parametrize("left, right", [(0, 3), (2, 0), (4, 1)])
def test_padding_changes_nothing(run, params, rows, left, right):
  pad = lambda x: jnp.pad(x, ((0, 0), (left, right)))
  padded = run(params, jax.tree.map(pad, rows))
  real = rows.segments[..., None] > 0
  np.testing.assert_allclose(
    padded[:, left : left + 7] * real, run(params, rows) * real, rtol=1e-5, atol=1e-5
  )


def test_what_padding_holds_does_not_matter_and_stays_finite(run, params, rows):
  garbage = rows.replace(
    tokens=jnp.where(rows.segments > 0, rows.tokens, 10**9),
    positions=jnp.where(rows.segments > 0, rows.positions, 10**6),
  )
  clean, dirty = run(params, rows), run(params, garbage)
  real = rows.segments[..., None] > 0
  np.testing.assert_array_equal(jnp.where(real, dirty, 0), jnp.where(real, clean, 0))
  assert np.isfinite(dirty).all()


def test_gradients_are_finite_where_rows_have_padding(config, params, rows):
  _, gradients = value_and_grad(config, params, rows)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_packed_rows_do_not_see_each_other(run, params, rows):
  """Rows of 5 and 7 tokens in one row of 12."""
  packed = Sequences(
    tokens=jnp.concatenate([rows.tokens[2, :5], rows.tokens[0]])[None],
    positions=jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None],
    segments=jnp.array([[1] * 5 + [2] * 7]),
    response_mask=jnp.ones((1, 12)),
  )
  apart, together = run(params, rows), run(params, packed)[0]
  np.testing.assert_allclose(together[:5], apart[2, :5], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(together[5:], apart[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "options",
  [
    dict(scan=True),
    dict(remat=True),
    dict(remat=True, remat_policy="dots_with_no_batch_dims_saveable", scan=True),
  ],
  ids=str,
)
def test_scan_and_remat_change_neither_value_nor_gradients(config, params, rows, options):
  plain = value_and_grad(config, params, rows)
  other = value_and_grad(config, params, rows, **options)
  assert_trees_close(other, plain, rtol=1e-4, atol=1e-5)


def test_stacking_and_unstacking_layers_is_the_identity(params):
  stacked = decoder.stack_layers(params)
  assert "layers" in stacked and "layers_0" not in stacked
  assert_trees_close(decoder.unstack_layers(stacked), params, rtol=0)


@pytest.mark.parametrize("scan", [False, True])
def test_either_form_of_the_tree_runs_in_either_model(config, run, params, rows, scan):
  hidden = registry.language_model(config, scan=scan).hidden
  stacked = decoder.stack_layers(params)
  got = jax.jit(hidden)(stacked, rows.tokens, rows.positions, rows.segments)
  np.testing.assert_allclose(got, run(params, rows), rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32_and_keeps_its_outputs_float32(config, run, params, rows):
  model = registry.language_model(config, dtype="bfloat16")
  hidden = jax.jit(model.hidden)(params, rows.tokens, rows.positions, rows.segments)
  exact = run(params, rows)
  assert hidden.dtype == jnp.float32
  real = np.asarray(rows.segments) > 0
  error = np.linalg.norm((hidden - exact)[real]) / np.linalg.norm(exact[real])
  assert 1e-5 < error < 0.05


def test_weights_cast_for_decoding_decode_alike_and_keep_their_vectors(config, params, rows):
  model = registry.language_model(config, dtype="bfloat16")
  cast = decoder.cast_for_decoding(params, "bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(cast) if x.ndim >= 2} == {"bfloat16"}
  assert {x.dtype.name for x in jax.tree.leaves(cast) if x.ndim < 2} == {"float32"}
  cache = model.init_cache(3, 8)
  assert cache.keys[0].dtype == jnp.bfloat16

  @jax.jit
  def decode(params):
    hidden, filled = model.prefill(params, rows.tokens, rows.positions, rows.segments, cache)
    return model.decode_step(params, jnp.array([1, 2, 3]), filled)[0]

  np.testing.assert_array_equal(decode(cast), decode(params))


def test_weights_cast_once_are_the_same_model_in_bfloat16(config, params, rows):
  hidden = jax.jit(registry.language_model(config, dtype="bfloat16").hidden)
  arguments = rows.tokens, rows.positions, rows.segments
  cast = decoder.cast_for_decoding(params, "bfloat16")
  np.testing.assert_array_equal(hidden(cast, *arguments), hidden(params, *arguments))


def test_unknown_dtypes_and_policies_are_refused_by_name(config):
  with pytest.raises(ValueError, match="dtype='float16' is not one of float32, bfloat16"):
    registry.language_model(config, dtype="float16")
  with pytest.raises(ValueError, match="remat_policy='all'"):
    registry.language_model(config, remat=True, remat_policy="all")
