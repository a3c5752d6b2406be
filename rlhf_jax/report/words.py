"""Names and quantities as a reader wants to see them."""

from __future__ import annotations

import math

NONE = "–"
TITLES = {
  "sft": "SFT",
  "ppo": "PPO",
  "ppo_lagrangian": "PPO-Lagrangian",
  "dpo": "DPO",
  "a2c": "A2C",
  "grpo": "GRPO",
  "ilql": "ILQL",
  "raft": "RAFT",
  "reinforce": "REINFORCE",
  "remax": "ReMax",
  "rloo": "RLOO",
  "xpo": "XPO",
  "baseline": "TF-IDF baseline",
  "judge": "TF-IDF judge",
  "vader": "VADER",
}


def title(name: str) -> str:
  """`baseline` as TF-IDF baseline, `ppo_evaluation` as PPO evaluation."""
  if name in TITLES:
    return TITLES[name]
  plain = " ".join(TITLES.get(word, word) for word in name.split("_"))
  return plain[:1].upper() + plain[1:]


def number(value: float | None) -> str:
  """Three significant digits, whole numbers in full, a dash where there is none."""
  if value is None or not math.isfinite(value):
    return NONE
  value += 0.0  # no minus before a zero
  if float(value).is_integer() and abs(value) < 1e9:
    return f"{value:,.0f}".replace("-", "−")
  digits = max(2 - math.floor(math.log10(abs(value))), 0)
  text = f"{value:,.{digits}f}" if 1e-4 <= abs(value) < 1e7 else f"{value:.2e}"
  return text.replace("-", "−")


def percent(value: float | None) -> str:
  return NONE if value is None else f"{100 * value:.1f}\u00a0%"


def percent_interval(value: float, low: float | None, high: float | None) -> str:
  """`74.2 % (69.7–78.5)`."""
  known = low is not None and high is not None
  return percent(value) + (f" ({100 * low:.1f}–{100 * high:.1f})" if known else "")


def interval(value: float | None, low: float | None, high: float | None) -> str:
  """`0.931 (0.914–0.948)`, or the value alone."""
  if value is None:
    return NONE
  if low is None or high is None:
    return f"{value:.3f}"
  if low < 0:  # a difference, where a dash between numbers would read as a minus
    return f"{value:.3f} ({low:.3f} to {high:.3f})".replace("-", "−")
  return f"{value:.3f} ({low:.3f}–{high:.3f})"


def duration(seconds: float | None) -> str:
  """`1 h 02 min`, `12 min 05 s`, `4.2 s`."""
  if seconds is None:
    return NONE
  if round(seconds, 1) < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest:02d} s"
  return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(megabytes: float | None) -> str:
  if megabytes is None:
    return NONE
  return f"{megabytes / 1000:.2f}\u00a0GB" if megabytes >= 1000 else f"{megabytes:.0f}\u00a0MB"
