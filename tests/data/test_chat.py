"""Conversations as tokens: which of them the assistant wrote, turn by turn."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import chat

MARKS = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
  "{% for m in messages %}{% if m.role == 'assistant' %}A: "
  "{%- generation %}{{ m.content }}<eos>{% endgeneration %}\n"
  "{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}"
)
UNMARKED = (
  "<bos>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)
# As Qwen3 does with thoughts: earlier answers are shortened once a later turn exists.
REWRITING = (
  "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and not loop.last %}...{% else %}"
  "{{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TWO_TURNS = [
  {"role": "user", "content": "Hi?"},
  {"role": "assistant", "content": "Yes, é."},
  {"role": "user", "content": "Bye"},
  {"role": "assistant", "content": "So long"},
]


@pytest.fixture
def tokenizer():
  vocab = {
    token: i for i, token in enumerate([*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
  }
  vocab["ĊĊ"] = len(vocab)
  backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>"
  )
  tokenizer.add_special_tokens({"additional_special_tokens": MARKS[2:]})
  tokenizer.chat_template = CHATML
  return tokenizer


def written(tokenizer, row: chat.Tokenized) -> list[str]:
  """The text of each run of tokens under the mask."""
  assert len(row.tokens) == len(row.response_mask) and set(row.response_mask) <= {0, 1}
  runs, before = [], 0
  for token, inside in zip(row.tokens, row.response_mask, strict=True):
    if inside and not before:
      runs.append([])
    if inside:
      runs[-1].append(token)
    before = inside
  return [tokenizer.decode(run) for run in runs]


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
