"""Trains variants of one experiment, such as every preference loss, and puts them side by side.

The config's section `variants` names each with the algorithm and options that it changes. All share
the SFT model, the reward model, sampled answers and the reference's log-probabilities, which are made
once, in the workdir; each variant is a run in variants/NAME below it. The same command again goes on
from the last checkpoint. At the end, and after every variant, comparison.md and comparison.png in the
workdir show what each has reached, and curves.png how, where evaluate_every had them measured.

  rlhf-jax compare --config=experiments/preferences.py --workdir=runs/preferences
  rlhf-jax compare --config=experiments/preferences.py --workdir=runs/preferences --only=dpo,ipo,kto
  rlhf-jax compare --config=experiments/preferences.py --workdir=runs/preferences --seeds=0,1,2

Like train, it may be started as several processes.
"""

from __future__ import annotations

from rlhf_jax.cli import distributed


def add_options(parser) -> None:
  from rlhf_jax.cli.train import parse_seeds

  parser.add_config()
  distributed.add_options(parser)
  parser.add_argument("--workdir", required=True, help="folder of all runs; made if needed")
  parser.add_argument("--only", metavar="NAME,NAME,...", help="train these variants alone")
  parser.add_argument(
    "--seeds", type=parse_seeds, metavar="N,N,...", help="every seed in a folder of its own"
  )


def run(args) -> None:
  from rlhf_jax.cli import config
  from rlhf_jax.cli.train import interruptible
  from rlhf_jax.report import write_report
  from rlhf_jax.report.comparison import read_comparison, table, write_comparison
  from rlhf_jax.sharding import processes
  from rlhf_jax.training import variants

  settings = config.load(args.config)
  only = args.only.split(",") if args.only else ()
  seeds = args.seeds or [settings["seed"]]
  folders = [f"{args.workdir}/seed_{seed}" for seed in seeds] if args.seeds else [args.workdir]
  with interruptible():
    for seed, folder in zip(seeds, folders, strict=True):
      variants.compare({**settings, "seed": seed}, folder, only=only, after_each=write_comparison)
      if processes.is_first():
        write_report(folder)
  if not processes.is_first():
    return
  runs = [read_comparison(folder) for folder in folders]
  print(table(runs))
  for path in write_comparison(args.workdir, runs, folders):
    print(path)
