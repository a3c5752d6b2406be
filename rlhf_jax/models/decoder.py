"""A decoder-only language model as pure functions, made from what a family supplies: `Family`.

Padding may lie on either side and rows may be packed, since a query sees the keys of its own
segment that stand before it, and nothing is read from the tokens themselves.

The canonical parameter tree has a subtree per layer, `layers_0`, `layers_1`, ...; `stack_layers`
gives the form that `scan` runs over, {"layers": [L, ...]}, and `unstack_layers` leads back. The
functions of a `LanguageModel` take either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from rlhf_jax import sharding
from rlhf_jax.models import layers, products, q_heads, quantize
from rlhf_jax.models.remat import rematerialized
from rlhf_jax.types import LanguageModel, Params

Array = jax.Array


class Family(NamedTuple):
  """What tells one family of decoders from another."""

  config: Any  # vocab_size, hidden_size, num_layers, num_kv_heads, head_dim, tied, ...
  block: nn.Module  # (x, shared, mask, cache) -> (x, (keys, values) | None)
  norm: nn.Module  # the final one
  init_embed: Callable  # key -> the subtrees that `embed` reads
  embed: Callable  # (params, tokens, positions) -> float32[B, T, D]
  shared: Callable  # positions -> what all blocks use, such as rotary tables


@struct.dataclass
class Cache:
  """Keys and values of the tokens seen so far; all rows fill the same slot at the same time.

  Decoding goes round: after the last slot comes the first, whose token is forgotten.
  """

  keys: tuple  # per layer, compute dtype [B, K, S, C]
  values: tuple  # per layer, compute dtype [B, K, S, C]
  segments: Array  # int32[B, S], 0 where nothing is stored
  positions: Array  # int32[B], of each row's next token
  length: Array  # int32[], tokens so far; the next slot is that modulo S


def language_model(
  family: Family, *, dtype: str, remat: bool, remat_policy: str, scan: bool, sequence: bool
) -> LanguageModel:
  """`family` as the tuple of functions that training and rollout see."""
  config = family.config

  @jax.jit  # traced once, not once a layer; the compiler puts all layers together all the same
  def block(weights, x, shared, mask, cache=None):
    x = sharding.constrain(x, "batch", "time" if sequence else None, None)
    return family.block.apply({"params": weights}, x, shared, mask, cache)

  def learn(weights, x, shared, mask):
    return block(weights, x, shared, mask)[0]

  if remat:
    learn = rematerialized(learn, remat_policy)

  def final_norm(params, x):
    return family.norm.apply({"params": params["final_norm"]}, x)

  def init(key: Array) -> Params:
    embed_key, unembed_key, layer_key = jax.random.split(key, 3)
    params = family.init_embed(embed_key)
    x, positions = jnp.zeros((1, 1, config.hidden_size)), jnp.zeros((1, 1), jnp.int32)
    inputs = (x, family.shared(positions), jnp.ones((1, 1, 1), bool))
    init_block = lambda key: family.block.init(key, *inputs)["params"]
    params["layers"] = jax.lax.map(init_block, jax.random.split(layer_key, config.num_layers))
    params["final_norm"] = family.norm.init(key, x)["params"]
    if not config.tied:
      shape = (config.hidden_size, config.vocab_size)
      kernel = config.initializer_range * jax.random.normal(unembed_key, shape)
      params["unembed"] = {"kernel": kernel}
    return unstack_layers(params)

  def hidden(
    params: Params,
    tokens: Array,
    positions: Array,
    segments: Array,
    branches: Array | None = None,
    fork: tuple[int, int] | None = None,
  ) -> Array:
    """After the final norm, float32[B, T, D]; `branches` and `fork` are those of `types.Shared`."""
    x = family.embed(params, tokens, positions)
    shared = _once(family.shared(positions))
    T = tokens.shape[1]
    mask = attention_mask(segments, segments, jnp.arange(T))
    if fork is not None:
      mask = layers.fork_mask(mask, *fork)
    elif branches is not None:
      mask &= in_branch(branches)
    if scan:
      stacked = stack_layers(params)["layers"]
      x, _ = jax.lax.scan(lambda x, w: (learn(w, x, shared, mask), None), x, stacked)
    else:
      for weights in layer_list(params, config.num_layers):
        x = learn(weights, x, shared, mask)
    return final_norm(params, x)

  def unembed(params: Params, hidden: Array) -> Array:
    """Logits float32[..., V] of hidden[..., D], moved by Q heads where the tree has some."""
    if config.tied:
      logits = products.matmul_transposed(hidden, params["embed"]["embedding"], dtype)
    else:
      logits = products.matmul(hidden, params["unembed"]["kernel"], dtype)
    if q_heads.NAME not in params:
      return logits
    heads = params[q_heads.NAME]
    return q_heads.moved(logits, q_values(heads, hidden), heads["scale"])

  def q_values(heads: Params, hidden: Array) -> Array:
    """float32[H, ..., V] of hidden[..., D]."""
    return q_heads.q_values(heads, hidden, dtype)

  def init_cache(batch: int, length: int) -> Cache:
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    empty = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))
    return Cache(
      keys=empty,
      values=empty,
      segments=jnp.zeros((batch, length), jnp.int32),
      positions=jnp.zeros(batch, jnp.int32),
      length=jnp.zeros((), jnp.int32),
    )

  def prefill(
    params: Params, tokens: Array, positions: Array, segments: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """hidden[B, T, D] and the cache with T more slots filled; a later turn may follow an earlier one."""
    slots = cache.length + jnp.arange(tokens.shape[1])
    return extend(params, tokens, positions, segments, cache, slots)

  def extend(params, tokens, positions, segments, cache, slots):
    """`prefill` of tokens that see what is stored up to `slots` int[T]."""
    slot = cache.length % cache.segments.shape[1]
    stored = jax.lax.dynamic_update_slice(cache.segments, segments, (0, slot))
    mask = attention_mask(segments, stored, slots)
    shared = _once(family.shared(positions))
    x = family.embed(params, tokens, positions)
    keys, values = [], []
    past = zip(cache.keys, cache.values, strict=True)
    for weights, (k, v) in zip(layer_list(params, config.num_layers), past, strict=True):
      x, (k, v) = block(weights, x, shared, mask, (k, v, slot))
      keys.append(k)
      values.append(v)
    last = (segments == _last_segment(stored)[:, None]) & (segments > 0)
    cache = Cache(
      keys=tuple(keys),
      values=tuple(values),
      segments=stored,
      positions=jnp.where(
        last.any(axis=1), jnp.max(jnp.where(last, positions + 1, 0), axis=1), cache.positions
      ),
      length=cache.length + tokens.shape[1],
    )
    return final_norm(params, x), cache

  def decode_step(params: Params, token: Array, cache: Cache) -> tuple[Array, Cache]:
    """hidden[B, D] after one more token int32[B] of each row's last segment."""
    segments = jnp.maximum(_last_segment(cache.segments), 1)
    every_slot = jnp.full(1, cache.segments.shape[1])  # all that a row has stored came before
    x, cache = extend(
      params, token[:, None], cache.positions[:, None], segments[:, None], cache, every_slot
    )
    return x[:, 0], cache

  def prefill_rows(
    params: Params, tokens: Array, positions: Array, segments: Array, cache: Cache, rows: Array
  ) -> tuple[Array, Cache]:
    """hidden[k, T, D] of what the k `rows` begin anew with, in the T slots before the next; the rest of them is empty."""
    hidden, fresh = prefill(params, tokens, positions, segments, init_cache(*tokens.shape))
    T, S = tokens.shape[1], cache.segments.shape[1]

    def turned(new, axis):
      width = [(0, S - T if i == axis else 0) for i in range(new.ndim)]
      return jnp.roll(jnp.pad(new, width), cache.length - T, axis)

    put = lambda stored, new: layers.write_rows(stored, turned(new, 2), rows)
    return hidden, Cache(
      keys=jax.tree.map(put, cache.keys, fresh.keys),
      values=jax.tree.map(put, cache.values, fresh.values),
      segments=cache.segments.at[rows].set(turned(fresh.segments, 1)),
      positions=cache.positions.at[rows].set(fresh.positions),
      length=cache.length,
    )

  return LanguageModel(
    config, init, hidden, unembed, q_values, init_cache, prefill, decode_step, prefill_rows
  )


