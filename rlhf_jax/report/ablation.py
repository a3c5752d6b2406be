"""Variants over several seeds: `ablation.md` and `ablation.png` beside their `ablation.json`.

A variant and the base are compared seed by seed, since a seed's two runs share prompts and keys: the difference of the two has
less chance in it than either. Intervals are Student's t over seeds, 95 %, one by one: of twenty variants that change nothing,
one is expected to be marked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report.picture import COLORS, INK, MUTED, heading, style
from rlhf_jax.report.words import NONE, number, percent

LEVEL = 0.95
MEASURES = {  # of the answers to held-out prompts
  "reward": "Reward",
  "kl": "KL from SFT, nats",
  "objective": "Reward − β KL",
}


class Interval(NamedTuple):
  mean: float
  low: float
  high: float

  @property
  def excludes_zero(self) -> bool:
    return self.low > 0 or self.high < 0


def interval_over(values: Sequence[float]) -> Interval | None:
  """Mean and t interval of a number a seed, without seeds that diverged; None of fewer than two."""
  known = np.asarray(values, float)
  known = known[np.isfinite(known)]
  if len(known) < 2:
    return None
  half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
  return Interval(*(float(x) for x in (known.mean(), known.mean() - half, known.mean() + half)))


def of_seeds(found: Mapping[str, Any], name: str, measure: str) -> np.ndarray:
  """A measure of variant `name`, a number a seed. The objective has the base's β, whatever the variant was trained with."""
  row = {column: np.asarray(values, float) for column, values in found["variants"][name].items()}
  return row["reward"] - found["kl_coef"] * row["kl"] if measure == "objective" else row[measure]


def difference(found: Mapping[str, Any], name: str, measure: str) -> Interval | None:
  """Variant `name` less the base, seed by seed; None of the base itself, and where it is not there yet."""
  base = found["base"]
  if name == base or base not in found["variants"]:
    return None
  return interval_over(of_seeds(found, name, measure) - of_seeds(found, base, measure))


def write_ablation(workdir: str | os.PathLike, found: Mapping[str, Any]) -> tuple[Path, Path]:
  """The table and the picture of what `rlhf-jax ablate` has measured in `workdir`."""
  text, picture = Path(workdir) / "ablation.md", Path(workdir) / "ablation.png"
  text.write_text(table(found) + "\n", encoding="utf-8")
  draw(found, picture)
  return text, picture


def table(found: Mapping[str, Any]) -> str:
  """Markdown, the base first and then by reward; differences whose interval excludes 0 in bold."""
  heads = [head for title in MEASURES.values() for head in (title, "less base")]
  lines = ["| variant | " + " | ".join(heads) + " | tokens | cut |"]
  lines.append("|---" * (len(heads) + 3) + "|")
  for name in _names(found):
    cells = [_label(found, name)]
    for measure in MEASURES:
      change = difference(found, name, measure)
      marked = change is not None and change.excludes_zero
      cells.append(_text(interval_over(of_seeds(found, name, measure))))
      cells.append(f"**{_text(change)}**" if marked else _text(change))
    cells.append(number(float(np.nanmean(of_seeds(found, name, "length")))))
    cells.append(percent(float(np.nanmean(of_seeds(found, name, "truncated")))))
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Differences from the base with their intervals; those that exclude 0 in the second colour."""
  names = [name for name in _names(found) if name != found["base"]]
  size = (12, max(2.4, 0.22 * len(names) + 1.2))
  figure = Figure(figsize=size, dpi=140, facecolor="white", layout="constrained")
  panels = figure.subplots(1, len(MEASURES), sharey=True)
  for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
    style(axes)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for place, name in enumerate(names):
      change = difference(found, name, measure)
      if change is not None:
        color = COLORS[1] if change.excludes_zero else COLORS[0]
        axes.plot([change.low, change.high], [place, place], color=color, linewidth=1.6)
        axes.plot(change.mean, place, "o", color=color, markersize=4.5)
    heading(axes, title)
    if found["base"] in found["variants"]:
      base = interval_over(of_seeds(found, found["base"], measure))
      axes.set_xlabel(f"less {found['base']}, which has {_text(base)}")
  panels[0].set_yticks(range(len(names)), names, fontsize=8, color=INK)
  panels[0].set_ylim(len(names) - 0.3, -0.7)
  FigureCanvasAgg(figure).print_png(str(path))


def _names(found: Mapping[str, Any]) -> list[str]:
  """The base, then the best reward first."""
  rewards = {name: interval_over(row["reward"]) for name, row in found["variants"].items()}
  worse = lambda name: -rewards[name].mean if rewards[name] else np.inf
  return sorted(rewards, key=lambda name: (name != found["base"], worse(name), name))


def _label(found: Mapping[str, Any], name: str) -> str:
  finite = np.isfinite(of_seeds(found, name, "reward"))
  return name if finite.all() else f"{name} ({finite.sum()} of {len(finite)} seeds)"


def _text(found: Interval | None) -> str:
  """`1.45 (1.31 to 1.59)`."""
  if found is None:
    return NONE
  mean, low, high = (f"{x + 0.0:.2f}" for x in found)
  return f"{mean} ({low} to {high})".replace("-", "−")
