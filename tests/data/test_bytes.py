"""Tokenizers of bytes give every text back, and learn the same pairs from the same texts."""

import json
import runpy
from pathlib import Path

from rlhf_jax.data import bytes as byte_tokens
from rlhf_jax.training.setup import make_setup

TINY = Path(__file__).parent.parent.parent / "experiments" / "tiny.py"

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "ça va? 猫"] * 3


def test_learned_pairs_shorten_texts_and_lose_nothing():
  plain = byte_tokens.byte_tokenizer()
  learned = byte_tokens.byte_pair_tokenizer(TEXTS, 270)
  assert len(plain) == 257 < len(learned) <= 270
  for text in (*TEXTS, "unseen: \u2028 🙂"):
    ids = learned(text, add_special_tokens=False).input_ids
    assert learned.decode(ids) == text
    assert len(ids) <= len(plain(text, add_special_tokens=False).input_ids)
  assert len(learned(TEXTS[0]).input_ids) < len(plain(TEXTS[0]).input_ids)


def test_the_same_texts_make_the_same_tokens():
  one, other = (byte_tokens.byte_pair_tokenizer(TEXTS, 270) for _ in range(2))
  assert one.get_vocab() == other.get_vocab()


def test_the_end_mark_is_a_token_of_its_own_that_also_pads():
  learned = byte_tokens.byte_pair_tokenizer(TEXTS, 270)
  assert learned.eos_token_id == learned.pad_token_id == len(learned) - 1
  assert learned.decode([learned.eos_token_id], skip_special_tokens=True) == ""


def test_a_random_model_learns_its_tokens_from_the_texts_of_sft_alone(tmp_path):
  """However short the prompts may be, and whatever the other files hold."""
  rows = {
    "sft": [{"prompt": "the cat", "response": f" sat on the mat {i}"} for i in range(8)],
    "prompts": [{"prompt": "the cat sat on"}],
  }
  config = runpy.run_path(str(TINY))["get_config"]().to_dict()
  config["model"]["random"]["vocab_size"] = 270
  config["data"] = {"source": "files", "max_tokens": 24, "prompt_tokens": 8}
  for name, given in rows.items():
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    config["data"][name] = str(path)
  setup = make_setup(config, tmp_path)
  assert 257 < len(setup.tokenizer) <= 270
  text = setup.task.sft[0]
  assert setup.tokenizer.decode(text.tokens, skip_special_tokens=True) == "the cat sat on the mat 0"
  assert len(text.tokens) < len("the cat sat on the mat 0") and len(setup.task.prompts) == 1
