"""One device mesh and the tables that lay arrays out on it; the only place that names mesh axes.

Models speak of logical axes ("embed", "heads", "mlp", "vocab", "batch"); `RULES` says which mesh
axis each lies on. One device is the mesh (1, 1, 1), with no special case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
RULES = {
  "batch": BATCH,
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """The mesh of the first data × fsdp × tensor of `devices`, JAX's own unless given; `data=-1` takes all that are left over.

  Raises ValueError when there are too few devices.
  """
  devices = jax.devices() if devices is None else devices
  if data == -1:
    data = max(1, len(devices) // (fsdp * tensor))
  wanted = data * fsdp * tensor
  if wanted > len(devices) or wanted < 1:
    raise ValueError(
      f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices and there are "
      f"{len(devices)}; lower mesh.data, mesh.fsdp or mesh.tensor."
    )
  # Explicit axes, the default of recent JAX, fail under a Linen scan with remat.
  shape = np.asarray(devices[:wanted]).reshape(data, fsdp, tensor)
  return Mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def data_shards(mesh: Mesh) -> int:
  """Over how many devices the rows of a batch are spread."""
  return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def assert_divides(name: str, rows: int, mesh: Mesh) -> None:
  """Raises ValueError unless `rows` spread evenly over the mesh's data shards."""
  shards = data_shards(mesh)
  if rows % shards:
    raise ValueError(
      f"{name}={rows} does not divide over {shards} data shards; use a multiple of {shards} or "
      "lower mesh.data."
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """`x` with its logical axes laid on the mesh in scope; unchanged where there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, _spec(x.shape, axes, mesh))


def platform() -> str:
  """Of the devices that are computed for: "cpu", "gpu" or "tpu", by the mesh in scope where there is one."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the data axes, the rest of the array whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def tree_shardings(mesh: Mesh, tree, table: Iterable[tuple[str, tuple]]):
  """A NamedSharding for each leaf: the first pattern found in its path names its logical axes.

  An optimizer's moments match too, since their paths end with the parameter's. Leaves that no
  pattern matches (norm scales, counters, keys) are replicated, and so is an axis that does not divide.
  """
  table = [(re.compile(pattern), axes) for pattern, axes in table]

  def sharding(path, leaf):
    name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    for pattern, axes in table:
      if pattern.search(name) and len(axes) == np.ndim(leaf):
        return NamedSharding(mesh, _spec(np.shape(leaf), axes, mesh))
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(shape, axes, mesh) -> PartitionSpec:
  def place(size, axis):
    mesh_axis = RULES[axis] if axis else None
    names = mesh_axis if isinstance(mesh_axis, tuple) else (mesh_axis,)
    ways = int(np.prod([mesh.shape[n] for n in names if n]))
    return mesh_axis if ways > 1 and size % ways == 0 else None

  return PartitionSpec(*(place(size, axis) for size, axis in zip(shape, axes, strict=True)))
