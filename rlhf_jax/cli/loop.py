"""Rounds of sampling, asking, learning and improving, from one config.

In each round the newest policy answers prompts twice, the pairs most worth asking about are chosen (config.loop.strategy), annotators
say which answer is better (config.loop.labels: simulated ones, people on the page of `rlhf-jax label`, or a model), a reward model
learns from all that was said so far, and the policy is trained against it. rounds.md and rounds.png in the workdir
show what each round has reached. The same command again goes on where it stopped.

  rlhf-jax loop --config=experiments/loop.py --workdir=runs/loop
  rlhf-jax loop --config=experiments/loop.py --workdir=runs/active --config.loop.strategy=disagreement
  rlhf-jax loop --config=experiments/loop.py --workdir=runs/people --config.loop.labels=people

With --seeds, the loop that each of the config's `variants` changes is run with every seed, from one SFT model; study.md and
study.png in the workdir compare them seed by seed.

  rlhf-jax loop --config=experiments/loop.py --workdir=runs/study --seeds=0,1,2,3,4
"""

from __future__ import annotations


def add_options(parser) -> None:
  from rlhf_jax.cli.train import parse_seeds

  parser.add_config()
  parser.add_argument("--workdir", required=True, help="folder of all rounds; made if needed")
  parser.add_argument(
    "--seeds", type=parse_seeds, metavar="N,N,...", help="every variant with every seed"
  )


def run(args) -> None:
  from rlhf_jax.cli import config
  from rlhf_jax.cli.train import interruptible

  try:
    from rlhf_jax.feedback import loop, study
  except ImportError as error:
    raise ImportError(f"{error}; pip install 'rlhf_jax[label]'") from error
  from rlhf_jax.report import study as studies
  from rlhf_jax.report.rounds import table, write_rounds

  settings = config.load(args.config)
  if args.seeds:
    with interruptible():
      found = study.run(settings, args.workdir, args.seeds, after_each=studies.write_study)
    print(studies.table(found))
    for path in studies.write_study(args.workdir, found):
      print(path)
    return
  settings.pop("variants", None)  # which --seeds compares
  name = settings["algorithm"]["name"]
  with interruptible():
    rounds = loop.run(
      settings, args.workdir, after_each=lambda workdir, found: write_rounds(workdir, found, name)
    )
  print(table(rounds, name))
  for path in write_rounds(args.workdir, rounds, name):
    print(path)
