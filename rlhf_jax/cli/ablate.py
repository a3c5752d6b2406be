"""Trains variants of one experiment over several seeds at once, and says which differences are more than chance.

The config's section `variants` names each with the options that it changes, and `ablation` says how many seeds there are
and which variant the others are compared with. All share the SFT model and the reward model, which are trained once, in
the workdir; the policies of all seeds of a variant are one program. The same command again goes on with the variants
that are not finished. After every variant, ablation.md and ablation.png in the workdir show what each has reached.

  rlhf-jax ablate --config=experiments/ppo_details.py --workdir=runs/ppo_details
  rlhf-jax ablate --config=experiments/ppo_details.py --workdir=runs/ppo_details --only=base,no_whitening
  rlhf-jax ablate --config=experiments/ppo_details.py --workdir=runs/ppo_details_3 --config.ablation.seeds=3
"""

from __future__ import annotations


def add_options(parser) -> None:
  parser.add_config()
  parser.add_argument("--workdir", required=True, help="folder of all variants; made if needed")
  parser.add_argument("--only", metavar="NAME,NAME,...", help="train these variants alone")


def run(args) -> None:
  from rlhf_jax.cli import config
  from rlhf_jax.cli.train import interruptible
  from rlhf_jax.report.ablation import table, write_ablation
  from rlhf_jax.training import sweep

  only = args.only.split(",") if args.only else ()
  settings = config.load(args.config)
  with interruptible():
    found = sweep.ablate(settings, args.workdir, only=only, after_each=write_ablation)
  print(table(found))
  for path in write_ablation(args.workdir, found):
    print(path)
