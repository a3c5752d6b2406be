"""An experiment without weights and without data: shapes of the former, and of the latter as much as a batch holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config import from_dict
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, TokenLabelled
from rlhf_jax.data.task import Task
from rlhf_jax.training import answers, options
from rlhf_jax.training.setup import Setup, described, family_config_of, mesh_of

CHOSEN, REJECTED = 1, 2  # tokens, so that answers part where their prompt ends
RANKED, SCALES = 4, 3  # answers of a ranking, scales of a rating


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Stands for a tokenizer of `size` tokens, none of which can be read."""

  size: int
  eos_token_id: int = 0

  def __len__(self) -> int:
    return self.size

  def batch_decode(self, rows, skip_special_tokens: bool = True) -> list[str]:
    return [""] * len(rows)


class Abstract(Setup):
  """A setup whose functions are to be traced: nothing is laid on devices there, since only shapes are known."""

  def place(self, tree):
    return tree


def make_setup(config: Mapping[str, Any], devices) -> Abstract:
  """The setup of `config` on `devices`, which need not exist. Raises ValueError with the remedy."""
  family_config = family_config_of(config)
  mesh = mesh_of(config, devices)
  tokens = Tokens(family_config.vocab_size)
  setup = Abstract(*described(config, Path(), family_config, tokens, mesh))
  shapes = jax.eval_shape(setup.model.init, jax.random.key(0))
  return setup._replace(pretrained=lambda: shapes, task=task(setup))


def task(setup: Setup) -> Task:
  """As many texts, prompts and records as the largest batch takes, all as long as they may be."""
  data, rows = setup.data, _largest_batch(setup.config)
  prompt = Example.prompt("prompt", [0] * data.prompt_tokens)
  text = Example.text("text", [CHOSEN] * data.max_tokens)
  return Task(
    sft=[text] * rows,
    feedback=lambda form, epoch: records(setup, form, data.max_tokens),
    held_out_feedback=lambda form: [],
    attributes=(),
    prompts=[prompt] * rows,
    test_prompts=[],
    held_out=None,
    train=None,
    judge=None,
    verifier=None,
    notes=(),
  )


def records(setup: Setup, form: str, width: int) -> list:
  """Feedback of a form, of answers that end at `width`."""
  prompt = min(setup.data.prompt_tokens, width - 1)
  start = Example.prompt("prompt", [0] * prompt)
  answer = lambda token: start.continued("answer", [token] * (width - prompt))
  chosen, rejected = answer(CHOSEN), answer(REJECTED)
  made = {
    "pairs": lambda i: Pair(chosen, rejected),
    "rankings": lambda i: Ranking((chosen,) * RANKED, tuple(range(1, RANKED + 1))),
    "ratings": lambda i: Labelled(chosen, (1.0 + i % 5,) * SCALES),
    "classes": lambda i: Labelled(chosen, (float(i % 5),)),
    "marks": lambda i: Labelled(chosen, (float(i % 2),)),
    "tokens": lambda i: TokenLabelled(chosen, [float(i % 2)] * width),
    "texts": lambda i: chosen,
  }[form]
  return [made(i) for i in range(_largest_batch(setup.config))]


def width_of_answers(setup: Setup) -> int:
  """How long the answers are that an offline algorithm learns from: people's, or the reference's own."""
  settings = from_dict(answers.Settings, setup.config.get("answers", {}), where="answers")
  if settings.source == "human":
    return setup.data.max_tokens
  return setup.data.prompt_tokens + setup.sampling.max_new_tokens


def _largest_batch(config: Mapping[str, Any]) -> int:
  """Rows or prompts, of the stages that the config has."""
  names = ("sft", options.reward_algorithm(config), config["algorithm"]["name"])
  settings = [options.stage(config, name)[1] for name in names]
  return max(getattr(s, "batch_size", 0) or s.prompts for s in settings)
