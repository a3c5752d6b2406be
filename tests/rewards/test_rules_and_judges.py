"""Rules and judges on answers whose worth one can count."""

import numpy as np
import pytest

from rlhf_jax.rewards import judges, rules


def test_length_is_one_at_the_target_and_falls_off_linearly_on_both_sides():
  responses = ["", "one", "one two", "one  two\nthree", "1 2 3 4", "1 2 3 4 5"]
  np.testing.assert_allclose(
    rules.length([""] * 6, responses, target=2), [0, 0.5, 1, 0.5, 0, -0.5], rtol=1e-12
  )


def test_a_pattern_matches_anywhere_unless_tied_to_the_ends_and_across_lines():
  responses = ["<a>\n1\n</a>", "so: <a>1</a>", "", "<a>1"]
  prompts = ["<a>1</a>"] * 4  # of no matter
  anywhere = rules.matches(prompts, responses, pattern="<a>.*</a>")
  whole = rules.matches(prompts, responses, pattern="^<a>.*</a>$")
  np.testing.assert_array_equal(anywhere, [1, 1, 0, 0])
  np.testing.assert_array_equal(whole, [1, 0, 0, 0])


def test_sentiment_is_of_the_response_and_nothing_of_an_empty_one():
  praise, blame, nothing = judges.sentiment(
    ["awful", "great", "great"], ["I love it, great taste!", "Terrible. I hate it.", ""]
  )
  assert praise > 0.5 and blame < -0.5 and nothing == 0


def test_toxicity_tells_an_insult_from_a_greeting():
  pytest.importorskip("profanity_check")
  insult, greeting, nothing = judges.toxicity([""] * 3, ["you fucking idiot", "good morning", ""])
  assert insult > 0.9 and greeting < 0.1 and 0 <= nothing < 0.5
