"""What a chip can do, and handles of chips that this machine does not have."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
from jax.experimental import topologies

GIB = 1 << 30
INSTALL = "pip install 'rlhf_jax[plan]'"


class Chip(NamedTuple):
  """Peaks, a second. Links are counted along one axis of the torus, which has two neighbours: what a ring of chips uses."""

  name: str
  memory: float  # bytes that a program may use; the compiler keeps some for itself
  flops: float  # of products in bfloat16
  bandwidth: float  # bytes, of the large memory
  links: float  # bytes sent


# As https://cloud.google.com/tpu/docs and https://jax-ml.github.io/scaling-book/tpus/ have them, memory as the compiler says it.
CHIPS = {
  "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, 819e9, 2 * 45e9),
  "v5p": Chip("TPU v5p", 95.74 * GIB, 459e12, 2765e9, 2 * 90e9),
  "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, 1640e9, 2 * 90e9),
}
EXAMPLES = {"v5e": "v5e:4x4", "v5p": "v5p:4x4x4", "v6e": "v6e:4x4"}
# Two cores of an AMD EPYC (AVX512-BF16): only that a plan for forced host devices has the same columns.
HOST = Chip("forced host device", math.inf, 1e12, 20e9, 10e9)
ACCELERATOR = {
  "v5e": ("v5litepod", 1),
  "v5p": ("v5p", 2),
  "v6e": ("v6e", 1),
}  # cores a chip, in its name


class Topology(NamedTuple):
  name: str
  chip: Chip
  devices: list


def topology(name: str) -> Topology:
  """The chips of `v5e:4x4`, `v5p:4x4x4`, `v6e:8x8` and the like, or of `cpu:8`, eight forced host devices.

  Raises ValueError for a name that is none, and ImportError without `libtpu`.
  """
  kind, _, shape = name.partition(":")
  if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
    return Topology(name, HOST, _host_devices(int(shape)))
  if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise ValueError(
      f"--topology={name!r} is not one of {', '.join(EXAMPLES.values())} (any number of chips) or cpu:8; the numbers are "
      "the sides of the slice: v5e-16 is v5e:4x4, v5e-256 is v5e:16x16, v5p-128 is v5p:4x4x4, whose name counts cores."
    )
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(f"the compiler for TPUs is in the package libtpu: {INSTALL}") from error
  sides = [int(side) for side in shape.split("x")]
  generation, cores = ACCELERATOR[kind]
  _quietly(f"{generation}-{math.prod(sides) * cores}")
  try:
    with heard():
      devices = topologies.get_topology_desc(name, platform="tpu").devices
  except Exception as error:  # jaxlib's own kinds, which say what is wrong with the shape
    raise ValueError(
      f"--topology={name!r} is not a slice of {CHIPS[kind].name}s ({str(error).splitlines()[0]}); use {EXAMPLES[kind]}, say."
    ) from error
  return Topology(name, CHIPS[kind], list(devices))


def _host_devices(count: int) -> list:
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # JAX has its devices already
    pass
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise ValueError(
      f"--topology=cpu:{count} needs as many host devices and this process has {len(devices)}; set XLA_FLAGS="
      f"--xla_force_host_platform_device_count={count}."
    )
  return devices[:count]


def _quietly(accelerator: str) -> None:
  """What the library would ask a TPU's host for, and say that it has not found."""
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chips are opened, so plans may run side by side
    "TPU_ACCELERATOR_TYPE": accelerator,
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "1",  # warnings are `heard`
    "TPU_STDERR_LOG_LEVEL": "1",
  }.items():
    os.environ.setdefault(name, value)


@contextmanager
def heard() -> Iterator:
  """Within, what is written to the error stream, by the compiler too, is kept; afterwards the value's call returns it."""
  kept = {"text": ""}
  with tempfile.TemporaryFile(mode="w+") as file:
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield lambda: kept["text"]
    finally:
      os.dup2(before, 2)
      os.close(before)
      file.seek(0)
      kept["text"] = file.read()
