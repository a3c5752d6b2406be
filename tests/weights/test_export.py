"""Folders we write: read back identical, and named as Transformers names them (`golden/export.json`)."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors
import tiny_checkpoint

from rlhf_jax.models import registry
from rlhf_jax.weights import export, hf, load, names

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "golden/export.json").read_text())
FAMILIES = sorted(tiny_checkpoint.CONFIGS)


@pytest.fixture(scope="module")
def tokenizer():
  return tiny_checkpoint.tokenizer()


def make(family: str):
  config = registry.config_from_hf(hf.complete(tiny_checkpoint.CONFIGS[family], where=family))
  tensors = tiny_checkpoint.tensors(names.FAMILIES[config.model_type].table(config))
  return config, names.from_hf(config, tensors)


@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 20_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read_back(tmp_path, tokenizer, family, max_shard_bytes):
  config, params = make(family)
  export.save_hf(tmp_path, config, params, tokenizer, max_shard_bytes=max_shard_bytes)
  loaded = load.load(str(tmp_path))
  assert loaded.config == config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  text = "hello wörld 12<|im_end|>\n"
  assert loaded.tokenizer(text).input_ids == tokenizer(text).input_ids
  assert loaded.tokenizer.chat_template == tokenizer.chat_template
  assert loaded.tokenizer.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_that_transformers_saves(tmp_path, tokenizer, family):
  export.save_hf(tmp_path, *make(family), tokenizer)
  with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as f:
    found = {name: f.get_slice(name).get_shape() for name in f.keys()}
    assert f.metadata() == {"format": "pt"}
  assert found == GOLDEN["cases"][family]["tensors"]


@pytest.mark.parametrize("family", [*FAMILIES, "SmolLM2-135M"])
def test_transformers_found_the_same_logits_in_what_we_wrote(family):
  case = GOLDEN["cases"][family]
  assert case["max_logit"] > 1
  assert case["max_difference_exported"] <= 1e-6 * case["max_logit"]
  assert case["max_difference_ours"] <= 1e-5 * case["max_logit"]


def test_shards_hold_all_tensors_once_and_none_is_too_large():
  tensors = {
    name: np.zeros(size, np.float32)
    for name, size in zip("zabcde", (8, 3, 4, 9, 1, 2), strict=True)
  }
  parts = export.shards(tensors, 28)
  assert [list(part) for part in parts] == [["z"], ["a", "b"], ["c"], ["d", "e"]]


def test_a_second_export_leaves_nothing_of_the_first(tmp_path, tokenizer):
  config, params = make("llama")
  export.save_hf(tmp_path, config, params, tokenizer, max_shard_bytes=20_000)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
  export.save_hf(tmp_path, *make("qwen3"), tokenizer)
  assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
  assert load.load(str(tmp_path)).config.qk_norm


def test_the_config_names_the_marks_of_the_tokenizer(tmp_path, tokenizer):
  export.save_hf(tmp_path, *make("llama"), tokenizer)
  for name in ("config.json", "generation_config.json"):
    values = json.loads((tmp_path / name).read_text())
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (1, 2, 0)


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, tokenizer, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(OSError, match="the weights need 0 MB and the disk has 0 MB free"):
    export.save_hf(tmp_path / "out", *make("llama"), tokenizer)
  assert not list((tmp_path / "out").iterdir())


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
  values = tiny_checkpoint.LLAMA | dict(vocab_size=200)
  config = registry.config_from_hf(hf.complete(values, where="tiny"))
  params = names.from_hf(config, tiny_checkpoint.tensors(names.llama_table(config)))
  with pytest.raises(ValueError, match="tokenizer has 264 tokens but the embedding only 200 rows"):
    export.save_hf(tmp_path / "out", config, params, tokenizer)
