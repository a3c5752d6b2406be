"""The command line: `rlhf-jax VERB`. A verb is a module beside this one with `add_options(parser)` and `run(args)`.

Modules of this package import JAX and the rest inside `run`, so that help and mistyped options are
answered at once.
"""

from __future__ import annotations

import importlib
import sys

import rlhf_jax
from rlhf_jax.cli import distributed, environment
from rlhf_jax.cli.parser import Parser, UsageError, nearest

VERBS = (
  "train",
  "plan",
  "compare",
  "ablate",
  "evaluate",
  "rank",
  "generate",
  "chat",
  "convert",
  "data",
  "report",
  "label",
  "loop",
  "arena",
)
RAISED = (ValueError, OSError, ImportError, FloatingPointError)  # by our own checks, with a remedy


def main(argv: list[str] | None = None) -> int:
  """Runs one verb of `argv`, or of the command line; returns the exit code.

  0 done, 1 an error while running, 2 an option that does not exist, 128 + n stopped by signal n.
  """
  if argv is None:  # the console entry, before anything heavy is imported
    argv = sys.argv[1:]
    environment.prepare(argv)
  try:
    return _run(argv)
  except UsageError as error:
    print(f"error: {error}\n{error.hint}", file=sys.stderr)
    return 2


def _run(argv: list[str]) -> int:
  if not argv or argv[0] in ("-h", "--help"):
    print(_overview())
    return 0
  if argv[0] == "--version":
    print(f"rlhf-jax {rlhf_jax.__version__}")
    return 0
  verb = argv[0]
  if verb not in VERBS:
    raise UsageError(
      f"{verb!r} is not a verb{nearest(verb, VERBS)}", "`rlhf-jax --help` lists all verbs."
    )
  module = importlib.import_module(f"rlhf_jax.cli.{verb}")
  parser = Parser(verb, module.__doc__)
  module.add_options(parser)
  args = parser.parse_args(argv[1:])
  if args is None:  # its help was printed
    return 0
  with distributed.ending_alone():
    return _answer(module, args)


def _answer(module, args) -> int:
  try:
    distributed.join(args)
    module.run(args)
  except UsageError:
    raise
  except RAISED as error:
    if args.debug:
      raise
    print(f"error: {error}", file=sys.stderr)
    return distributed.end(1)
  except KeyboardInterrupt:
    print("stopped.", file=sys.stderr)
    return 130
  except SystemExit as stop:  # training.loop.Interrupted
    print(*stop.args, file=sys.stderr)
    return stop.code
  return 0


def _overview() -> str:
  lines = [
    "rlhf-jax VERB [options]: from human feedback to an aligned language model.",
    "",
    "verbs:",
  ]
  for verb in VERBS:
    about = importlib.import_module(f"rlhf_jax.cli.{verb}").__doc__.splitlines()[0]
    lines.append(f"  {verb:<10}{about}")
  return "\n".join(
    [
      *lines,
      "",
      "`rlhf-jax VERB --help` explains a verb and gives examples. To begin:",
      "",
      "  rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny",
    ]
  )
