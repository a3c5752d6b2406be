"""Reading a Hugging Face folder: whole or sharded, in any float type, and what is said of a broken one."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_checkpoint

from rlhf_jax.weights import hf, load

WEIGHTS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.array([0.5, -1.25], np.float32),
  "c": np.ones((3, 1), np.float32),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_of_any_float_type_are_read_as_float32(tmp_path, dtype):
  stored = {name: tensor.astype(dtype) for name, tensor in WEIGHTS.items()}
  safetensors.numpy.save_file(stored, tmp_path / "model.safetensors")
  found = hf.tensors(tmp_path)
  assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys("abc", np.float32)
  for name in WEIGHTS:
    np.testing.assert_array_equal(found[name], WEIGHTS[name])


@pytest.fixture
def sharded(tmp_path):
  first = {"a": WEIGHTS["a"], "c": WEIGHTS["c"]}
  safetensors.numpy.save_file(first, tmp_path / "model-00001-of-00002.safetensors")
  safetensors.numpy.save_file({"b": WEIGHTS["b"]}, tmp_path / "model-00002-of-00002.safetensors")
  shard_of = {name: f"model-0000{1 + (name == 'b')}-of-00002.safetensors" for name in WEIGHTS}
  (tmp_path / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
  return tmp_path


def test_shards_are_joined(sharded):
  found = hf.tensors(sharded)
  assert sorted(found) == ["a", "b", "c"]
  for name in WEIGHTS:
    np.testing.assert_array_equal(found[name], WEIGHTS[name])


def test_a_missing_shard_is_named(sharded):
  (sharded / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors is named in"):
    hf.tensors(sharded)


def test_a_shard_without_its_tensor_is_named(sharded):
  safetensors.numpy.save_file({"d": WEIGHTS["b"]}, sharded / "model-00002-of-00002.safetensors")
  with pytest.raises(ValueError, match="places b in model-00002-of-00002.safetensors"):
    hf.tensors(sharded)


def test_a_malformed_index_is_named(sharded):
  (sharded / hf.INDEX).write_text('{"weights": {}}')
  with pytest.raises(ValueError, match="index.json is not a safetensors index"):
    hf.tensors(sharded)


@pytest.mark.parametrize("length", [4, 60, -8])
def test_a_truncated_file_is_named(tmp_path, length):
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(WEIGHTS, path)
  path.write_bytes(path.read_bytes()[:length])
  with pytest.raises(ValueError, match="model.safetensors is truncated or not a safetensors file"):
    hf.tensors(tmp_path)


def test_torch_pickles_are_refused_with_the_remedy(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"x")
  with pytest.raises(ValueError, match="only pytorch_model.bin.*convert it to safetensors"):
    hf.tensors(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
    hf.tensors(tmp_path)


def test_a_config_is_completed_with_the_defaults_of_its_type(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 24}))
  config = hf.config(tmp_path)
  assert config["hidden_size"] == 24 and config["use_sliding_window"] is False


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "config.json does not exist"),
    ('{"a": 1,\n oops}', "config.json, line 2: not valid JSON"),
    ('{"hidden_size": 24}', "config.json has no model_type"),
    ('{"model_type": "lama"}', "model_type 'lama' is not known"),
    ('{"model_type": "bert"}', "config.json: .*model_type='bert'"),
    (json.dumps(tiny_checkpoint.LLAMA | {"sliding_window": 8}), "config.json: .*sliding_window=8"),
  ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    load.load(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(tiny_checkpoint.LLAMA))
  with pytest.raises(ValueError, match="has no tokenizer.json"):
    load.load(str(tmp_path))
