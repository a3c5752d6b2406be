"""Says what an experiment needs on chips that are not there: memory, operations, traffic, and how long a step takes at least.

The train step of every stage and the rollout are compiled for the topology by the compiler of TPUs, on this machine, without
weights and without data; the package `libtpu` brings that compiler (pip install 'rlhf_jax[plan]'). The mesh is the
config's, `--config.mesh.fsdp` and its like. docs/plan.md says how to read what is printed.

  rlhf-jax plan --config=experiments/llama.py:1b_dpo --topology=v5e:4x4
  rlhf-jax plan --config=experiments/llama.py:8b_dpo --topology=v5p:4x4x4 --only=dpo --config.mesh.fsdp=64
  rlhf-jax plan --config=experiments/tiny.py --topology=cpu:8 --config.mesh.data=4 --config.mesh.tensor=2

The last one needs no libtpu: it takes forced host devices, whose compiler is another one.
"""

from __future__ import annotations

import os
from pathlib import Path


def add_options(parser) -> None:
  parser.add_config()
  parser.add_argument(
    "--topology", required=True, metavar="NAME", help="chips, such as v5e:4x4, v5p:4x4x4, cpu:8"
  )
  parser.add_argument(
    "--only", metavar="NAME,NAME,...", help="compile these programs alone: sft, dpo, rollout, ..."
  )
  parser.add_argument(
    "--json", metavar="FILE", help="write the numbers there too, a line a program"
  )


def run(args) -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed, and no accelerator is wanted
  from rlhf_jax.cli import config
  from rlhf_jax.plan import experiment, report
  from rlhf_jax.training import disk

  only = args.only.split(",") if args.only else ()
  reports = []
  for found in experiment.plan(config.load(args.config), args.topology, only=only):
    print(report.text(found), end="\n\n", flush=True)
    reports.append(found)
    if args.json:
      disk.append_rows(Path(args.json), [report.row(found)])
  print("\n".join(report.summary(reports)))
