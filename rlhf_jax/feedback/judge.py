"""A language model as annotator of comparisons: asked in both orders, and what it could not be read as is counted.

An answer that is named in both orders is the better one; one that is named by its place, first or second in both orders, is
no preference. What names neither is unread, and the question stays open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

TEMPLATE = """Which of two answers is better?

Prompt: {prompt}

Answer A: {first}

Answer B: {second}

Reply with A or B alone."""
VERDICT = re.compile(r"\b(?:answer\s+)?([AB])\b", re.IGNORECASE)


class Verdicts(NamedTuple):
  choices: list[
    str | None
  ]  # of each question: "first", "second", "tie", or None where it was not read
  unread: list[str]  # replies that say neither
  swayed: int  # questions on which it named a place and not an answer


def read(reply: str) -> str | None:
  """A or B, the first that the reply names as a word of its own; None where it names none.

  A small "a" is an article unless it is the whole reply.
  """
  whole = reply.strip().strip(".:()*'\"").upper()
  if whole in ("A", "B"):
    return whole
  for found in VERDICT.finditer(reply):
    letter = found.group(1)
    if letter.isupper() or found.group(0).lower().startswith("answer"):
      return letter.upper()
  return None


def compare(
  ask: Callable[[list[str]], list[str]], questions: Sequence[tuple[str, str, str]]
) -> Verdicts:
  """What a model says of each (prompt, first answer, second answer); `ask` maps requests to replies."""
  forms = [
    TEMPLATE.format(prompt=prompt, first=a, second=b)
    for prompt, first, second in questions
    for a, b in ((first, second), (second, first))
  ]
  replies = ask(forms)
  letters = [read(reply) for reply in replies]
  choices, swayed = [], 0
  for plain, swapped in zip(letters[::2], letters[1::2], strict=True):
    if plain is None or swapped is None:
      choices.append(None)
    elif plain != swapped:  # the same answer in both orders
      choices.append("first" if plain == "A" else "second")
    else:
      choices.append("tie")
      swayed += 1
  unread = [reply for reply, letter in zip(replies, letters, strict=True) if letter is None]
  return Verdicts(choices, unread, swayed)


def model(source: str, *, batch_size: int, longest: int = 1024) -> Callable[[list[str]], list[str]]:
  """`ask` for the instruction-tuned model `source`, without chance; requests are cut at their beginning to `longest` tokens."""
  import jax

  from rlhf_jax.data import chat
  from rlhf_jax.models import decoder, registry
  from rlhf_jax.rollout.generate import Sampling, generate, left_pad, responses
  from rlhf_jax.weights import load

  family, params, tokenizer = load.load(source)
  language_model = registry.language_model(family, dtype="bfloat16")
  weights = decoder.cast_for_decoding(params, "bfloat16")
  settings = Sampling(max_new_tokens=8, greedy=True, stop_tokens=(tokenizer.eos_token_id,))
  run = jax.jit(generate, static_argnums=0)

  def ask(requests: list[str]) -> list[str]:
    encoded = [
      chat.conversation_prompt(tokenizer, [{"role": "user", "content": request}])[-longest:]
      for request in requests
    ]
    width = max(map(len, encoded))
    replies = []
    for start in range(0, len(encoded), batch_size):
      part = encoded[start : start + batch_size]
      tokens, mask = left_pad(part + [part[-1]] * (batch_size - len(part)), width)
      keys = jax.random.split(jax.random.key(0), len(tokens))
      written = jax.device_get(run(language_model, weights, tokens, mask, keys, settings).sequences)
      texts = responses(written.tokens, written.response_mask)[: len(part)]
      replies += tokenizer.batch_decode(texts, skip_special_tokens=True)
    return replies

  return ask
