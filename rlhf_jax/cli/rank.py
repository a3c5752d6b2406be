"""Ranks players by comparisons, or the policies of runs, with Bradley-Terry abilities.

--comparisons is a file, CSV or JSON Lines, with the fields a and b, two names, and outcome: a, b or
tie, also 1, 0 or 0.5. Every row counts as independent of the others.

--workdir is a run that was evaluated: its policies, and those of its variants, meet on every held-out
prompt, and the answer with the higher score wins. Given several times, policies of all these runs
meet; their prompts have to be the same, and for --by=reward, the reward recorded with an answer,
so has the reward model. The intervals allow for the comparisons on one prompt being related.

  rlhf-jax rank --comparisons=ratings.csv --baseline=sft
  rlhf-jax rank --workdir=runs/quickstart --by=reward
  rlhf-jax rank --workdir=runs/a --workdir=runs/b --out=ranking.json

Abilities are log-strengths with mean 0: a beats b with probability 1 / (1 + exp(b - a)), if neither
ties (Davidson's model, whose nu is shown). 400 points of Elo are odds of 10 to 1.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from rlhf_jax.cli.parser import UsageError

OUTCOMES = {"a": 1.0, "1": 1.0, "b": 0.0, "0": 0.0, "tie": 0.5, "0.5": 0.5}
LISTED = 5  # bad rows shown in an error


def add_options(parser) -> None:
  parser.add_argument("--comparisons", metavar="FILE", help="a .csv or .jsonl file of comparisons")
  parser.add_argument(
    "--workdir", action="append", metavar="DIR", help="folder of a run; may be given again"
  )
  parser.add_argument(
    "--by", choices=("vader", "reward"), help="what scores answers of a run; vader unless said"
  )
  parser.add_argument("--baseline", metavar="NAME", help="show differences from this player")
  parser.add_argument(
    "--prior",
    type=float,
    default=0.0,
    metavar="N",
    help="comparisons to add to every pair, half won by each; 0 unless said",
  )
  parser.add_argument("--out", metavar="FILE.json", help="also write the table there")


def run(args) -> None:
  from rlhf_jax.evaluation import ranking
  from rlhf_jax.training import disk

  if bool(args.comparisons) == bool(args.workdir):
    raise UsageError(
      "give one of --comparisons=FILE and --workdir=DIR.", "`rlhf-jax rank --help` has examples."
    )
  if args.comparisons and args.by:
    raise UsageError(
      "--by goes with --workdir; a file says itself who won.", "`rlhf-jax rank --help` says more."
    )
  if args.out and not Path(args.out).parent.is_dir():
    raise FileNotFoundError(
      f"{Path(args.out).parent} is not a folder; make it, or give another --out."
    )
  if args.comparisons:
    names, wins, ties = ranking.tabulate(_comparisons(Path(args.comparisons)))
    source = {"comparisons": args.comparisons}
  else:
    by = args.by or "vader"
    workdirs = {Path(workdir).resolve(): Path(workdir) for workdir in args.workdir}  # each once
    names, scores = _scores(list(workdirs.values()), by)
    wins, ties = ranking.compare_scores(scores)
    source = {"workdirs": args.workdir, "by": by, "prompts": len(scores)}
  found = ranking.bradley_terry(wins, ties, names=names, prior=args.prior)
  rows = ranking.standings(found, wins, ties, args.baseline)
  count = sum(row.wins + row.ties / 2 for row in rows)
  of_prompts = f" on {len(scores)} prompts by {by}" if args.workdir else ""
  print(f"{count:.0f} comparisons of {len(rows)} players{of_prompts}; 95 % intervals")
  print(table(rows, args.baseline))
  if found.nu:
    print(f"nu {found.nu:.3f}: two of equal ability tie in {found.nu / (2 + found.nu):.1%}")
  if args.out:
    written = {**source, "prior": args.prior, "nu": found.nu, "baseline": args.baseline}
    written["players"] = [as_json(row) for row in rows]
    disk.replace(Path(args.out), json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    print(f"written: {args.out}")


def table(rows, baseline: str | None) -> str:
  """One line a player, best first, in columns."""
  headings = ["rank", "name", "ability", "Elo", "wins", "ties", "losses"]
  lines = [headings + ([f"less {baseline}"] if baseline else [])]
  for row in rows:
    line = [str(row.rank), row.name, _interval(row.ability), f"{row.elo:+.0f}"]
    line += [f"{count:.0f}" for count in (row.wins, row.ties, row.losses)]
    lines.append(line + ([_interval(row.difference)] if baseline else []))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if heading == "name" else cell.rjust(width)
      for heading, cell, width in zip(headings + ["less"], line, widths, strict=False)
    ).rstrip()
    for line in lines
  )


def _interval(estimate) -> str:
  return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def as_json(row) -> dict:
  """A standing as JSON has it, intervals as `_low` and `_high`."""
  plain = {"rank": row.rank, "name": row.name}
  for name, estimate in (("ability", row.ability), ("difference", row.difference)):
    if estimate is not None:
      plain |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
  return plain | {"elo": row.elo, "wins": row.wins, "ties": row.ties, "losses": row.losses}


def _comparisons(path: Path) -> list[tuple[str, str, float]]:
  """The (a, b, outcome) of every row. Raises ValueError that names bad ones by line."""
  if path.suffix not in (".csv", ".jsonl"):
    raise ValueError(f"{path} should be a .csv or a .jsonl file, and be called so.")
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file; give one with the fields a, b and outcome.")
  read = _csv_rows if path.suffix == ".csv" else _json_rows
  found, problems = [], []
  try:
    for number, row in read(path):
      comparison, problem = _comparison(row)
      if problem:
        problems.append(f"line {number}: {problem}")
      else:
        found.append(comparison)
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as such.") from error
  if problems:
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    raise ValueError(
      f"{path} has {len(problems)} bad rows; correct or remove them. "
      + "; ".join(problems[:LISTED])
      + more
    )
  if not found:
    raise ValueError(f"{path} has no comparisons; each row should have the fields a, b, outcome.")
  return found


def _csv_rows(path: Path):
  """Line numbers and rows, without the cells that a short row lacks."""
  with path.open(encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    for row in reader:
      yield reader.line_num, {name: text for name, text in row.items() if text is not None}


def _json_rows(path: Path):
  # Not splitlines(): a string may hold U+2028, which it takes for the end of a line.
  for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
    if line.strip():
      try:
        yield number, json.loads(line)
      except json.JSONDecodeError as error:
        yield number, f"not JSON ({error.msg} at column {error.colno})"


def _comparison(row) -> tuple[tuple[str, str, float], str | None]:
  """(a, b, outcome) of a row, and what is wrong with it or None."""
  nothing = ("", "", 0.0)
  if not isinstance(row, dict):
    return nothing, row if isinstance(row, str) else f"a {type(row).__name__}, not an object"
  if None in row:  # csv's name for what stands beyond the headings
    return nothing, f"more cells than the {len(row) - 1} headings"
  for field in ("a", "b", "outcome"):
    if field not in row:
      return nothing, f"no field {field!r} (it has {', '.join(map(str, row)) or 'none'})"
  a, b, outcome = row["a"], row["b"], row["outcome"]
  for field, name in (("a", a), ("b", b)):
    if not isinstance(name, str) or not name.strip():
      return nothing, f"{field} is {name!r}, not a name"
  text = f"{outcome:g}" if type(outcome) in (int, float) else str(outcome).strip().lower()
  text = text.removesuffix(".0")
  if text not in OUTCOMES:
    return nothing, f"outcome is {outcome!r}, none of a, b and tie (or 1, 0 and 0.5)"
  a, b = a.strip(), b.strip()
  if a == b:
    return nothing, f"{a} is compared with itself"
  return (a, b, OUTCOMES[text]), None


def _scores(workdirs: list[Path], by: str):
  """Names of n policies, and scores float64[N, n] of their answers to N prompts."""
  import numpy as np

  from rlhf_jax.evaluation import judges
  from rlhf_jax.training import written

  policies: dict[str, list[str]] = {}  # name: its response to every prompt
  columns = []
  first = None
  for name, path in written.files(workdirs):
    rows = written.answers(path, ("prompt", "response", *(("reward",) if by == "reward" else ())))
    first = first or (path, [row["prompt"] for row in rows])
    written.assert_same_prompts(*first, path, [row["prompt"] for row in rows])
    answers = [row["response"] for row in rows]
    if same := next((other for other, texts in policies.items() if texts == answers), None):
      print(f"note: {name} wrote exactly what {same} did, and is left out.", file=sys.stderr)
      continue
    policies[name] = answers
    columns.append(judges.vader(answers) if by == "vader" else [row["reward"] for row in rows])
  if len(policies) < 2:
    where = ", ".join(map(str, workdirs))
    raise ValueError(f"{where} has answers of {len(policies)} policies; a ranking needs two.")
  return tuple(policies), np.asarray(columns, np.float64).T
