"""Variants over several seeds: `ablation.md` and `ablation.png` beside their `ablation.json`.

Every seed is a pair of a variant's run and the base's, and the difference of the two has less chance in it than either. Intervals are Student's t over
seeds, 95 %.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from rlhf_jax.report.picture import COLORS, INK, MUTED, heading, style
from rlhf_jax.report.words import NONE, number, percent

LEVEL = 0.95
HEAD = (
  "variant",
  "reward",
  "less base",
  "KL, nats",
  "less base",
  "tokens",
  "cut",
)
SHOWN = {"reward": "Reward", "kl": "KL from SFT, nats a response"}


class Interval(NamedTuple):
  mean: float
  low: float
  high: float

  @property
  def excludes_zero(self) -> bool:
    return self.low > 0 or self.high < 0


def interval_over(values: Sequence[float]) -> Interval | None:
  """Mean and t interval of a number a seed; those of seeds that diverged are left out, and None is of fewer than two."""
  known = np.asarray(values, float)
  known = known[np.isfinite(known)]
  if len(known) < 2:
    return None
  half = stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
  return Interval(known.mean(), known.mean() - half, known.mean() + half)


def difference(found: Mapping[str, Any], name: str, column: str) -> Interval | None:
  """Variant `name` less the base, seed by seed; None of the base itself."""
  base = found["variants"].get(found["base"])
  if base is None or name == found["base"]:
    return None
  return interval_over(np.subtract(found["variants"][name][column], base[column]))


def write_ablation(workdir: str | os.PathLike, found: Mapping[str, Any]) -> tuple[Path, Path]:
  text, picture = Path(workdir) / "ablation.md", Path(workdir) / "ablation.png"
  text.write_text(table(found) + "\n", encoding="utf-8")
  draw(found, picture)
  return text, picture


def table(found: Mapping[str, Any]) -> str:
  """Markdown, in the order of the variants, the base first; differences whose interval excludes 0 in bold."""
  lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
  for name in _names(found):
    row = found["variants"][name]
    cells = [_label(found, name)]
    for column in SHOWN:
      change = difference(found, name, column)
      text = _text(change)
      cells += [
        _text(interval_over(row[column])),
        f"**{text}**" if change and change.excludes_zero else text,
      ]
    cells += [
      number(float(np.nanmean(row["length"]))),
      percent(float(np.nanmean(row["truncated"]))),
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Differences from the base with their intervals, reward and KL; those that exclude 0 in the second colour."""
  names = [n for n in _names(found) if n != found["base"]]
  figure = Figure(
    figsize=(11, max(2.4, 0.22 * len(names) + 1.2)),
    dpi=140,
    facecolor="white",
    layout="constrained",
  )
  panels = figure.subplots(1, len(SHOWN), sharey=True)
  for axes, (column, title) in zip(panels, SHOWN.items(), strict=True):
    style(axes)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for place, name in enumerate(names):
      change = difference(found, name, column)
      if change is not None:
        color = COLORS[1] if change.excludes_zero else COLORS[0]
        axes.plot([change.low, change.high], [place, place], color=color, linewidth=1.6)
        axes.plot(change.mean, place, "o", color=color, markersize=4.5)
    base = found["variants"].get(found["base"])
    of_base = interval_over(base[column]) if base else None
    heading(axes, title)
    axes.set_xlabel(f"less base, which has {number(of_base.mean)}" if of_base else "")
  panels[0].set_yticks(range(len(names)), names, fontsize=8, color=INK)
  panels[0].set_ylim(len(names) - 0.3, -0.7)
  FigureCanvasAgg(figure).print_png(str(path))


def _names(found: Mapping[str, Any]) -> list[str]:
  return sorted(found["variants"], key=lambda name: name != found["base"])


def _label(found: Mapping[str, Any], name: str) -> str:
  values = np.asarray(found["variants"][name]["kl"], float)
  finite = int(np.isfinite(values).sum())
  return name if finite == len(values) else f"{name} ({finite} of {len(values)} seeds)"


def _text(found: Interval | None) -> str:
  """`1.45 (1.31 to 1.59)`."""
  if found is None:
    return NONE
  return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})".replace("-", "−")
