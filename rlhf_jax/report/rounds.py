"""What each round of a loop has reached: `rounds.md` and `rounds.png` beside its `rounds.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_jax.report.picture import COLORS, MUTED, heading, style
from rlhf_jax.report.words import number

MEASURES = {  # column of a policy, or of the reward model -> what it is called
  "win_rate": "wins against SFT (judge)",
  "vader_win_rate": "wins against SFT (VADER)",
  "score": "score",
  "kl_exact": "KL from SFT, nats",
  "length": "tokens",
}
REWARD_MODEL = {
  "reward_model/auc": "reward model's AUC",
  "reward_model/accuracy": "reward model's accuracy",
}


def write_rounds(
  workdir: str | os.PathLike, rounds: Sequence[Mapping], name: str
) -> tuple[Path, Path]:
  text, picture = Path(workdir) / "rounds.md", Path(workdir) / "rounds.png"
  text.write_text(table(rounds, name) + "\n", encoding="utf-8")
  draw(rounds, name, picture)
  return text, picture


def columns(rounds: Sequence[Mapping], name: str) -> dict[str, str]:
  """Of what was measured in every round: its name among the results, and what it is called."""
  of_policy = {f"{name}/{measure}": called for measure, called in MEASURES.items()}
  picked = {
    key: f"wins of {key.split('/')[0].replace('_', ' ')} (VADER)"
    for key in (rounds[0] if rounds else ())
    if key.startswith("best_of_") and key.endswith("/vader_win_rate")
  }
  wanted = {**of_policy, **picked, **REWARD_MODEL}
  return {key: called for key, called in wanted.items() if all(key in r for r in rounds)}


def table(rounds: Sequence[Mapping], name: str) -> str:
  """Markdown, a round a line, with 95 % intervals where they were measured."""
  found = columns(rounds, name)
  lines = [
    "| round | labels | " + " | ".join(found.values()) + " |",
    "|---" * (2 + len(found)) + "|",
  ]
  for row in rounds:
    cells = [str(row["round"]), str(row["labels"]), *(_cell(row, key) for key in found)]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def draw(rounds: Sequence[Mapping], name: str, path: Path) -> None:
  """Each measure over the number of labels, with its interval where there is one."""
  found = columns(rounds, name)
  figure = Figure(
    figsize=(max(4.0, 3.1 * len(found)), 3.0), dpi=140, facecolor="white", layout="constrained"
  )
  panels = figure.subplots(1, max(len(found), 1), squeeze=False)[0]
  for axes, (key, called) in zip(panels, found.items(), strict=False):
    style(axes)
    x = [row["labels"] for row in rounds]
    for row in rounds:
      if f"{key}_low" in row:
        ends = [row[f"{key}_low"], row[f"{key}_high"]]
        axes.plot([row["labels"]] * 2, ends, color=MUTED, linewidth=1.4)
    axes.plot(x, [row[key] for row in rounds], "o-", color=COLORS[0], markersize=4.5)
    axes.set_xticks(x)
    axes.set_xlabel("labels")
    heading(axes, called)
  FigureCanvasAgg(figure).print_png(str(path))


def _cell(row: Mapping, key: str) -> str:
  if f"{key}_low" not in row:
    return number(row[key])
  return f"{number(row[key])} [{number(row[f'{key}_low'])}, {number(row[f'{key}_high'])}]"
