"""Conversations and prompt-response pairs as tokens, with a mask of those that the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerFast

# {"role": "system" | "user" | "assistant" | "tool" | ..., "content": text} and whatever else templates read: tool_calls,
# tool_call_id, name, reasoning_content. Where an assistant calls tools, content may be None.
Message = Mapping[str, Any]

GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Tokenized(NamedTuple):
  """One row, before padding."""

  tokens: list[int]
  response_mask: list[int]  # 1 on tokens the assistant wrote, its end-of-turn token included


def plain(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> Tokenized:
  """`prompt` and `response` without a template: beginning mark if the tokenizer adds one, both texts, EOS.

  The two texts are tokenized apart, as they are when a policy continues the prompt.
  """
  head = plain_prompt(tokenizer, prompt)
  body = [*tokenizer(response, add_special_tokens=False).input_ids, *ends(tokenizer)]
  return Tokenized([*head, *body], [0] * len(head) + [1] * len(body))


def ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
  """The tokens that end an answer: the end mark, or none where the tokenizer has none."""
  return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def plain_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
  """Tokens of `prompt` after the beginning mark, if the tokenizer adds one; never an end mark."""
  marks = tokenizer("").input_ids
  begins = [tokenizer.bos_token_id] if tokenizer.bos_token_id in marks[:1] else []
  return begins + tokenizer(prompt, add_special_tokens=False).input_ids


def conversation(
  tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], first: int = 0
) -> Tokenized:
  """A whole conversation through the chat template, with a mask over every assistant turn from `messages[first]` on.

  A template with generation markers says itself which tokens these are. Otherwise a turn is what rendering up to it
  adds to the prompt before it, up to the last special token; a line break after that one is the template's, not the
  assistant's. Raises ValueError where the messages are malformed, or where the template rewrites earlier turns.
  """
  _check(messages)
  if not any(message["role"] == "assistant" for message in messages[first:]):
    raise ValueError(
      "The conversation has no assistant message, so there is nothing to learn from."
    )
  text = _render(tokenizer, messages)
  encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  offsets = encoded.offset_mapping
  if GENERATION_MARKER.search(_template(tokenizer)):
    rendered = tokenizer.apply_chat_template(
      list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    begin = _length(tokenizer, messages, first, text)
    mask = [
      int(inside and start >= begin)
      for inside, (start, _) in zip(rendered["assistant_masks"], offsets, strict=True)
    ]
    return Tokenized(encoded.input_ids, mask)

  mask = [0] * len(encoded.input_ids)
  for i, message in enumerate(messages):
    if i >= first and message["role"] == "assistant":
      begin, last = _turn(tokenizer, messages, i, text)
      # A token that begins in the prompt is the prompt's, even where it reaches into the turn.
      inside = [
        j for j, (start, end) in enumerate(offsets) if begin <= start < last and end > begin
      ]
      for j in _until_last_special(tokenizer, encoded.input_ids, inside):
        mask[j] = 1
  return Tokenized(encoded.input_ids, mask)


def plain_offsets(
  tokenizer: PreTrainedTokenizerFast, prompt: str, response: str
) -> list[tuple[int, int]]:
  """Of each token of `plain`, the characters of `response` it stands for; (0, 0) for none."""
  head = plain_prompt(tokenizer, prompt)
  body = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
  return [(0, 0)] * len(head) + body.offset_mapping + [(0, 0)] * len(ends(tokenizer))


def conversation_offsets(
  tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[tuple[int, int]]:
  """Of each token of `conversation`, the characters of the last message it stands for; (0, 0) for none.

  Raises ValueError where the template does not write that message as it is.
  """
  text, content = _render(tokenizer, messages), messages[-1]["content"]
  at = text.find(content, _length(tokenizer, messages, len(messages) - 1, text))
  if at < 0:
    raise ValueError(
      "The chat template changes the answer's text, so its characters can not be told; take blanks "
      "off its ends."
    )
  encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  return [
    (max(start - at, 0), min(end - at, len(content)))
    if start < at + len(content) and end > at
    else (0, 0)
    for start, end in encoded.offset_mapping
  ]


def conversation_prompt(
  tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[int]:
  """Tokens of `messages` through the chat template, up to where the assistant's next turn begins."""
  _check(messages)
  text = _render(tokenizer, messages, add_generation_prompt=True)
  return tokenizer(text, add_special_tokens=False).input_ids


def _check(messages: Sequence[Message]) -> None:
  if not messages:
    raise ValueError("The conversation is empty; it needs at least one message.")
  for i, message in enumerate(messages):
    calls = isinstance(message, Mapping) and message.get("tool_calls")
    silent = calls and message.get("content") is None
    for field in ("role",) if silent else ("role", "content"):
      if not isinstance(message, Mapping) or not isinstance(message.get(field), str):
        raise ValueError(
          f'messages[{i}] needs a text in {field}: {{"role": "user", "content": "..."}}.'
        )


def _template(tokenizer: PreTrainedTokenizerFast) -> str:
  if not tokenizer.chat_template:
    raise ValueError(
      "The tokenizer has no chat template; give rows a prompt and a response instead of messages,"
      " or set tokenizer.chat_template."
    )
  return tokenizer.get_chat_template()


def _render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], **options) -> str:
  _template(tokenizer)
  try:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
  except (jinja2.TemplateError, TypeError) as error:  # its own complaint, or content that is None
    raise ValueError(f"The chat template refuses these messages: {error}.") from error


def _length(tokenizer, messages: Sequence[Message], count: int, text: str) -> int:
  """How far the first `count` messages reach in `text`, the whole conversation rendered."""
  if count == 0:
    return 0
  before = _render(tokenizer, messages[:count])
  _assert_begins(text, before, f"before messages[{count}]")
  return len(before)


def _turn(tokenizer, messages: Sequence[Message], i: int, text: str) -> tuple[int, int]:
  """Where in `text`, the whole conversation rendered, the assistant's turn `messages[i]` begins and ends."""
  before = _render(tokenizer, messages[:i], add_generation_prompt=True)
  after = text if i + 1 == len(messages) else _render(tokenizer, messages[: i + 1])
  _assert_begins(text, before, f"before messages[{i}]")
  _assert_begins(text, after, f"up to messages[{i}]")
  return len(before), len(after)


def _assert_begins(text: str, prefix: str, what: str) -> None:
  if not text.startswith(prefix):
    raise ValueError(
      f"The chat template rewrites earlier turns: what it renders {what} ends in {prefix[-40:]!r} and is not how the"
      " whole conversation begins, so the assistant's tokens can not be told. Use a template with generation"
      " markers, or give each row one assistant turn."
    )


def _until_last_special(tokenizer, tokens: list[int], inside: list[int]) -> list[int]:
  """`inside` without the blanks that follow the turn's last special token."""
  special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
  last = max((n for n, j in enumerate(inside) if tokens[j] in special), default=None)
  if last is None or tokenizer.decode([tokens[j] for j in inside[last + 1 :]]).strip():
    return inside
  return inside[: last + 1]
