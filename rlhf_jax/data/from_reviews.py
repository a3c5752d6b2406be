"""Food reviews as a task: SFT learns their text, the stars are the feedback, prompts are their openings.

With `labels="vader"` the feedback is marks alone, and a classifier's instead of people's: every text is labelled as
far as it is read.
"""

from __future__ import annotations

import functools

import numpy as np

from rlhf_jax.data import chat, reviews, sentiment
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, Record
from rlhf_jax.data.task import FILES, LabelledTexts, Settings, Task

RANKED = 4  # reviews in a ranking: a great one before three others


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """The stars as pairs, rankings, classes or marks: each form says of a review what its writer did."""
  for name in FILES:
    if getattr(settings, name):
      raise ValueError(
        f"data.{name} is read with data.source='files' alone, and that is 'reviews'; set one of them."
      )
  splits = reviews.load_reviews(seed, train_size=settings.reviews)
  begin = chat.plain_prompt(tokenizer, "")  # a beginning mark, if the tokenizer adds one
  limit, opening = settings.max_tokens, len(begin) + settings.prompt_tokens

  def encode(dataset) -> dict[str, list[int]]:
    ids = tokenizer(list(dataset["text"]), add_special_tokens=False)["input_ids"]
    whole = ([*begin, *tokens, *chat.ends(tokenizer)] for tokens in ids)
    return dict(zip(dataset["id"], whole, strict=True))

  train, test = encode(splits.train), encode(splits.test)
  by_writer = lambda star, read: star
  label = by_writer
  if settings.labels == "vader":
    effusive = functools.cache(sentiment.above(settings.vader_above))
    seen = lambda read: tokenizer.decode(read.tokens, skip_special_tokens=True)
    label = lambda star, read: int(effusive(seen(read)))

  def prompts(encoded, count=None):
    long_enough = [(i, t) for i, t in encoded.items() if len(t) > opening + 1]
    return [Example.prompt(i, t[:opening]) for i, t in long_enough[:count]]

  def labelled(dataset, encoded, label) -> LabelledTexts:
    size = settings.held_out_tokens
    examples = [Example.text(i, encoded[i][:size]) for i in dataset["id"]]
    labels = [label(star, read) for star, read in zip(dataset["label"], examples, strict=True)]
    return LabelledTexts(examples, list(dataset["text"]), np.asarray(labels))

  def feedback(dataset, encoded, form: str, epoch: int) -> list[Record]:
    """Of any lengths, so that rewards compare across lengths too; half of the records, at random, are
    cut to the length of a rollout, which is what will be scored."""
    rng = np.random.default_rng((seed, epoch))
    sizes = lambda count: np.where(
      rng.random(count) < 0.5, min(opening + rollout_tokens, limit), limit
    )
    text = lambda i, size: Example.text(i, encoded[i][:size])
    if form in ("marks", "classes"):
      rows = zip(dataset["id"], dataset["label"], sizes(len(dataset)), strict=True)
      read = [(star, text(i, size)) for i, star, size in rows]
      return [Labelled(answer, (float(label(star, answer)),)) for star, answer in read]
    if label is not by_writer:
      return []
    if form == "pairs":
      drawn = reviews.pairs(dataset, seed=(seed, epoch))
      rows = zip(drawn["chosen_id"], drawn["rejected_id"], sizes(len(drawn)), strict=True)
      return [Pair(text(w, size), text(l, size)) for w, l, size in rows]
    if form == "rankings":
      drawn = reviews.rankings(dataset, RANKED, seed=(seed, epoch))
      ranks = (1, *[2] * (RANKED - 1))
      rows = zip(drawn, sizes(len(drawn)), strict=True)
      return [Ranking(tuple(text(i, size) for i in ids), ranks) for ids, size in rows]
    return []

  notes = (splits.describe(),)
  if label is not by_writer:
    rule = f"1 where its compound sentiment exceeds {settings.vader_above:g}"
    notes += (f"labels are VADER's, a classifier's, and not people's: {rule}",)
  test_prompts = prompts(test, settings.test_prompts)
  return Task(
    sft=[Example.text(i, tokens[:limit]) for i, tokens in train.items()],
    feedback=lambda form, epoch: feedback(splits.train, train, form, epoch),
    held_out_feedback=lambda form: feedback(splits.test, test, form, 0),
    attributes=("great",),
    prompts=prompts(train),
    test_prompts=test_prompts,
    held_out=labelled(splits.test, test, label),
    train=labelled(splits.train, train, label),
    judge=labelled(splits.judge, encode(splits.judge), by_writer),
    verifier=None,
    notes=notes,
  )
