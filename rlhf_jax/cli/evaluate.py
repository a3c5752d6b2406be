"""Evaluates a trained policy again, and rewrites the results and the report.

Judges what the policy of the workdir's config wrote on the held-out prompts. The answers are those
kept in its folder evaluation/; with --again they are moved aside and written anew.

  rlhf-jax evaluate --workdir=runs/tiny
  rlhf-jax evaluate --workdir=runs/tiny --stage=dpo --again
"""

from __future__ import annotations

from pathlib import Path


def add_options(parser) -> None:
  parser.add_argument("--workdir", required=True, help="folder of a finished run")
  parser.add_argument("--stage", help="the policy: ppo, dpo, ...; that of the config unless said")
  parser.add_argument("--again", action="store_true", help="write new answers; keep the old aside")


def run(args) -> None:
  import jax

  from rlhf_jax.cli.train import results_table
  from rlhf_jax.report import write_report
  from rlhf_jax.training import evaluate, restore

  workdir = Path(args.workdir)
  policy = restore.policy(workdir, args.stage or restore.algorithm(workdir))
  if args.again and (workdir / "evaluation").exists():
    aside = _free_name(workdir / "evaluation")
    (workdir / "evaluation").rename(aside)
    print(f"the answers so far are in {aside}")
  with jax.set_mesh(policy.setup.mesh):
    found = evaluate.evaluate(policy.setup, policy.name, policy.params, policy.frozen)
  policy.run.add(found)
  print(results_table(policy.run.results))
  print(f"report: {write_report(workdir)}")


def _free_name(path: Path) -> Path:
  """`path`.1, or the first number that is not taken."""
  number = 1
  while path.with_name(f"{path.name}.{number}").exists():
    number += 1
  return path.with_name(f"{path.name}.{number}")
