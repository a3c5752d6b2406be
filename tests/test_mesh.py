"""Which meshes there are: of these devices, of those of other processes, and what is refused."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.sharding import processes
from rlhf_jax.training.setup import MeshShape


def pretended(count: int, each: int) -> list:
  """Devices of processes that have `each`."""
  return [SimpleNamespace(platform="cpu", process_index=i // each, id=i) for i in range(count)]


def test_neighbours_along_tensor_are_neighbours_in_their_process():
  arranged = sharding._arranged(pretended(8, each=4), (2, 2, 2))
  assert [[[device.id for device in x] for x in y] for y in arranged] == [
    [[0, 1], [2, 3]],
    [[4, 5], [6, 7]],
  ]


def test_minus_one_takes_what_the_others_leave():
  assert dict(sharding.make_mesh(-1, 1, 2).shape) == {"data": 2, "fsdp": 1, "tensor": 2}


def test_several_processes_must_all_take_part():
  with pytest.raises(ValueError, match="is 4 devices and these processes have 8.*mesh.data"):
    sharding.make_mesh(2, 2, 1, devices=pretended(8, each=4))
  assert sharding.make_mesh(2, 1, 1).size == 2  # of four devices that one process has


def test_sequence_sharding_needs_a_tensor_axis():
  with pytest.raises(ValueError, match="mesh.sequence=True spreads time over mesh.tensor"):
    MeshShape(sequence=True).assert_sound("mesh")
  MeshShape(sequence=True, tensor=2).assert_sound("mesh")


def test_time_is_spread_over_tensor_where_it_divides():
  with jax.set_mesh(sharding.make_mesh(1, 2, 2)):
    spread = jax.jit(lambda x: sharding.constrain(x, "batch", "time", None))
    for time, each in ((6, 3), (5, 5)):
      x = spread(np.zeros((2, time, 7)))
      assert x.sharding.shard_shape(x.shape) == (1, each, 7)


def test_with_one_process_there_is_nobody_to_tell():
  assert processes.is_first() and not processes.several()
  assert processes.gather({"a": 1}) == [{"a": 1}] and processes.from_first(lambda: (1, 2)) == (1, 2)
  assert processes.own_rows(sharding.make_mesh(4), 8).tolist() == list(range(8))
  assert processes.share(5) == slice(0, 5)
