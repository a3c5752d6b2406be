"""The prompt that two texts or conversations share: where it ends, and that nothing is lost."""

import pytest

from rlhf_jax.data import shared_prompt

SPLITS = {  # name: chosen, rejected -> prompt, the two answers
  "a blank before the answers is theirs": ("Q: x A: yes", "Q: x A: no", "Q: x A:", " yes", " no"),
  "a line break before them is the prompt's": ("Q\nyes", "Q\nno", "Q\n", "yes", "no"),
  "no word is split": ("the cat", "the car", "the", " cat", " car"),
  "a shared word goes to the prompt": ("a b c", "a b d", "a b", " c", " d"),
  "nothing shared, no prompt": ("yes", "no", "", "yes", "no"),
  "a shared beginning of one word is no prompt": ("nobody", "none", "", "nobody", "none"),
  "one text begins the other": ("Q: yes", "Q: yes indeed", "Q:", " yes", " yes indeed"),
  "one word begins the other": ("yes", "yes!", "", "yes", "yes!"),
  "a text and itself with a blank": ("Q a", "Q a ", "Q", " a", " a "),
  "the last turn, whatever the answers share": (
    "\n\nHuman: Hi\n\nAssistant: The sun is hot",
    "\n\nHuman: Hi\n\nAssistant: The sun is cold",
    "\n\nHuman: Hi\n\nAssistant:",
    " The sun is hot",
    " The sun is cold",
  ),
  "the last of several turns": (
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
    " d",
    " e",
  ),
  "letters with accents of their own": ("né e\u0301", "né e\u0300", "né", " e\u0301", " e\u0300"),
  "emoji of several characters": ("ok 👩‍🚀!", "ok 👩‍🚒!", "ok", " 👩‍🚀!", " 👩‍🚒!"),
  "a blank that is not ASCII": ("a\u00a0b", "a\u00a0c", "a", "\u00a0b", "\u00a0c"),
  "a script without blanks": ("问题好", "问题坏", "", "问题好", "问题坏"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_texts_are_split_where_the_last_shared_word_ends(name):
  chosen, rejected, *expected = SPLITS[name]
  assert list(shared_prompt.split_texts(chosen, rejected)) == expected
  prompt, w, l = shared_prompt.split_texts(chosen, rejected)
  assert (prompt + w, prompt + l) == (chosen, rejected) and w.strip() and l.strip()
  prompt, l, w = shared_prompt.split_texts(rejected, chosen)
  assert [prompt, w, l] == expected


def test_a_dialogue_that_ends_before_its_answer_is_named():
  with pytest.raises(ValueError, match="'rejected' has no answer after its last 'Assistant:'"):
    shared_prompt.split_texts("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: ")


def turns(text):
  """u1 a1 as messages: the role's first letter, then the content."""
  roles = dict(u="user", a="assistant", t="tool", s="system")
  return tuple({"role": roles[word[0]], "content": word} for word in text.split())


@pytest.mark.parametrize(
  "chosen, rejected, prompt",
  [
    ("u1 a1", "u1 a2", "u1"),
    ("s0 u1 a1 u2 a2", "s0 u1 a1 u2 a3", "s0 u1 a1 u2"),
    ("u1 a1 t1 a2", "u1 a1 t2 a3", "u1 a1"),  # tools that answered differently
    ("u1 a1", "u1 a1 u2 a2", "u1"),  # one conversation begins the other
    ("u1 a1 u2 a2 u3 a3", "u1 a1 u2 a2", "u1 a1 u2"),
    ("u1 a1 t1", "u1 a1 t1 a2", "u1"),  # back to where an assistant begins
    ("a1", "a2", ""),
    ("a1", "a1 u1 a2", ""),
  ],
)
def test_turns_are_split_where_they_first_differ(chosen, rejected, prompt):
  for w, l in ((chosen, rejected), (rejected, chosen)):
    found = shared_prompt.split_turns(turns(w), turns(l))
    assert found[0] == turns(prompt)
    assert found[0] + found[1] == turns(w) and found[0] + found[2] == turns(l)
    assert found[1] and found[2]
