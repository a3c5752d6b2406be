"""Tokenizers, all of them `transformers.PreTrainedTokenizerFast`: from a Hugging Face folder, or from GGUF metadata."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# token_type of a GGUF vocabulary: a piece of text, a mark that no text produces, a word added to the vocabulary.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# The split of Llama 3 and of Qwen2 differ in the digits they keep together.
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
  r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_folder(folder) -> PreTrainedTokenizerFast:
  """The tokenizer saved in a Hugging Face folder. Nothing is downloaded."""
  folder = pathlib.Path(folder)
  if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
    raise ValueError(
      f"{folder} has no tokenizer.json; copy the tokenizer's files from the model's source into it."
    )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  if not isinstance(tokenizer, PreTrainedTokenizerFast):
    raise ValueError(
      f"{folder} holds a slow tokenizer ({type(tokenizer).__name__}); save it with a tokenizer.json."
    )
  return tokenizer


def from_gguf(
  metadata: Mapping[str, Any], *, where: str = "GGUF metadata"
) -> PreTrainedTokenizerFast:
  """The tokenizer that a GGUF file describes, with its marks and chat template.

  Raises ValueError naming a tokenizer model or pre-tokenizer that is not known, and what to do.
  """
  kind = _key(metadata, "model", where)
  if kind not in KINDS:
    raise ValueError(
      f"{where}: tokenizer.ggml.model={kind!r} is not one of {', '.join(sorted(KINDS))};"
      " load the model from its Hugging Face folder instead."
    )
  tokens, types = _key(metadata, "tokens", where), _key(metadata, "token_type", where)
  tokenizer, adds_bos = KINDS[kind](metadata, tokens, types, where)
  tokenizer.add_tokens(_added(tokens, types, USER_DEFINED))
  tokenizer.add_special_tokens(_added(tokens, types, CONTROL))

  marks = {
    name: tokens[metadata[key]]
    for name, key in (
      ("bos_token", "tokenizer.ggml.bos_token_id"),
      ("eos_token", "tokenizer.ggml.eos_token_id"),
      ("unk_token", "tokenizer.ggml.unknown_token_id"),
      ("pad_token", "tokenizer.ggml.padding_token_id"),
    )
    if key in metadata
  }
  tokenizer.post_processor = _bos_and_eos(metadata, marks, tokenizer, adds_bos)
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=metadata.get("tokenizer.chat_template"),
    clean_up_tokenization_spaces=False,
    **marks,
  )


def assert_fits(tokenizer: PreTrainedTokenizerFast, vocab_size: int, *, where: str) -> None:
  """Every token has a row of the embedding; the embedding may have rows to spare."""
  if len(tokenizer) > vocab_size:
    raise ValueError(
      f"{where}: the tokenizer has {len(tokenizer)} tokens but the embedding only {vocab_size} rows;"
      " use the tokenizer that the model was trained with."
    )


def _key(metadata: Mapping[str, Any], name: str, where: str):
  key = f"tokenizer.ggml.{name}"
  if key not in metadata:
    raise ValueError(f"{where} has no {key}; convert the model to GGUF again with its tokenizer.")
  return metadata[key]


def _added(tokens: list[str], types: list[int], type_: int) -> list[tokenizers.AddedToken]:
  return [
    tokenizers.AddedToken(token, special=type_ == CONTROL, normalized=False)
    for token, t in zip(tokens, types, strict=True)
    if t == type_
  ]


def _bos_and_eos(metadata, marks: dict[str, str], tokenizer, adds_bos: bool):
  """Byte-level offsets, and the beginning and end marks that the file asks to be added to every text."""
  byte_level = processors.ByteLevel(trim_offsets=False)
  before = ["bos_token"] if metadata.get("tokenizer.ggml.add_bos_token", adds_bos) else []
  after = ["eos_token"] if metadata.get("tokenizer.ggml.add_eos_token", False) else []
  added = [marks[name] for name in (*before, *after)]
  if not added:
    return byte_level
  template = processors.TemplateProcessing(
    single=[*(marks[n] for n in before), "$A", *(marks[n] for n in after)],
    special_tokens=[(token, tokenizer.token_to_id(token)) for token in added],
  )
  return processors.Sequence([byte_level, template])


def _byte_level(metadata, tokens: list[str], types: list[int], where: str):
  """GPT-2's kind: merges of bytes, inside words that a pattern splits off; and whether BOS is added by default."""
  pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
  if pre not in SPLITS:
    raise ValueError(
      f"{where}: tokenizer.ggml.pre={pre!r} is not one of {', '.join(sorted(SPLITS))};"
      " load the model from its Hugging Face folder instead."
    )
  bpe = models.BPE(
    vocab={token: i for i, token in enumerate(tokens)},
    merges=[tuple(merge.split(" ")) for merge in _key(metadata, "merges", where)],
    # Llama 3 takes a whole word that is in the vocabulary as it is.
    ignore_merges=(pre == "llama-bpe"),
  )
  tokenizer = tokenizers.Tokenizer(bpe)
  SPLITS[pre](tokenizer)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, pre == "llama-bpe"


def _sentencepiece(metadata, tokens: list[str], types: list[int], where: str):
  """Llama 2's kind: merges of characters over the whole text, ▁ for a blank, bytes for what is not in the vocabulary."""
  scores = _key(metadata, "scores", where)
  bpe = models.BPE(
    vocab={token: i for i, token in enumerate(tokens)},
    merges=_merges_by_score(tokens, types, scores),
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = tokenizers.Tokenizer(bpe)
  prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme="first" if prefix else "never", split=False
  )
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence(
    [*steps, decoders.Strip(content=" ", left=1)] if prefix else steps
  )
  return tokenizer, True


def _merges_by_score(tokens: list[str], types: list[int], scores: list[float]):
  """Every way to make a token of two others, the highest score first, and of those the longest left side."""
  normal = {token for token, type_ in zip(tokens, types, strict=True) if type_ == NORMAL}
  merges = [
    (-score, -i, token[:i], token[i:])
    for token, score in zip(tokens, scores, strict=True)
    if token in normal
    for i in range(1, len(token))
    if token[:i] in normal and token[i:] in normal
  ]
  return [(left, right) for _, _, left, right in sorted(merges)]


def _split_gpt2(tokenizer) -> None:
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _split_smollm(tokenizer) -> None:
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


def _split_words(tokenizer, digits: str) -> None:
  words = tokenizers.Regex(WORDS.format(digits=digits))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(words, behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _split_llama_bpe(tokenizer) -> None:
  _split_words(tokenizer, r"\p{N}{1,3}")


def _split_qwen2(tokenizer) -> None:
  tokenizer.normalizer = normalizers.NFC()
  _split_words(tokenizer, r"\p{N}")


# tokenizer.ggml.pre -> sets how text is normalised and split into words before merging.
SPLITS = {
  "gpt-2": _split_gpt2,
  "smollm": _split_smollm,
  "llama-bpe": _split_llama_bpe,
  "qwen2": _split_qwen2,
}

# tokenizer.ggml.model -> makes the tokenizer without its marks, and says whether BOS is added unless the file objects.
KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
