"""Problems with checkable answers as a task, from the generators of `reasoning-gym` (arXiv:2505.24760).

A generator draws problem i from the seed `s + i`, so neighbouring seeds hold the same problems, and a small range of
numbers repeats them. Here one stream of problems is drawn, each prompt is kept once, and the stream is cut into
held-out problems, solved ones for SFT and problems to answer in training, in this order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.config import suggest
from rlhf_jax.data import encode
from rlhf_jax.data.task import FILES, Settings, Task
from rlhf_jax.data.texts import Text

INSTALL = "pip install 'rlhf_jax[reasoning]' (or reasoning-gym)"
OURS = ("seed", "size")  # options of every generator that follow from the run's own
PATIENCE = 1000  # known problems in a row, after which there are no others


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  """SFT learns `data.solved` problems with their answers; the generator's own rule checks a policy's answers.

  A prompt is `data.question` filled in, through the tokenizer's chat template where it has one. The three parts are
  cut by the number of problems alone, so that they stay what they are whatever the tokenizer.
  """
  for name in FILES:
    if getattr(settings, name):
      raise ValueError(
        f"data.{name} is read with data.source='files' alone, and that is 'reasoning_gym'; set one of them."
      )
  sizes = settings.test_prompts, settings.solved, settings.problems
  options = settings.task_options or {}
  generator = make_generator(settings.task, options, seed, 2 * sum(sizes))
  entries = dict(itertools.islice(distinct(generator, settings), sum(sizes)))
  if len(entries) < sum(sizes):
    raise ValueError(
      f"{settings.task} has {len(entries)} different problems, or few more, and data.test_prompts + data.solved + "
      f"data.problems ask for {sum(sizes)}; lower them, or widen data.task_options."
    )
  chat = bool(getattr(tokenizer, "chat_template", None))
  texts = [text(id, entry, settings, chat) for id, entry in entries.items()]
  test, solved, problems = (
    texts[end - size : end] for end, size in zip(itertools.accumulate(sizes), sizes, strict=True)
  )
  prompts = lambda part: [encode.prompt(tokenizer, each) for each in part]
  fitting = lambda part, limit: [each for each in part if len(each.tokens) <= limit]
  test = fitting(prompts(test), settings.prompt_tokens)
  solved = [each for each in solved if entries[each.id]["answer"] is not None]
  solved = fitting([encode.example(tokenizer, each) for each in solved], settings.max_tokens)
  problems = fitting(prompts(problems), settings.prompt_tokens)
  lost = sum(sizes) - len(test) - len(solved) - len(problems)

  def verifier(ids: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """What the generator's rule gives each response, float64[N]."""
    answers = (answer_of(response, settings.answer_after) for response in responses)
    rows = zip(ids, answers, strict=True)
    scores = np.asarray([score(generator, entries[id], answer) for id, answer in rows])
    return scores if settings.partial_credit else (scores >= 1.0).astype(float)

  return Task(
    sft=solved,
    feedback=lambda form, epoch: [],
    held_out_feedback=lambda form: [],
    attributes=(),
    prompts=problems,
    test_prompts=test,
    held_out=None,
    train=None,
    judge=None,
    verifier=verifier,
    notes=(
      f"{settings.task}: {len(solved):,} problems with their answers for SFT, {len(problems):,} to answer in training, "
      f"{len(test):,} held out, no prompt twice; {lost:,} left out, too long for data.prompt_tokens or data.max_tokens or without a "
      "solution to learn",
    ),
  )


def make_generator(name: str, options: Mapping[str, Any], seed: int, size: int):
  """The dataset `name` of reasoning-gym with its own `options`; ImportError or ValueError with the remedy.

  Most of them draw any problem when asked for it; few draw `size` problems at once and have no others.
  """
  try:
    from reasoning_gym import factory
  except ImportError as error:
    raise ImportError(f"data.source='reasoning_gym' needs a package: {INSTALL}") from error
  if name not in factory.DATASETS:
    raise ValueError(f"data.task={name!r} is not in reasoning-gym{suggest(name, factory.DATASETS)}")
  fields = {f.name for f in dataclasses.fields(factory.DATASETS[name][1])} - set(OURS)
  for option in options:
    if option in OURS:
      raise ValueError(
        f"data.task_options.{option} follows from the run's seed and sizes; leave it out."
      )
    if option not in fields:
      raise ValueError(
        f"data.task_options.{option} is not an option of {name}{suggest(option, fields)}"
      )
  first = int(np.random.default_rng(seed).integers(2**31))
  try:
    return factory.create_dataset(name, **options, seed=first, size=size)
  except (AssertionError, TypeError, ValueError) as error:
    raise ValueError(f"data.task_options={dict(options)!r}: {name} says {error}") from error


def distinct(generator, settings: Settings) -> Iterator[tuple[str, dict]]:
  """(`task:index`, problem) of every problem whose prompt has not come before."""
  seen: set[str] = set()
  repeated = 0
  for index in itertools.count():
    try:
      entry = generator[index]
    except IndexError:
      return
    asked = prompt_of(entry, settings)
    repeated = repeated + 1 if asked in seen else 0
    if repeated == PATIENCE:
      return
    if not repeated:
      seen.add(asked)
      yield f"{settings.task}:{index}", entry


def prompt_of(entry: Mapping[str, Any], settings: Settings) -> str:
  """`data.question` filled in with the problem's question or its metadata."""
  fields = {"question": entry["question"], **entry["metadata"]}
  try:
    return settings.question.format(**fields)
  except (KeyError, IndexError) as error:
    raise ValueError(
      f"data.question={settings.question!r} names {error}, which {settings.task} does not have"
      f"{suggest(error.args[0], fields)}"
    ) from error


def text(id: str, entry: Mapping[str, Any], settings: Settings, chat: bool) -> Text:
  """A problem and its answer, as turns where there is a chat template."""
  asked, answer = prompt_of(entry, settings), settings.answer_after + (entry["answer"] or "")
  if not chat:
    return Text(id, asked, answer)
  turn = lambda role, content: ({"role": role, "content": content},)
  return Text(id, turn("user", asked), turn("assistant", answer))


def answer_of(response: str, answer_after: str) -> str | None:
  """What is meant as the answer: all of the response, or what follows the last `answer_after` in it.

  None where the response lacks it. Blanks at both ends do not count.
  """
  _, found, last = response.rpartition(answer_after) if answer_after else ("", True, response)
  return last.strip() if found else None


def score(generator, entry: Mapping[str, Any], answer: str | None) -> float:
  """The generator's own score of `answer`, from 0 to 1; 0 where it cannot read it."""
  try:
    return float(generator.score_answer(answer, entry))
  except Exception:  # rules that parse an answer fail in ways of their own on what is none
    return 0.0
