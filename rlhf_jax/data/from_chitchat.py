"""Rated conversations as a task: ratings are the feedback, prompts are openings, SFT learns the text."""

from __future__ import annotations

import numpy as np

from rlhf_jax.data import chat, chitchat
from rlhf_jax.data.examples import Example, Labelled
from rlhf_jax.data.task import FILES, LabelledTexts, Settings, Task


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """Ratings in standard deviations from the training conversations' mean, a scale each.

  Of a conversation longer than `data.max_tokens` the end is read, after a line that says about how many
  words came before: endings tell more of the ratings than openings, and length tells most. In
  cross-validation on the training conversations with TF-IDF and ridge, 128 tokens at the end give rank
  correlations of 0.35, 0.32 and 0.35 (witty, interesting, upbeat), at the beginning 0.25, 0.22 and 0.26, half
  and half 0.33, 0.28 and 0.33; the number of words alone gives 0.47, 0.43 and 0.46.
  """
  for name in FILES:
    if getattr(settings, name):
      raise ValueError(
        f"data.{name} is read with data.source='files' alone, and that is 'chitchat'; set one of them."
      )
  splits = chitchat.load_chitchat(seed)
  begin = chat.plain_prompt(tokenizer, "")  # a beginning mark, if the tokenizer adds one
  limit, opening = settings.max_tokens, len(begin) + settings.prompt_tokens

  def encode(dataset) -> dict[str, list[int]]:
    texts = [chitchat.text(messages) for messages in dataset["messages"]]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole = ([*begin, *tokens, *chat.ends(tokenizer)] for tokens in ids)
    return dict(zip(dataset["id"], whole, strict=True))

  def mark(words: int) -> list[int]:
    return tokenizer(f"[about {words} words before]\n", add_special_tokens=False)["input_ids"]

  least = (
    len(begin) + len(mark(10**5)) + 2
  )  # the beginning mark, the line, a token and the end mark
  if limit < least:
    raise ValueError(
      f"data.max_tokens={limit} leaves no room for the end of a conversation; use at least {least}."
    )

  def ending(tokens: list[int], words: int) -> list[int]:
    if len(tokens) <= limit:
      return tokens
    read = limit - len(begin) - len(mark(100))
    before = mark(about(words * (1 - read / len(tokens))))
    return [*begin, *before, *tokens[len(begin) + len(before) - limit :]]

  def rated(dataset, encoded) -> list[Labelled]:
    labels = (np.asarray(dataset["ratings"]) - mean) / std
    words = [len(chitchat.text(messages).split()) for messages in dataset["messages"]]
    rows = zip(dataset["id"], words, labels.tolist(), strict=True)
    return [Labelled(Example.text(i, ending(encoded[i], n)), tuple(y)) for i, n, y in rows]

  def texts(dataset, records: list[Labelled]) -> LabelledTexts:
    whole = [chitchat.text(messages) for messages in dataset["messages"]]
    labels = np.asarray([record.labels for record in records])
    return LabelledTexts([record.answer for record in records], whole, labels)

  def prompts(encoded, count=None) -> list[Example]:
    long_enough = [(i, t) for i, t in encoded.items() if len(t) > opening + 1]
    return [Example.prompt(i, t[:opening]) for i, t in long_enough[:count]]

  ratings = np.asarray(splits.train["ratings"], float)
  mean, std = ratings.mean(axis=0), np.maximum(ratings.std(axis=0), 1e-6)
  train, test = encode(splits.train), encode(splits.test)
  feedback = rated(splits.train, train)
  held_out = rated(splits.test, test)
  return Task(
    sft=[Example.text(i, tokens[:limit]) for i, tokens in train.items()],
    feedback=lambda form, epoch: feedback if form == "ratings" else [],
    held_out_feedback=lambda form: held_out if form == "ratings" else [],
    attributes=chitchat.SCALES,
    prompts=prompts(train),
    test_prompts=prompts(test, settings.test_prompts),
    held_out=texts(splits.test, held_out),
    train=texts(splits.train, feedback),
    judge=None,
    verifier=None,
    notes=(splits.describe(),),
  )


def about(count: float) -> int:
  """`count` to one significant digit, at least 1: 1, ..., 9, 10, 20, ..., 90, 100, 200, ..."""
  count = max(1, round(count))
  unit = 10 ** (len(str(count)) - 1)
  return round(count / unit) * unit
