"""Tokenizers of bytes give every text back, and learn the same pairs from the same texts."""

from rlhf_jax.data import bytes as byte_tokens

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
