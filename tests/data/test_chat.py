"""Conversations as tokens: which of them the assistant wrote, turn by turn."""

import pytest
from chat_tokenizer import (
  CALLING,
  CHATML,
  MARKED,
  MARKED_CALLING,
  REWRITING,
  TOOL_TURNS,
  TWO_TURNS,
  UNMARKED,
  written,
)
from tokenizers import processors

from rlhf_jax.data import chat
from rlhf_jax.data.bytes import byte_tokenizer


def test_every_assistant_turn_is_marked_with_its_end(tokenizer):
  row = chat.conversation(tokenizer, TWO_TURNS)
  assert written(tokenizer, row) == ["Yes, é.<|im_end|>", "So long<|im_end|>"]
  assert tokenizer.decode(row.tokens) == tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)


def test_a_template_with_generation_markers_says_itself(tokenizer):
  tokenizer.chat_template = MARKED
  row = chat.conversation(tokenizer, TWO_TURNS)
  assert written(tokenizer, row) == ["Yes, é.<eos>", "So long<eos>"]


def test_without_an_end_mark_the_whole_turn_is_the_assistants(tokenizer):
  tokenizer.chat_template = UNMARKED
  row = chat.conversation(tokenizer, TWO_TURNS)
  assert written(tokenizer, row) == ["Yes, é.\n", "So long\n"]


def test_text_after_a_special_token_belongs_to_the_turn(tokenizer):
  tokenizer.chat_template = UNMARKED
  answer = {"role": "assistant", "content": "a<eos>b"}
  row = chat.conversation(tokenizer, [TWO_TURNS[0], answer, TWO_TURNS[2]])
  assert written(tokenizer, row) == ["a<eos>b\n"]


def test_the_prompt_is_what_comes_before_the_answer(tokenizer):
  for count in (1, 3):
    prompt = chat.conversation_prompt(tokenizer, TWO_TURNS[:count])
    row = chat.conversation(tokenizer, TWO_TURNS[: count + 1])
    assert row.tokens[: len(prompt)] == prompt
    assert row.response_mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


def test_a_token_across_the_border_is_the_prompts(tokenizer):
  # The template's line break and the first of the answer's two are a single token.
  row = chat.conversation(tokenizer, [TWO_TURNS[0], {"role": "assistant", "content": "\n\nNo"}])
  assert written(tokenizer, row) == ["\nNo<|im_end|>"]


@pytest.mark.parametrize("template, end", [(CALLING, "<|im_end|>"), (MARKED_CALLING, "<eos>")])
def test_what_an_assistant_asks_of_tools_is_its_own_and_their_answers_are_not(
  tokenizer, template, end
):
  tokenizer.chat_template = template
  row = chat.conversation(tokenizer, TOOL_TURNS)
  assert written(tokenizer, row) == [f"f(3){end}", f"Nine{end}", f"So: f(3)f(3){end}"]
  assert tokenizer.decode(row.tokens) == tokenizer.apply_chat_template(TOOL_TURNS, tokenize=False)


@pytest.mark.parametrize("template, end", [(CALLING, "<|im_end|>"), (MARKED_CALLING, "<eos>")])
def test_the_mask_begins_with_the_first_turn_asked_for(tokenizer, template, end):
  tokenizer.chat_template = template
  whole = chat.conversation(tokenizer, TOOL_TURNS)
  turns = [f"f(3){end}", f"Nine{end}", f"So: f(3)f(3){end}"]
  for first, expected in ((1, turns), (2, turns[1:]), (3, turns[1:]), (5, turns[2:])):
    row = chat.conversation(tokenizer, TOOL_TURNS, first)
    assert row.tokens == whole.tokens and written(tokenizer, row) == expected
  with pytest.raises(ValueError, match="no assistant message"):
    chat.conversation(tokenizer, TOOL_TURNS, 6)


@pytest.mark.parametrize("template", [CALLING, CHATML, UNMARKED, MARKED])
def test_characters_of_the_last_turn_are_known_by_token(tokenizer, template):
  tokenizer.chat_template = template
  turns = [*TWO_TURNS[:3], {"role": "assistant", "content": "Hi? é."}]  # said before, too
  row = chat.conversation(tokenizer, turns)
  offsets = chat.conversation_offsets(tokenizer, turns)
  spelled = [
    (tokenizer.decode([token]), span)
    for token, span in zip(row.tokens, offsets, strict=True)
    if span != (0, 0)
  ]
  # The two bytes of é stand for one character; the last turn's characters and no others are there.
  assert [span for _, span in spelled] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 5), (5, 6)]
  assert [token for token, _ in spelled[:4]] == list("Hi? ")


