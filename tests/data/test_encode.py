"""Records as tokens: which of them are learnt from, and the labels of spans and steps, checked by eye."""

import math

import pytest
from chat_tokenizer import CALLING, CHATML, MARKED, MARKS, TOOL_TURNS, UNMARKED, written

from rlhf_jax.data import chat, encode, examples, feedback
from rlhf_jax.data.bytes import END, byte_tokenizer
from rlhf_jax.data.examples import TokenLabelled
from rlhf_jax.data.feedback import Layout
from rlhf_jax.data.texts import Text

nan = math.nan
ASK = {"role": "user", "content": "Q"}


def records(tokenizer, row):
  """The records of `row`, tokenized."""
  example = lambda text: encode.example(tokenizer, text)
  return [encode.record(tokenizer, r, example) for r in feedback.parse(row, "r", Layout())]


def learnt(tokenizer, example):
  return written(tokenizer, chat.Tokenized(example.tokens, example.response_mask))


@pytest.mark.parametrize(
  "template, end", [(CHATML, "<|im_end|>"), (MARKED, "<eos>"), (UNMARKED, "\n")]
)
def test_of_a_pair_only_what_the_assistant_wrote_after_the_prompt_is_learnt_from(
  tokenizer,
  template,
  end,
):
  tokenizer.chat_template = template
  say = lambda role, content: {"role": role, "content": content}
  shared = [ASK, say("assistant", "one"), say("user", "more")]
  (pair,) = records(
    tokenizer,
    dict(
      chosen=[*shared, say("assistant", "two"), say("user", "and"), say("assistant", "three")],
      rejected=[*shared, say("assistant", "no")],
    ),
  )
  assert learnt(tokenizer, pair.chosen) == [f"two{end}", f"three{end}"]
  assert learnt(tokenizer, pair.rejected) == [f"no{end}"]
  begin = pair.chosen.response_mask.index(1)
  assert pair.chosen.tokens[:begin] == pair.rejected.tokens[:begin]
  assert pair.chosen.key[0] == pair.rejected.key[0]


def test_a_demonstration_in_messages_is_learnt_from_in_every_turn_and_an_answer_in_its_own(
  tokenizer,
):
  tokenizer.chat_template = CALLING
  (example,) = records(tokenizer, dict(messages=TOOL_TURNS))
  assert len(learnt(tokenizer, example)) == 3
  (example,) = records(tokenizer, dict(prompt=TOOL_TURNS[:5], completion=TOOL_TURNS[5:]))
  assert learnt(tokenizer, example) == ["So: f(3)f(3)<|im_end|>"]
  (mark,) = records(tokenizer, dict(messages=TOOL_TURNS[:4], label=True))  # calls, then speaks
  assert learnt(tokenizer, mark.answer) == ["f(3)<|im_end|>", "Nine<|im_end|>"]


def test_plain_answers_end_in_eos_also_where_it_pads():
  tokenizer = byte_tokenizer()
  assert tokenizer.pad_token == tokenizer.eos_token == END
  (pair,) = records(tokenizer, dict(prompt="Q", chosen="ab", rejected="c"))
  assert pair.chosen.response_mask == [0, 1, 1, 1] and pair.rejected.response_mask == [0, 1, 1]
  batch = examples.collate_records([pair], 6)
  assert batch.chosen.response_mask.tolist() == [[0, 1, 1, 1, 0, 0]]
  assert batch.rejected.response_mask.tolist() == [[0, 1, 1, 0, 0, 0]]
  assert batch.rejected.segments.tolist() == [[1, 1, 1, 0, 0, 0]]


def test_a_prompt_ends_where_its_answer_begins(tokenizer):
  for text in (Text("r", "Q", "a"), Text("r", (ASK,), ({"role": "assistant", "content": "a"},))):
    prompt, whole = encode.prompt(tokenizer, text), encode.example(tokenizer, text)
    assert prompt.tokens == whole.tokens[: whole.response_mask.index(1)]


