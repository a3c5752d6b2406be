"""Writes the benchmarked models as Hugging Face folders for the other libraries, by our own exporter.

  python -m benchmarks.peers.make_model S M

S has random weights, M is SmolLM2-135M. The tokenizer of both says "w17" for id 17, so that a text of n words has n tokens.
"""

from __future__ import annotations

import sys

import jax
import tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.peers import measure
from rlhf_jax.models import registry
from rlhf_jax.models.layers import Rotary
from rlhf_jax.models.llama import LlamaConfig
from rlhf_jax.weights import export, load


def main() -> None:
  for model in sys.argv[1:]:
    shape = measure.SHAPES["models"][model]
    if shape["source"] == "random":
      config, params = _random(shape)
    else:
      config, params, _ = load.load(shape["source"])
    folder = export.save_hf(measure.MODELS / model, config, params, _words(config.vocab_size))
    print(folder)


def _random(shape):
  config = LlamaConfig(
    vocab_size=shape["vocab"],
    hidden_size=shape["d"],
    intermediate_size=shape["ffn"],
    num_layers=shape["layers"],
    num_heads=shape["heads"],
    num_kv_heads=shape["kv_heads"],
    head_dim=shape["d"] // shape["heads"],
    max_positions=4096,
    norm_eps=1e-5,
    rotary=Rotary(theta=shape["rope_theta"]),
    tied=shape["tie"],
  )
  return config, registry.language_model(config).init(jax.random.key(0))


def _words(vocab_size: int) -> PreTrainedTokenizerFast:
  marks = {"<pad>": measure.PAD, "<s>": measure.BOS, "</s>": measure.EOS, "<unk>": 3}
  vocab = marks | {f"w{i}": i for i in range(measure.FIRST, vocab_size)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="<pad>",
    bos_token="<s>",
    eos_token="</s>",
    unk_token="<unk>",
    padding_side="left",
  )


if __name__ == "__main__":
  main()