def test_characters_of_a_text_that_the_template_changes_are_not_guessed(tokenizer):
  tokenizer.chat_template = CHATML.replace("m.content", "m.content | trim")
  with pytest.raises(ValueError, match="changes the answer's text.*take blanks off its ends"):
    chat.conversation_offsets(tokenizer, [TWO_TURNS[0], {"role": "assistant", "content": " a "}])


def test_plain_characters_are_known_by_token(tokenizer):
  row = chat.plain(tokenizer, "ab", "c\n\n")
  assert chat.plain_offsets(tokenizer, "ab", "c\n\n") == [(0, 0), (0, 0), (0, 1), (1, 3), (0, 0)]
  assert len(row.tokens) == 5


def test_what_a_template_refuses_is_said(tokenizer):
  tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
  with pytest.raises(ValueError, match="template refuses these messages: roles must alternate"):
    chat.conversation(tokenizer, TWO_TURNS)
  tokenizer.chat_template = "{% for m in messages %}{{ 'x' + m.content }}{% endfor %}"
  with pytest.raises(ValueError, match="template refuses these messages: .*content"):
    chat.conversation(tokenizer, TOOL_TURNS)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
  tokenizer.chat_template = REWRITING
  assert written(tokenizer, chat.conversation(tokenizer, TWO_TURNS[:2])) == ["Yes, é."]
  with pytest.raises(
    ValueError, match=r"rewrites earlier turns: what it renders up to messages\[1\]"
  ):
    chat.conversation(tokenizer, TWO_TURNS)


@pytest.mark.parametrize(
  "messages, message",
  [
    ([], "The conversation is empty"),
    (TWO_TURNS[:1], "no assistant message"),
    ([{"role": "user"}], r"messages\[0\] needs a text in content"),
    ([*TWO_TURNS, {"content": "x"}], r"messages\[4\] needs a text in role"),
    ([{"role": "assistant", "content": None}], r"messages\[0\] needs a text in content"),
    (["hello"], r"messages\[0\] needs a text in role"),
  ],
)
def test_malformed_conversations_are_named(tokenizer, messages, message):
  with pytest.raises(ValueError, match=message):
    chat.conversation(tokenizer, messages)


def test_a_tokenizer_without_a_template_is_named(tokenizer):
  tokenizer.chat_template = None
  for function in (chat.conversation, chat.conversation_prompt):
    with pytest.raises(ValueError, match="no chat template; give rows a prompt and a response"):
      function(tokenizer, TWO_TURNS)


def test_plain_rows_end_in_eos(tokenizer):
  row = chat.plain(tokenizer, "ab", "c")
  assert tokenizer.convert_ids_to_tokens(row.tokens) == ["a", "b", "c", "<eos>"]
  assert row.response_mask == [0, 0, 1, 1]


def test_plain_texts_are_tokenized_apart(tokenizer):
  row = chat.plain(tokenizer, "a\n", "\nb")
  assert tokenizer.convert_ids_to_tokens(row.tokens) == ["a", "Ċ", "Ċ", "b", "<eos>"]
  assert row.tokens[:2] == chat.plain_prompt(tokenizer, "a\n")


def test_plain_rows_begin_as_the_tokenizer_does(tokenizer):
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
  )
  row = chat.plain(tokenizer, "a", "b")
  assert tokenizer.convert_ids_to_tokens(row.tokens) == ["<bos>", "a", "b", "<eos>"]
  assert row.response_mask == [0, 0, 1, 1]


def test_a_tokenizer_without_an_end_mark_ends_no_answer():
  tokenizer = byte_tokenizer()
  assert chat.ends(tokenizer) == (tokenizer.eos_token_id,)
  tokenizer.eos_token = None
  assert chat.ends(tokenizer) == ()
  assert chat.plain(tokenizer, "a", "b").tokens == tokenizer("ab").input_ids
