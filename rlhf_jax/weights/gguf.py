"""Reads a GGUF file: its metadata as a dict, its tensors as float32 arrays.

The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here, since a vocabulary
is some hundred thousand strings and `gguf.GGUFReader` spends seconds on them; block formats are dequantised by `gguf`.
"""

from __future__ import annotations

import dataclasses
import mmap
import pathlib
import struct
from typing import Any

import gguf
import numpy as np

GGUFType = gguf.GGUFValueType
SCALARS = {
  GGUFType.UINT8: "<B",
  GGUFType.INT8: "<b",
  GGUFType.UINT16: "<H",
  GGUFType.INT16: "<h",
  GGUFType.UINT32: "<I",
  GGUFType.INT32: "<i",
  GGUFType.UINT64: "<Q",
  GGUFType.INT64: "<q",
  GGUFType.FLOAT32: "<f",
  GGUFType.FLOAT64: "<d",
  GGUFType.BOOL: "<?",
}
BLOCKS_AT_ONCE = 1 << 12


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor as it lies in the file."""

  name: str
  shape: tuple[int, ...]  # numpy's order: the last axis is contiguous
  type: gguf.GGMLQuantizationType
  data: np.ndarray  # uint8[bytes], a view of the file

  def dequantise(self) -> np.ndarray:
    """float32[*shape]. Raises ValueError naming a type that the `gguf` package cannot expand."""
    if self.type == gguf.GGMLQuantizationType.F32:
      return self.data.view(np.float32).reshape(self.shape)
    if self.type == gguf.GGMLQuantizationType.F16:
      return self.data.view(np.float16).astype(np.float32).reshape(self.shape)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
    blocks = self.data.reshape(-1, block_bytes)
    values = np.empty((len(blocks), block_size), np.float32)
    # gguf works 16 rows at a time: a row of many blocks is several times faster than the tensor's own rows.
    for i in range(0, len(blocks), BLOCKS_AT_ONCE):
      rows = blocks[i : i + BLOCKS_AT_ONCE]
      try:
        values[i : i + len(rows)] = gguf.dequantize(rows.reshape(1, -1), self.type).reshape(
          rows.shape[0], block_size
        )
      except NotImplementedError as e:
        raise ValueError(
          f"tensor {self.name} is stored as {self.type.name}, which the gguf package cannot dequantise;"
          " convert the file to F16, Q8_0 or another type it can."
        ) from e
    return values.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class File:
  """A whole GGUF file."""

  path: pathlib.Path
  metadata: dict[str, Any]  # int, float, bool, str, or a list of one of them
  tensors: dict[str, Tensor]

  def get(self, key: str) -> Any:
    """The value of `key`. Raises ValueError naming file and key when the file lacks it."""
    if key not in self.metadata:
      raise ValueError(f"{self.path}: the metadata has no {key}; convert the model to GGUF again.")
    return self.metadata[key]


def read(path) -> File:
  """Metadata and tensors of the GGUF file at `path`; tensors are views of the mapped file until dequantised."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file; give the path of a .gguf file.")
  with path.open("rb") as f:
    start = f.read(8)
    if start[:4] != b"GGUF":
      raise ValueError(
        f"{path} is not a GGUF file: it starts with {start[:4]!r} instead of b'GGUF'."
      )
    version = int.from_bytes(start[4:8], "little")
    if version not in (2, 3):
      raise ValueError(
        f"{path}: GGUF version {version} is not read, only little-endian versions 2 and 3 are;"
        " convert the model to GGUF again."
      )
    mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  try:
    return _parse(path, mapped)
  except struct.error as e:
    raise ValueError(f"{path} is truncated: its header ends early; download it again.") from e


def _parse(path: pathlib.Path, mapped: mmap.mmap) -> File:
  header = _Header(mapped, offset=8)
  num_tensors, num_keys = header.scalar("<Q"), header.scalar("<Q")
  metadata = {}
  for _ in range(num_keys):
    key = header.string()
    metadata[key] = header.value(GGUFType(header.scalar("<I")))
  infos = [header.tensor_info() for _ in range(num_tensors)]

  alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
  data_start = -(-header.offset // alignment) * alignment
  file_bytes = np.frombuffer(mapped, np.uint8)
  tensors = {}
  for name, shape, type_id, offset in infos:
    try:
      type_ = gguf.GGMLQuantizationType(type_id)
    except ValueError:
      raise ValueError(
        f"{path}: tensor {name} has type number {type_id}, which the gguf package does not know."
      ) from None
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    num_bytes = int(np.prod(shape)) // block_size * block_bytes
    first = data_start + offset
    if first + num_bytes > len(file_bytes):
      raise ValueError(
        f"{path} is truncated: tensor {name} needs bytes {first} to {first + num_bytes}"
        f" of a file of {len(file_bytes)}; download it again."
      )
    tensors[name] = Tensor(name, shape, type_, file_bytes[first : first + num_bytes])
  return File(path, metadata, tensors)


class _Header:
  """A cursor over the part of the file before the tensor data."""

  def __init__(self, buffer: mmap.mmap, offset: int):
    self.buffer, self.offset = buffer, offset

  def scalar(self, fmt: str):
    (value,) = struct.unpack_from(fmt, self.buffer, self.offset)
    self.offset += struct.calcsize(fmt)
    return value

  def string(self) -> str:
    length = self.scalar("<Q")
    raw = self.buffer[self.offset : self.offset + length]
    if len(raw) != length:
      raise struct.error("string past the end")
    self.offset += length
    return raw.decode("utf-8")

  def value(self, type_: GGUFType):
    if type_ == GGUFType.STRING:
      return self.string()
    if type_ == GGUFType.ARRAY:
      item, count = GGUFType(self.scalar("<I")), self.scalar("<Q")
      if item not in SCALARS:
        return [self.value(item) for _ in range(count)]
      fmt = f"<{count}{SCALARS[item][1]}"
      values = struct.unpack_from(fmt, self.buffer, self.offset)
      self.offset += struct.calcsize(fmt)
      return list(values)
    return self.scalar(SCALARS[type_])

  def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape in numpy's order, type number, offset from the start of the tensor data."""
    name = self.string()
    dims = [self.scalar("<Q") for _ in range(self.scalar("<I"))]
    return name, tuple(reversed(dims)), self.scalar("<I"), self.scalar("<Q")
