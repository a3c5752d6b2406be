"""Rounds of sampling, asking, learning and improving, from one config.

In each round the newest policy answers prompts twice, the pairs most worth asking about are chosen (config.loop.strategy), annotators
say which answer is better (config.loop.labels: simulated ones, people on the page of `rlhf-jax label`, or a model), a reward model
learns from all that was said so far, and the policy is trained against it. rounds.md and rounds.png in the workdir
show what each round has reached. The same command again goes on where it stopped.

  rlhf-jax loop --config=experiments/loop.py --workdir=runs/loop
  rlhf-jax loop --config=experiments/loop.py --workdir=runs/active --config.loop.strategy=disagreement
  rlhf-jax loop --config=experiments/loop.py --workdir=runs/people --config.loop.labels=people
"""

from __future__ import annotations


def add_options(parser) -> None:
  parser.add_config()
  parser.add_argument("--workdir", required=True, help="folder of all rounds; made if needed")


def run(args) -> None:
  from rlhf_jax.cli import config
  from rlhf_jax.cli.train import interruptible

  try:
    from rlhf_jax.feedback import loop
  except ImportError as error:
    raise ImportError(f"{error}; pip install 'rlhf_jax[label]'") from error
  from rlhf_jax.report.rounds import table, write_rounds

  settings = config.load(args.config)
  name = settings["algorithm"]["name"]
  with interruptible():
    rounds = loop.run(
      settings, args.workdir, after_each=lambda workdir, found: write_rounds(workdir, found, name)
    )
  print(table(rounds, name))
  for path in write_rounds(args.workdir, rounds, name):
    print(path)
