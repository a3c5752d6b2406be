"""Writes the benchmarked models as Hugging Face folders for the other libraries, by our own exporter.

  python -m benchmarks.peers.make_model S M
  python -m benchmarks.peers.make_model 1B --without-weights

S has random weights, M is SmolLM2-135M. Without weights a folder holds what a model with random ones is made from. The tokenizer of both says "w17" for id 17, so that a text of n words has n tokens.
"""

from __future__ import annotations

import argparse
import json

import jax
import tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.peers import measure
from rlhf_jax.models import registry
from rlhf_jax.models.layers import Rotary
from rlhf_jax.models.llama import LlamaConfig
from rlhf_jax.weights import export, load

MARKS = {
  "pad_token_id": measure.PAD,
  "bos_token_id": measure.BOS,
  "eos_token_id": measure.EOS,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("models", nargs="+", choices=tuple(measure.SHAPES["models"]))
  parser.add_argument("--without-weights", action="store_true")
  args = parser.parse_args()
  for model in args.models:
    shape, folder = measure.SHAPES["models"][model], measure.MODELS / model
    if args.without_weights:
      config = _config(shape)
      _words(config.vocab_size).save_pretrained(folder)
      (folder / "config.json").write_text(json.dumps(config.to_hf() | MARKS), encoding="utf-8")
      print(folder)
      continue
    if shape["source"] == "random":
      config, params = _random(shape)
    else:
      config, params, _ = load.load(shape["source"])
    print(export.save_hf(folder, config, params, _words(config.vocab_size)))


def _random(shape):
  config = _config(shape)
  return config, registry.language_model(config).init(jax.random.key(0))


def _config(shape) -> LlamaConfig:
  return LlamaConfig(
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