def _once(tree):
  """Computed once for all layers: XLA would fuse the sines and cosines into every use of them.

  For a CPU it drops the barrier before it fuses, and looks through no product: that with the identity is exact.
  """
  if sharding.platform() == "cpu":
    exact = jax.lax.Precision.HIGHEST
    return jax.tree.map(lambda x: jnp.dot(x, jnp.eye(x.shape[-1]), precision=exact), tree)
  return jax.lax.optimization_barrier(tree)


def attention_mask(segments: Array, key_segments: Array, slots: Array) -> Array:
  """bool[B, T, S]: keys in the query's segment, up to the query's own slot (int[T]) among the S."""
  same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] > 0)
  before = jnp.arange(key_segments.shape[1])[None, :] <= slots[:, None]
  return same & before[None]


def in_branch(branches: Array) -> Array:
  """bool[B, T, T]: keys that all branches see, and those of the query's own."""
  theirs = branches[:, None, :]
  return (theirs == 0) | (theirs == branches[:, :, None])


def _last_segment(segments: Array) -> Array:
  return jnp.max(segments, axis=1)


def layer_list(params: Params, count: int) -> list[Params]:
  """The layers' subtrees in order, of either form of the tree."""
  params = unstack_layers(params)
  return [params[f"layers_{i}"] for i in range(count)]


def stack_layers(params: Params) -> Params:
  """layers_0, layers_1, ... as one subtree "layers" whose leaves have a leading axis L."""
  count = sum(name.startswith("layers_") for name in params)
  if not count:
    return params
  rest = {name: tree for name, tree in params.items() if not name.startswith("layers_")}
  trees = [params[f"layers_{i}"] for i in range(count)]
  return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)}


def unstack_layers(params: Params) -> Params:
  """The canonical tree: the inverse of `stack_layers`."""
  if "layers" not in params:
    return params
  rest = {name: tree for name, tree in params.items() if name != "layers"}
  count = jax.tree.leaves(params["layers"])[0].shape[0]
  take = lambda i: jax.tree.map(lambda leaf: leaf[i], params["layers"])
  return {**rest, **{f"layers_{i}": take(i) for i in range(count)}}


def cast_for_decoding(params: Params, dtype: str) -> Params:
  """Matrices in the compute dtype, once, so that no decoding step rounds them again; vectors and quantized kernels as they are."""

  def cast(path, leaf):
    numbers = leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if numbers and path[-1].key != quantize.SCALE else leaf

  return jax.tree_util.tree_map_with_path(cast, params)
