"""What a run learns from and is judged on, tokenized: one `Task` for every stage, whatever the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.config import hyperparameters, option
from rlhf_jax.data.examples import Example, Record

FILES = ("sft", "feedback", "held_out", "prompts", "test")  # fields of `Settings` that name a file


@hyperparameters
class Settings:
  """Which data, and how long."""

  source: str = option(
    "reviews", choices=("reviews", "chitchat", "files", "random_walks", "reasoning_gym")
  )
  # Of a text to train on; longer ones are cut (reviews, chitchat) or left out.
  max_tokens: int = option(128, at_least=2)
  # Of a held-out review that the reward model is measured on; longer ones are cut.
  held_out_tokens: int = option(256, at_least=2)
  # Reviews: the opening that a prompt takes. Files and reasoning_gym: the longest prompt.
  prompt_tokens: int = option(8, at_least=1)
  test_prompts: int = option(400, at_least=1)
  reviews: int = option(2500, at_least=10)  # for SFT and the reward model, the rest is the judge's
  # Reviews: whose word a mark is: the writer's stars; or, of the text as it is cut, whether VADER's
  # compound sentiment exceeds `vader_above`, for a cost that people have not judged.
  labels: str = option("stars", choices=("stars", "vader"))
  vader_above: float = option(0.8, at_least=-1, below=1)
  sft: str = ""
  feedback: str = ""
  held_out: str = ""  # feedback that the reward model is measured on
  prompts: str = ""
  test: str = ""
  # Files: the names of ordered classes, the worst first; none where they are whole numbers.
  classes: tuple[str, ...] = ()
  step_separator: str = "\n"  # Files: what joins the steps of an answer
  # Random walks: the graph, what is walked on it, and what both are drawn from.
  nodes: int = option(21, at_least=3, at_most=52)  # a letter each
  edge_probability: float = option(0.1, above=0, at_most=1)
  walks: int = option(1000, at_least=10)
  longest_walk: int = option(10, at_least=2)  # steps
  graph_seed: int = option(0, at_least=0)
  # Reasoning_gym: a generator of that package and its own options.
  task: str = ""
  task_options: Mapping | None = None
  question: str = "{question}\n"  # filled in with a problem's question or its metadata
  answer_after: str = ""  # the answer is what follows this in a response, which without it is wrong
  partial_credit: bool = False  # scores between 0 and 1; else only what scores 1 is right
  solved: int = option(1000, at_least=1)  # problems with their answers, for SFT
  problems: int = option(8000, at_least=1)  # to be answered in training

  def assert_sound(self, where: str) -> None:
    if self.labels != "stars" and self.source != "reviews":
      raise ValueError(
        f"{where}.labels={self.labels!r} labels reviews, and {where}.source is {self.source!r}; leave it out."
      )
    if self.task and self.source != "reasoning_gym":
      raise ValueError(
        f"{where}.task={self.task!r} is a generator of problems, and {where}.source is {self.source!r}; set "
        f"{where}.source='reasoning_gym', or leave it out."
      )


class LabelledTexts(NamedTuple):
  """Texts with what people said of them."""

  examples: list[Example]  # as much of each as a model reads
  texts: list[str]  # the whole
  labels: np.ndarray  # int[N], 1 the better; or float[N, A], ratings on A scales


class Task(NamedTuple):
  sft: list[Example]
  # (form, epoch) -> records of that form, [] where the data hold none; a form of `examples.FORMS`
  feedback: Callable[[str, int], list[Record]]
  held_out_feedback: Callable[[str], list[Record]]  # form -> records to measure a reward model on
  attributes: tuple[str, ...]  # what the scales of ratings are called
  prompts: list[Example]
  test_prompts: list[Example]
  held_out: LabelledTexts | None  # to measure the reward model on
  train: LabelledTexts | None  # what the reward model's baseline may learn from
  judge: LabelledTexts | None  # for the judge alone
  # (prompt ids, responses) -> scores float[N], of prompts whose answers can be checked; None where they cannot
  verifier: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None
  notes: tuple[str, ...]  # sizes, skipped rows
