"""Variants of one experiment side by side: `comparison.md` and `comparison.png` beside their `comparison.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report.picture import COLORS, INK, MUTED, heading, style
from rlhf_jax.report.words import number, percent, percent_interval

Results = Mapping[str, Mapping[str, float]]  # variant -> what was measured

HEAD = (
  "variant",
  "reward",
  "KL from SFT, nats",
  "wins against SFT, judge",
  "wins, VADER",
  "tokens",
  "distinct-2",
)
NUMBERS = ("reward", "kl_exact", "length", "distinct_2")


def write_comparison(
  workdir: str | os.PathLike, found: Results | Sequence[Results]
) -> tuple[Path, Path]:
  """The table and the picture of `found`, or of several seeds' results."""
  runs = [found] if isinstance(found, Mapping) else list(found)
  text, picture = Path(workdir) / "comparison.md", Path(workdir) / "comparison.png"
  text.write_text(table(runs) + "\n", encoding="utf-8")
  draw(runs, picture)
  return text, picture


def read_comparison(workdir: str | os.PathLike) -> Results:
  """What `rlhf-jax compare` has measured in `workdir` so far."""
  path = Path(workdir) / "comparison.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist; run rlhf-jax compare with this --workdir first."
    )
  return json.loads(path.read_text(encoding="utf-8"))


def table(runs: Sequence[Results]) -> str:
  """Markdown, best win rate first: with one run each rate's 95 % interval, with several the mean and the range."""
  names = sorted(set.intersection(*(set(run) for run in runs)), key=lambda n: _order(runs, n))
  lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
  for name in names:
    means = {column: number(_mean(runs, name, column)) for column in NUMBERS}
    rates = [_rate(runs, name, column) for column in ("win_rate", "vader_win_rate")]
    cells = (name, means["reward"], means["kl_exact"], *rates, *list(means.values())[2:])
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(runs: Sequence[Results], path: Path) -> None:
  """Win rates with their intervals, numbered from the best; and, by these numbers, the KL that they cost."""
  names = [n for n in runs[0] if _mean(runs, n, "win_rate") is not None]
  names.sort(key=lambda n: _order(runs, n))
  height = max(3.2, 0.24 * len(names) + 1.2)
  figure = Figure(figsize=(12, height), dpi=140, facecolor="white", layout="constrained")
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
  for axes in (left, right):
    style(axes)
  for place, name in enumerate(names, start=1):
    rate, low, high = _bounds(runs, name, "win_rate")
    left.plot([100 * low, 100 * high], [place, place], color=COLORS[0], linewidth=1.6)
    left.plot(100 * rate, place, "o", color=COLORS[0], markersize=5)
    kl = _mean(runs, name, "kl_exact")
    if kl is not None:
      right.plot(kl, 100 * rate, "o", color=COLORS[0], markersize=4)
      above = dict(xytext=(3, 3), textcoords="offset points", fontsize=8, color=INK)
      right.annotate(str(place), (kl, 100 * rate), **above)
  even = dict(color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
  left.axvline(50, **even)
  right.axhline(50, **even)
  left.set_yticks(
    range(1, len(names) + 1), [f"{n}  {i}" for i, n in enumerate(names, start=1)], fontsize=8
  )
  left.set_ylim(len(names) + 0.7, 0.3)
  right.set_xscale("log")
  right.xaxis.set_major_formatter("{x:g}")
  right.tick_params(which="minor", length=0)
  heading(left, "Wins against SFT by the TF-IDF judge, % of prompts")
  heading(right, "… against the KL from SFT")
  right.set_xlabel("exact KL of the policy's own answers, nats a response")
  FigureCanvasAgg(figure).print_png(str(path))


def _order(runs: Sequence[Results], name: str):
  rate = _mean(runs, name, "win_rate")
  return (rate is not None, -(rate or 0.0), name)  # SFT, which has none, first


def _mean(runs: Sequence[Results], name: str, column: str) -> float | None:
  values = [run[name][column] for run in runs if column in run[name]]
  return sum(values) / len(values) if values else None


def _bounds(runs: Sequence[Results], name: str, column: str) -> tuple[float, float, float]:
  if len(runs) == 1:
    row = runs[0][name]
    return row[column], row[f"{column}_low"], row[f"{column}_high"]
  values = [run[name][column] for run in runs]
  return sum(values) / len(values), min(values), max(values)


def _rate(runs: Sequence[Results], name: str, column: str) -> str:
  if _mean(runs, name, column) is None:
    return percent(None)
  return percent_interval(*_bounds(runs, name, column))
