import numpy as np
import pytest

from rlhf_jax.evaluation import text


def test_words_are_lower_case_and_keep_apostrophes_but_no_punctuation():
  assert text.words("Don't BUY this, it’s _bad_: 2/5!") == [
    "don't",
    "buy",
    "this",
    "it’s",
    "bad",
    "2",
    "5",
  ]


def test_distinct_n_is_pooled_over_all_texts():
  # Bigrams: (a b), (b c) and (a b), (b d): three different of four.
  assert text.distinct_n(["a b c", "A b d."], 2) == 3 / 4


def test_n_grams_do_not_cross_from_one_text_to_the_next():
  assert text.distinct_n(["a", "b", "a", "b"], 2) == 0.0


def test_a_repeated_4_gram_may_overlap_itself():
  assert text.repeats_ngram("so so so so so", 4)
  assert not text.repeats_ngram("so so so so", 4)
  assert text.repeats_ngram("it is very good and it is very good", 4)


def test_duplicates_are_compared_by_their_words():
  assert text.max_duplicates(["Great tea!", "great tea", "bad tea"]) == 2
  assert text.max_duplicates(["", "?!", "tea"]) == 2


def test_text_statistics_by_hand():
  statistics = text.text_statistics(["a b a b a b", "c d"])
  assert statistics == {
    "distinct_1": 4 / 8,
    "distinct_2": 3 / 6,
    "repeat_4": 0.5,
    "max_duplicates": 1,
    "words": 4.0,
  }


def test_no_texts_are_refused():
  with pytest.raises(ValueError, match="no texts"):
    text.text_statistics([])


def test_an_excerpt_has_the_length_asked_for_from_every_place():
  rng = np.random.default_rng(0)
  found = {text.excerpt("a b c d e", 3, rng) for _ in range(100)}
  assert found == {"a b c", "b c d", "c d e"}
  assert text.excerpt("a b", 3, rng) == "a b"
