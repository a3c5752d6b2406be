"""What a run learns from and is judged on, tokenized: one `Task` for every stage.

`reviews`: food reviews with star labels. SFT learns their text, the reward model compares great ones
with others, prompts are the openings of reviews.
`jsonl`: your own files, one object a line: `sft` {"prompt", "response"}, `pairs` {"prompt", "chosen",
"rejected"}, `prompts` {"prompt"}, `test` {"prompt"}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlhf_jax.config import hyperparameters, option, suggest
from rlhf_jax.data import chat, jsonl, reviews
from rlhf_jax.data.examples import Example, Pair

FILES = ("sft", "pairs", "prompts", "test")  # fields of `Settings` that name a JSON Lines file


@hyperparameters
class Settings:
  """Which data, and how long."""

  source: str = option("reviews", choices=("reviews", "jsonl"))
  # Of a text to train on; longer ones are cut (reviews) or skipped (jsonl).
  max_tokens: int = option(128, at_least=2)
  # Of a held-out review that the reward model is measured on; longer ones are cut.
  held_out_tokens: int = option(256, at_least=2)
  # Reviews: the opening that a prompt takes. jsonl: the longest prompt.
  prompt_tokens: int = option(8, at_least=1)
  test_prompts: int = option(400, at_least=1)
  reviews: int = option(2500, at_least=10)  # for SFT and the reward model, the rest is the judge's
  sft: str = ""
  pairs: str = ""
  prompts: str = ""
  test: str = ""


class Labelled(NamedTuple):
  """Texts with a human label, 1 the better."""

  examples: list[Example]
  texts: list[str]
  labels: np.ndarray


class Task(NamedTuple):
  sft: list[Example]
  pairs: Callable[[int], list[Pair]]  # epoch -> that epoch's pairs
  prompts: list[Example]
  test_prompts: list[Example]
  held_out: Labelled | None  # to measure the reward model on
  train: Labelled | None  # what the reward model's baseline may learn from
  judge: Labelled | None  # for the judge alone
  notes: tuple[str, ...]  # sizes, skipped rows


def load_task(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """`rollout_tokens`: the longest response sampled in training.

  Raises FileNotFoundError or ValueError that names file, line or field.
  """
  builders = {"reviews": _reviews, "jsonl": _jsonl}
  if settings.source not in builders:
    raise ValueError(f"data.source={settings.source!r}{suggest(settings.source, builders)}")
  return builders[settings.source](settings, tokenizer, rollout_tokens, seed)


def _reviews(settings: Settings, tokenizer, rollout_tokens: int, seed: int) -> Task:
  for name in FILES:
    if getattr(settings, name):
      raise ValueError(
        f"data.{name} is read with data.source='jsonl' alone, and that is 'reviews'; set one of them."
      )
  splits = reviews.load_reviews(seed, train_size=settings.reviews)
  begin = chat.plain_prompt(tokenizer, "")  # a beginning mark, if the tokenizer adds one
  limit, opening = settings.max_tokens, len(begin) + settings.prompt_tokens

  def encode(dataset) -> dict[str, list[int]]:
    ids = tokenizer(list(dataset["text"]), add_special_tokens=False)["input_ids"]
    whole = ([*begin, *tokens, tokenizer.eos_token_id] for tokens in ids)
    return dict(zip(dataset["id"], whole, strict=True))

  train, test = encode(splits.train), encode(splits.test)
  cut = lambda tokens, size=limit: tokens[:size]

  def prompts(encoded, count=None):
    long_enough = [(i, t) for i, t in encoded.items() if len(t) > opening + 1]
    return [Example(i, t[:opening], opening) for i, t in long_enough[:count]]

  def labelled(dataset, encoded) -> Labelled:
    examples = [Example(i, cut(encoded[i], settings.held_out_tokens), 0) for i in dataset["id"]]
    return Labelled(examples, list(dataset["text"]), np.asarray(dataset["label"]))

  def pairs(epoch: int) -> list[Pair]:
    """Great reviews against others, of any lengths, so that rewards compare across lengths too.

    Half of the pairs, at random, are cut to the length of a rollout, which is what will be scored.
    """
    drawn = reviews.pairs(splits.train, seed=(seed, epoch))
    short = np.random.default_rng((seed, epoch)).random(len(drawn)) < 0.5
    sizes = np.where(short, min(opening + rollout_tokens, limit), limit)
    text = lambda i, size: Example(i, cut(train[i], size), 0)
    ids = zip(drawn["chosen_id"], drawn["rejected_id"], sizes, strict=True)
    return [Pair(text(w, n), text(l, n)) for w, l, n in ids]

  test_prompts = prompts(test, settings.test_prompts)
  return Task(
    sft=[Example(i, cut(tokens), 0) for i, tokens in train.items()],
    pairs=pairs,
    prompts=prompts(train),
    test_prompts=test_prompts,
    held_out=labelled(splits.test, test),
    train=labelled(splits.train, train),
    judge=labelled(splits.judge, encode(splits.judge)),
    notes=(splits.describe(),),
  )


def _jsonl(settings: Settings, tokenizer, rollout_tokens: int, seed: int) -> Task:
  notes: list[str] = []
  encode = lambda prompt: chat.plain_prompt(tokenizer, prompt)

  def example(row, field) -> Example:
    tokens, mask = chat.plain(tokenizer, row["prompt"], row[field])
    return Example(row["id"], tokens, mask.index(1))

  def answer_fits(row, *fields) -> str | None:
    longest = max(len(example(row, f).tokens) for f in fields)
    if len(encode(row["prompt"])) >= settings.max_tokens:
      return f"the prompt leaves no room to answer within data.max_tokens={settings.max_tokens}"
    if longest > settings.max_tokens:
      return f"{longest} tokens exceed data.max_tokens={settings.max_tokens}; raise it or shorten the row"
    return None

  def pair_is_usable(row) -> str | None:
    if row["chosen"] == row["rejected"]:
      return "'chosen' and 'rejected' are the same text, so nothing is preferred"
    return answer_fits(row, "chosen", "rejected")

  def prompt_fits(row) -> str | None:
    size = len(encode(row["prompt"]))
    if size > settings.prompt_tokens:
      return (
        f"a prompt of {size} tokens exceeds data.prompt_tokens={settings.prompt_tokens}; raise it or "
        "shorten the row"
      )
    return None

  def read(name, fields, check):
    path = getattr(settings, name)
    return jsonl.read(path, fields, check, notes) if path else []

  sft = read("sft", ("prompt", "response"), lambda r: answer_fits(r, "response"))
  pairs = read("pairs", ("prompt", "chosen", "rejected"), pair_is_usable)
  prompts = read("prompts", ("prompt",), prompt_fits)
  test = read("test", ("prompt",), prompt_fits)
  as_prompt = lambda r: Example(r["id"], encode(r["prompt"]), len(encode(r["prompt"])))
  tokenized_pairs = [Pair(example(r, "chosen"), example(r, "rejected")) for r in pairs]
  return Task(
    sft=[example(r, "response") for r in sft],
    pairs=lambda epoch: tokenized_pairs,
    prompts=[as_prompt(r) for r in prompts],
    test_prompts=[as_prompt(r) for r in test][: settings.test_prompts],
    held_out=None,
    train=None,
    judge=None,
    notes=tuple(notes),
  )
