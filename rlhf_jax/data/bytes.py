"""Tokenizers of bytes, for models that are trained here from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
  """257 tokens: every byte, and an end mark that also pads."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
  return _with_end(models.BPE(vocab=vocabulary, merges=[]))


def byte_pair_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
  """At most `size` tokens: every byte, an end mark that also pads, and the commonest pairs of tokens in `texts`
  (arXiv:1508.07909)."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False, min_frequency=2
  )
  tokenizer.train_from_iterator(texts, trainer)
  return _with_end(tokenizer.model)


def _with_end(model: models.BPE) -> PreTrainedTokenizerFast:
  tokenizer = Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
