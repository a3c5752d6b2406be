"""Trains what an experiment's config describes, and resumes what was interrupted.

Runs the config's stages in the workdir: supervised fine-tuning, a reward model, the policy, and an
evaluation against the fine-tuned model. The same command again goes on from the last checkpoint;
when everything is finished it says so. Progress goes to the terminal and to metrics.jsonl, samples
to samples.jsonl, results to results.json and report.html, all in the workdir.

Every option of the config can be set, whether its file mentions it or not:

  rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny
  rlhf-jax train --config=experiments/quickstart.py --workdir=runs/quickstart --config.seed=1
  rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny --config.algorithm.name=dpo \\
      --config.dpo.beta=0.2

The last one reuses the fine-tuned model and the reward model of the first. Several seeds make a table,
each in a folder of its own below the workdir:

  rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny_seeds --seeds=0,1,2

Started as several processes, by srun, mpirun, or with the options below, it trains on the devices of all of them, arranged by
config.mesh; the workdir is then a folder that all see. docs/scaling.md tells more.
"""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager

from rlhf_jax.cli import distributed


def add_options(parser) -> None:
  parser.add_config()
  distributed.add_options(parser)
  parser.add_argument("--workdir", required=True, help="folder of the run; made if needed")
  parser.add_argument(
    "--seeds", type=parse_seeds, metavar="N,N,...", help="train every seed, and compare"
  )


def run(args) -> None:
  from rlhf_jax.cli import config
  from rlhf_jax.report import write_report
  from rlhf_jax.sharding import processes
  from rlhf_jax.training import seeds
  from rlhf_jax.training.experiment import train

  settings = config.load(args.config)
  if args.seeds:
    with interruptible():
      results = seeds.train_seeds(settings, args.workdir, args.seeds)
    if not processes.is_first():
      return
    for seed in args.seeds:
      write_report(f"{args.workdir}/seed_{seed}")
    print(seeds.table(results))
    return
  with interruptible():
    results = train(settings, args.workdir)
  if not processes.is_first():
    return
  print(results_table(results))
  print(f"report: {write_report(args.workdir)}")


def parse_seeds(text: str) -> list[int]:
  return [int(part) for part in text.split(",")]


def results_table(results: dict[str, float]) -> str:
  """One line a policy: its score, reward, cost and KL from the SFT model in nats, and how often, or how far, it beats that."""
  from rlhf_jax.report.tables import bounds_of, policies_of

  columns = {"score": "score", "reward": "reward", "cost": "cost", "kl": "KL"}
  policies = policies_of(results)
  has = lambda name: any(f"{policy}/{name}" in results for policy in policies)
  shown = [name for name in columns if name in ("reward", "kl") or has(name)]
  beats = "score_gain" if has("score_gain") else "win_rate"
  heading = {"score_gain": "score over SFT's", "win_rate": "wins against SFT"}[beats]
  rows = [("policy", *(columns[name] for name in shown), f"{heading} [95 % interval]")]
  for policy in policies:
    rate, low, high = bounds_of(results, f"{policy}/{beats}")
    wins = "" if rate is None else f"{rate:.3f} [{low:.3f}, {high:.3f}]"
    rows.append((policy, *(_number(results.get(f"{policy}/{name}")) for name in shown), wins))
  if len(rows) == 1:
    return ""
  width = max(12, *(len(row[0]) + 2 for row in rows))
  line = lambda name, *numbers, wins: (
    f"{name:<{width}}{''.join(f'{n:>8}' for n in numbers)}   {wins}"
  )
  return "\n".join(line(*row[:-1], wins=row[-1]) for row in rows)


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"


@contextmanager
def interruptible():
  """Within, SIGTERM and SIGINT raise Interrupted also where no training loop sees to them.

  There, one of several processes ends at once, and the others with it.
  """
  from rlhf_jax.training.loop import Interrupted

  def stop(number, frame):
    stopped = Interrupted(
      f"stopped by {signal.Signals(number).name} between two loops; every finished stage and "
      "checkpoint is saved. Run the same command again to go on from there.",
      signal.Signals(number),
    )
    if distributed.several():
      print(*stopped.args, file=sys.stderr)
      distributed.end(stopped.code)
    raise stopped

  try:
    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
  except ValueError:  # not the main thread
    before = {}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