@pytest.mark.parametrize(
  "spans, expected",
  [
    ([], [1, 1, 1, 1, 1, 1]),
    ([dict(start=0, end=1)], [0, 1, 1, 1, 1, 1]),
    ([dict(start=1, end=3)], [1, 0, 0, 0, 1, 1]),  # é is two tokens
    ([dict(start=0, end=4)], [0, 0, 0, 0, 0, 1]),  # the end mark is no part of a span
    ([dict(start=0, end=2, severity=0.25), dict(start=1, end=4)], [0.75, 0, 0, 0, 0, 1]),
    ([dict(start=1, end=4), dict(start=0, end=2, severity=0.25)], [0.75, 0, 0, 0, 0, 1]),
  ],
)
def test_marked_spans_are_on_the_tokens_they_touch(spans, expected):
  row = dict(prompt="QR", response="aébc", spans=spans)
  (record,) = records(byte_tokenizer(), row)
  assert isinstance(record, TokenLabelled) and all(map(math.isnan, record.labels[:2]))
  assert record.labels[2:] == expected and len(record.labels) == len(record.answer.tokens)


def test_a_token_that_a_span_touches_in_part_is_marked(tokenizer):
  (record,) = records(
    tokenizer, dict(prompt="Q", response="a\n\n\nb", spans=[dict(start=2, end=3)])
  )
  tokens = tokenizer.convert_ids_to_tokens(record.answer.tokens)
  assert tokens == ["Q", "a", "ĊĊ", "Ċ", "b", "<eos>"]
  assert record.labels[1:] == [1, 0, 1, 1, 1]


def test_spans_of_a_conversation_count_from_where_its_answer_begins(tokenizer):
  for template in (CHATML, MARKED):
    tokenizer.chat_template = template
    row = dict(prompt=[{"role": "user", "content": "abc"}], response="abc")
    (record,) = records(tokenizer, row | dict(spans=[dict(start=1, end=2)]))
    tokens = tokenizer.convert_ids_to_tokens(record.answer.tokens)
    labelled = [(t, l) for t, l in zip(tokens, record.labels, strict=True) if not math.isnan(l)]
    assert labelled[:3] == [("a", 1), ("b", 0), ("c", 1)]
    assert len(labelled) == 4 and labelled[3][0] in MARKS  # and its end mark


def test_the_label_of_a_step_is_on_its_last_token():
  row = dict(prompt="Q", steps=["ab", "cé ", "d"], labels=[True, False, None])
  (record,) = records(byte_tokenizer(), row)
  #        Q    a    b  \n   c    é    é  _    \n   d    end
  labels = [nan, nan, 1, nan, nan, nan, 0, nan, nan, nan, nan]
  assert record.labels == pytest.approx(labels, nan_ok=True)


def test_steps_of_a_conversation_are_found_in_its_answer(tokenizer):
  (record,) = records(tokenizer, dict(prompt=[ASK], steps=["ab", "c"], labels=[False, True]))
  tokens = tokenizer.convert_ids_to_tokens(record.answer.tokens)
  labelled = [(t, l) for t, l in zip(tokens, record.labels, strict=True) if not math.isnan(l)]
  assert labelled == [("b", 0), ("c", 1)]


def test_blanks_that_end_a_step_do_not_hold_its_label(tokenizer):
  (record,) = records(tokenizer, dict(prompt="Q", steps=["a\n\n", "b"], labels=[False, True]))
  tokens = tokenizer.convert_ids_to_tokens(record.answer.tokens)
  assert tokens == ["Q", "a", "ĊĊ", "Ċ", "b", "<eos>"]
  assert record.labels == pytest.approx([nan, 0, nan, nan, 1, nan], nan_ok=True)


def test_a_conversation_without_a_template_is_named():
  with pytest.raises(ValueError, match="no chat template; give rows a prompt and a response"):
    records(byte_tokenizer(), dict(messages=[ASK, {"role": "assistant", "content": "a"}]))
