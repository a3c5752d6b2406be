"""Where a model comes from: `--workdir` and `--stage` of a run, or `--model`."""

from __future__ import annotations

import argparse

from rlhf_jax.cli.parser import UsageError


def add_options(parser) -> None:
  parser.add_argument("--workdir", help="folder of a run")
  parser.add_argument("--stage", help="sft, ppo, dpo, ...; the policy of its config unless said")
  parser.add_argument(
    "--model", metavar="SOURCE", help="package:NAME, a .gguf file or a Hugging Face folder"
  )


def load(args: argparse.Namespace, dtype: str | None = None):
  """The `restore.TextModel` that the options name; its matrix products of `dtype`, if given."""
  from rlhf_jax.data import chat
  from rlhf_jax.models import registry
  from rlhf_jax.rollout.generate import Sampling
  from rlhf_jax.training import restore
  from rlhf_jax.weights import load

  if bool(args.model) == bool(args.workdir):
    raise UsageError(
      "give one of --workdir=DIR, with --stage=NAME, and --model=SOURCE.",
      "`--help` has examples of both.",
    )
  if args.workdir:
    found = restore.model(args.workdir, args.stage or restore.algorithm(args.workdir))
    if dtype in (None, found.dtype):
      return found
    model = registry.language_model(found.model.config, dtype=dtype)
    return found._replace(model=model, dtype=dtype)
  config, params, tokenizer = load.load(args.model)
  dtype = dtype or "float32"
  return restore.TextModel(
    registry.language_model(config, dtype=dtype),
    params,
    tokenizer,
    Sampling(stop_tokens=chat.ends(tokenizer)),
    dtype,
  )
