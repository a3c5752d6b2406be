"""Writes report.html of a run: curves, results and samples, of whatever is there so far.

The page is one file in the workdir that loads nothing from elsewhere. A finished run has it already.

  rlhf-jax report --workdir=runs/tiny
  rlhf-jax report --workdir=runs/tiny --picture=tiny.png
"""

from __future__ import annotations


def add_options(parser) -> None:
  parser.add_argument("--workdir", required=True, help="folder of a run, finished or not")
  parser.add_argument(
    "--picture", metavar="FILE.png", help="also draw the main curves, for a README"
  )


def run(args) -> None:
  from rlhf_jax.report import write_picture, write_report

  print(f"report: {write_report(args.workdir)}")
  if args.picture:
    print(f"picture: {write_picture(args.workdir, args.picture)}")
