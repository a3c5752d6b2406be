"""One program run by several processes, each with devices of its own: what they lay out, fetch and tell one another.

All processes run the same code on the same seed and data, and so decide alike; whatever only one of them can know, the look of a
folder or a signal, it has to tell the others. What crosses processes here is called by all of them, in the same order.
With one process everything is as it would be without this module.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rlhf_jax.sharding import batch_sharding


def several() -> bool:
  """Whether this process is one of several; asks no device where it is not."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process is the one that writes files and speaks to the terminal."""
  return not several() or jax.process_index() == 0


def place(tree, shardings):
  """Host arrays, which are the same on every process, or arrays that are spread already, laid out by `shardings`.

  Each process sends its devices their own parts and no more.
  """
  if not several():
    return jax.device_put(tree, shardings)
  if isinstance(shardings, Sharding):
    return jax.tree.map(lambda x: _placed(x, shardings), tree)
  return jax.tree.map(_placed, tree, shardings)


def _placed(x, sharding: Sharding) -> jax.Array:
  if isinstance(x, jax.Array):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = _placed(jax.random.key_data(x), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    if not x.is_fully_addressable:
      return jax.device_put(x, sharding)
  x = np.asarray(x)
  x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def own_rows(mesh: Mesh, size: int) -> np.ndarray:
  """Which rows of a batch of `size` this process's devices hold, in order."""
  if not several():
    return np.arange(size)
  held = batch_sharding(mesh).addressable_devices_indices_map((size,))
  return np.unique(np.concatenate([np.arange(size)[index] for index in held.values()]))


def place_own_rows(tree, mesh: Mesh, size: int):
  """A batch of `size` rows of which each process gives those of `own_rows`."""
  if not several():
    return place(tree, batch_sharding(mesh))
  rows = own_rows(mesh, size)

  def placed(x):
    def part(index):
      start, stop, _ = index[0].indices(size)
      first = np.searchsorted(rows, start)
      return x[first : first + stop - start]

    x = np.asarray(x)
    return jax.make_array_from_callback((size, *x.shape[1:]), batch_sharding(mesh), part)

  return jax.tree.map(placed, tree)


def fetch(tree):
  """`tree` as whole host arrays, on every process."""

  def whole(x):
    spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if spread else x

  return jax.device_get(jax.tree.map(whole, tree))


def wait(where: str) -> None:
  """Until all processes have come to `where`."""
  if several():
    multihost_utils.sync_global_devices(where)


def gather(value: Any) -> list:
  """What each process gives, in their order; JSON values."""
  if not several():
    return [value]
  text = np.frombuffer(json.dumps(value, default=float).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(text)))
  texts = multihost_utils.process_allgather(_padded(text, int(sizes.max())))
  return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def share(size: int) -> slice:
  """Which of `size` things are this process's to do."""
  if not several():
    return slice(0, size)
  count, index = jax.process_count(), jax.process_index()
  return slice(size * index // count, size * (index + 1) // count)


def from_first(function: Callable[[], Any]) -> Any:
  """What `function()` returns on the first process, which alone calls it, on all; a JSON value."""
  if not several():
    return function()
  text = json.dumps(function(), default=float).encode() if is_first() else b""
  text = np.frombuffer(text, np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = multihost_utils.broadcast_one_to_all(_padded(text, size))
  return json.loads(text[:size].tobytes())


def _padded(text: np.ndarray, size: int) -> np.ndarray:
  """Filled up to a power of two, so that few sizes are compiled."""
  return np.pad(text, (0, (1 << max(size - 1, 0).bit_length()) - len(text)))


def greatest(value: int) -> jax.Array:
  """The greatest `value` that a process gives, int32[]; the devices find it in its turn, and nobody waits before it is read."""
  mesh = Mesh(np.asarray(jax.devices()), ("device",))
  spread = NamedSharding(mesh, PartitionSpec("device"))
  one = np.full(1, value, np.int32)
  return _max(mesh)(jax.make_array_from_callback((mesh.size,), spread, lambda index: one))


@functools.cache
def _max(mesh: Mesh):
  return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
