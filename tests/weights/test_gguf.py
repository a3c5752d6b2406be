"""Reading GGUF: metadata, every block format, and files that are damaged."""

import gguf as official
import numpy as np
import pytest

from rlhf_jax.weights import gguf

Type = official.GGMLQuantizationType
# Formats that the gguf package writes, with the largest error they may make on values in [-1, 1].
WRITABLE = {
  Type.F32: 0.0,
  Type.F16: 2.0**-11,
  Type.BF16: 2.0**-8,
  Type.Q8_0: 1 / 127 / 2 + 1e-3,
  Type.Q5_0: 1 / 16 + 1e-3,
  Type.Q5_1: 1 / 31 + 1e-3,
  Type.Q4_0: 1 / 8 + 1e-3,
  Type.Q4_1: 1 / 15 + 1e-3,
}
READABLE_ONLY = [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS]


def write(path, tensors, metadata=()):
  """A file with (name, array, type) tensors and (method, key, value) metadata."""
  writer = official.GGUFWriter(path, "llama")
  for method, key, value in metadata:
    getattr(writer, f"add_{method}")(key, value)
  for name, array, type_ in tensors:
    writer.add_tensor(name, array, raw_dtype=type_)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def random_blocks(type_, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
  """Bytes of a quantised tensor uint8[rows, blocks * size] whose float16 scales are finite."""
  _, size = official.GGML_QUANT_SIZES[type_]
  raw = np.random.default_rng(seed).integers(0, 256, (rows * blocks, size), np.uint8)
  # Two bytes make a float16; clearing the top exponent bit of every odd byte leaves no inf or nan.
  raw[:, 1::2] &= 0xBF
  return raw.reshape(rows, blocks * size)


@pytest.mark.parametrize("type_", WRITABLE, ids=lambda t: t.name)
def test_a_written_tensor_comes_back_within_the_error_of_its_format(tmp_path, type_):
  values = np.random.default_rng(1).uniform(-1, 1, (5, 96)).astype(np.float32)
  stored = official.quantize(values, type_)
  tensor = gguf.read(write(tmp_path / "a.gguf", [("w", stored, type_)])).tensors["w"]
  assert tensor.type == type_ and tensor.shape == (5, 96)
  found = tensor.dequantise()
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, official.dequantize(stored, type_))
  assert np.abs(found - values).max() <= WRITABLE[type_]


@pytest.mark.parametrize("type_", READABLE_ONLY, ids=lambda t: t.name)
def test_random_blocks_are_expanded_as_the_gguf_package_does(tmp_path, type_, monkeypatch):
  monkeypatch.setattr(gguf, "BLOCKS_AT_ONCE", 4)  # 3 x 2 blocks in two rounds, the last one short
  stored = random_blocks(type_, 3, 2)
  tensor = gguf.read(write(tmp_path / "a.gguf", [("w", stored, type_)])).tensors["w"]
  expected = official.dequantize(stored, type_)
  assert np.isfinite(expected).all() and tensor.shape == expected.shape
  np.testing.assert_array_equal(tensor.dequantise(), expected)


def test_tensors_of_several_formats_keep_their_places(tmp_path):
  values = np.random.default_rng(2).uniform(-1, 1, (3, 32)).astype(np.float32)
  tensors = [(t.name, official.quantize(values, t), t) for t in (Type.Q4_0, Type.F32, Type.Q8_0)]
  file = gguf.read(write(tmp_path / "a.gguf", tensors))
  for name, stored, type_ in tensors:
    np.testing.assert_array_equal(
      file.tensors[name].dequantise(), official.dequantize(stored, type_)
    )


def test_metadata_of_every_type_is_read(tmp_path):
  metadata = [
    ("string", "a.text", "naïve ☕\n"),
    ("uint8", "a.u8", 200),
    ("int8", "a.i8", -3),
    ("uint16", "a.u16", 60000),
    ("int16", "a.i16", -30000),
    ("uint32", "a.u32", 4_000_000_000),
    ("int32", "a.i32", -5),
    ("uint64", "a.u64", 2**60),
    ("int64", "a.i64", -(2**60)),
    ("float32", "a.f32", 0.5),
    ("float64", "a.f64", 1e-300),
    ("bool", "a.bool", True),
    ("array", "a.words", ["one", "", "drei"]),
    ("array", "a.numbers", [3, -1, 4]),
  ]
  path = write(tmp_path / "a.gguf", [("w", np.zeros(3, np.float32), Type.F32)], metadata)
  file = gguf.read(path)
  assert {key: file.metadata[key] for _, key, _ in metadata} == {k: v for _, k, v in metadata}
  assert file.get("general.architecture") == "llama"


@pytest.fixture
def good(tmp_path):
  tensor = np.arange(96, dtype=np.float32).reshape(3, 32)
  return write(tmp_path / "good.gguf", [("w", tensor, Type.F32)], [("string", "a.b", "c" * 40)])


def test_a_truncated_file_says_where(good):
  whole = good.read_bytes()
  good.write_bytes(whole[:-40])
  with pytest.raises(ValueError, match="good.gguf is truncated: tensor w needs bytes"):
    gguf.read(good)
  for length in (20, 60, 100):
    good.write_bytes(whole[:length])
    with pytest.raises(ValueError, match="good.gguf is truncated: its header ends early"):
      gguf.read(good)


def test_what_is_not_gguf_is_refused(good, tmp_path):
  whole = good.read_bytes()
  good.write_bytes(b"PK\x03\x04" + whole[4:])
  with pytest.raises(ValueError, match="not a GGUF file: it starts with b'PK"):
    gguf.read(good)
  good.write_bytes(whole[:4] + b"\x00\x00\x00\x03" + whole[8:])  # big-endian
  with pytest.raises(ValueError, match="only little-endian versions 2 and 3"):
    gguf.read(good)
  with pytest.raises(FileNotFoundError, match="none.gguf is not a file"):
    gguf.read(tmp_path / "none.gguf")


def test_a_format_that_can_not_be_expanded_is_named(tmp_path):
  path = write(tmp_path / "a.gguf", [("blk.0.w", np.zeros((2, 4), np.float64), Type.F64)])
  with pytest.raises(ValueError, match="tensor blk.0.w is stored as F64"):
    gguf.read(path).tensors["blk.0.w"].dequantise()


def test_a_missing_key_is_named(good):
  with pytest.raises(ValueError, match="good.gguf: the metadata has no llama.block_count"):
    gguf.read(good).get("llama.block_count")
