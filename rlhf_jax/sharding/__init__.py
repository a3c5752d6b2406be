"""One device mesh and the tables that lay arrays out on it; the only place that names mesh axes.

Models speak of logical axes ("embed", "heads", "mlp", "vocab", "batch", "time"); `RULES` says which mesh
axis each lies on. One device is the mesh (1, 1, 1), with no special case. The devices may be those of several
processes: `processes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import mesh_utils
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
  "time": "tensor",  # of activations between blocks (arXiv:2205.05198, section 4.2.2)
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """The mesh of the first data × fsdp × tensor of `devices`, JAX's own unless given; `data=-1` takes all that are left over.

  Neighbours along "tensor" are the closest to one another, and along "data" the farthest. Raises ValueError when there are too few
  devices, or when those of several processes would not all be used.
  """
  devices = jax.devices() if devices is None else list(devices)
  if data == -1:
    data = max(1, len(devices) // (fsdp * tensor))
  wanted = data * fsdp * tensor
  asked = f"mesh data={data} x fsdp={fsdp} x tensor={tensor}"
  if wanted > len(devices) or wanted < 1:
    raise ValueError(
      f"{asked} needs {wanted} devices and there are {len(devices)}; lower mesh.data, mesh.fsdp or mesh.tensor."
    )
  if wanted < len(devices) and len({device.process_index for device in devices}) > 1:
    raise ValueError(
      f"{asked} is {wanted} devices and these processes have {len(devices)}, all of which must take part; raise mesh.data (-1 "
      "takes all that are left), or start fewer processes."
    )
  arranged = _arranged(devices[:wanted], (data, fsdp, tensor))
  # Explicit axes, the default of recent JAX, fail under a Linen scan with remat.
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(devices: list, shape: tuple[int, int, int]) -> np.ndarray:
  """By the network between TPUs; other devices in their own order, which has those of a process side by side."""
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(shape)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  if shape[0] % slices:
    raise ValueError(
      f"mesh.data={shape[0]} does not divide over {slices} slices, between which only data parallelism pays; use a multiple of {slices}."
    )
  inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


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


def shards_in_scope() -> int:
  """Over how many devices of the mesh in scope the rows of a batch are spread; 1 where there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else data_shards(mesh)


def platform() -> str:
  """Of the devices that are computed for: "cpu", "gpu" or "tpu", by the mesh in scope where there is one."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def spreads(rows: int) -> bool:
  """Whether so many rows of a batch divide over the mesh in scope."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or rows % data_shards(mesh) == 0


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
