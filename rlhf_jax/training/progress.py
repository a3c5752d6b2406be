"""How good a policy is while it trains: its answers to the held-out prompts, checked by the task's verifier.

Measured every `evaluate_every` steps and after the last one, it becomes a curve of `eval/score` in metrics.jsonl. The keys
that answers are drawn with are the same every time, so a curve moves with the policy and not with chance; and a
measurement depends on the weights alone, so that a resumed run logs what an uninterrupted one does.
"""

from __future__ import annotations

import functools
import time

import jax
import numpy as np

from rlhf_jax.config import from_dict
from rlhf_jax.ops import stats
from rlhf_jax.training import evaluate, sampling
from rlhf_jax.training.setup import Setup, algorithm_module
from rlhf_jax.types import Mean, Params, Sequences


def due(every: int, step: int, steps: int) -> bool:
  """Whether the policy is measured after step `step` of 0 … `steps` − 1."""
  return every > 0 and ((step + 1) % every == 0 or step + 1 == steps)


def measure(setup: Setup, params: Params, frozen: Params, *, updates: int) -> dict[str, Mean]:
  """`eval/score`, with the optimizer's updates so far, and `eval/kl_exact` where there is a reference and chance.

  Answers are sampled as in the evaluation stage, one to each held-out prompt.
  """
  began = time.perf_counter()
  settings = from_dict(evaluate.Settings, setup.config.get("evaluation", {}), where="evaluation")
  prompts = setup.task.test_prompts
  written = sampling.sample(
    evaluate.sampling_plainly(setup, settings),
    frozen["base"],
    params["model"],
    prompts,
    "progress",
    batch_size=settings.batch_size,
  ).sequences
  scores = setup.task.verifier([p.id for p in prompts], sampling.texts(setup, written))
  found = {"eval/score": np.mean(scores), "eval/updates": updates}
  if "reference" in frozen and not settings.greedy:

    def divergence(rows):
      part = setup.place_batch(sampling.take(written, rows))
      return exact_kl(setup.policy, {"model": params["model"]}, frozen, part)

    each = sampling.in_batches(setup, divergence, len(prompts), settings.batch_size, "measuring")
    found["eval/kl_exact"] = np.mean(each)
  found["time/evaluation"] = time.perf_counter() - began
  return {name: Mean(np.float32(value), np.float32(1)) for name, value in found.items()}


def assert_possible(setup: Setup, name: str, every: int) -> None:
  """Raises ValueError where stage or algorithm `name` has nothing to measure, or nothing to measure it with."""
  if not every:
    return
  where = f"{name}.evaluate_every={every}"
  if algorithm_module(name).TRAINS == "reward_model":
    raise ValueError(f"{where} measures a policy, and {name} trains a reward model; leave it out.")
  if setup.task.verifier is None:
    raise ValueError(
      f"{where} checks answers with the task's verifier, and data.source={setup.data.source!r} has none; leave it "
      "out, or take a task whose answers can be checked, such as data.source='random_walks'."
    )
  if not setup.task.test_prompts:
    raise ValueError(f"{where} needs held-out prompts, and there are none; leave it out.")


@functools.partial(jax.jit, static_argnums=0)
def exact_kl(policy, params: Params, frozen: Params, sequences: Sequences):
  """KL from the reference, exact over the vocabulary and summed over the response, float32[B]."""
  *_, exact = policy.compare(params, frozen["reference"], frozen, sequences, 1.0)
  return stats.row_sum(exact, sequences.response_mask)
