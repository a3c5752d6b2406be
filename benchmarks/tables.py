"""The tables and plots of docs/performance.md, from files of results.

  python -m benchmarks.tables [--results=benchmarks/results/cpu.jsonl]

Each table replaces what stands between `<!-- benchmark NAME -->` and `<!-- end -->` on the page; plots lie beside it. Rounds of
a case are pooled: its seconds are the median of all its steps.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import charts
from benchmarks.timings import BARE, OURS, PEERS, TARGETS, TASKS, Timing, Timings, read

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results"
DASH = "–"
NOTHING = "Not measured yet."


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--results", type=Path, default=RESULTS / "cpu.jsonl")
  parser.add_argument("--machine", type=Path, default=RESULTS / "machine.jsonl")
  parser.add_argument("--page", type=Path, default=PAGE)
  args = parser.parse_args(argv)
  timings = Timings(read(args.results))
  machines = {row["machine"] for timing in timings.all for row in timing.rows}
  products = [row for row in read(args.machine) if row["machine"] in machines]
  drawn = dict(charts.draw(timings, products, args.page))
  found = tables(timings, products) | {
    kind: f"![{plot.shows}]({drawn[kind].name})" if kind in drawn else NOTHING
    for kind, plot in charts.PLOTS.items()
  }
  args.page.write_text(filled(args.page.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(page: str, found: dict[str, str]) -> str:
  """`page` with every table in its place. Raises ValueError for a place that no table is made for."""

  def put(match: re.Match) -> str:
    if match[1] not in found:
      raise ValueError(f"the page has a place for {match[1]!r}; there are {', '.join(found)}.")
    return f"<!-- benchmark {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

  return re.sub(r"<!-- benchmark (\w+) -->\n.*?<!-- end -->", put, page, flags=re.DOTALL)


def tables(timings: Timings, products: list[dict]) -> dict[str, str]:
  """Markdown by name."""
  return {
    "about": about(timings),
    "fixed": against(timings, "fixed"),
    "ragged": against(timings, "ragged"),
    "ours": ours(timings),
    "memory": memory(timings),
    "products": kinds_of_product(products),
    "shortfalls": shortfalls(timings),
  }


def about(timings: Timings) -> str:
  rows = [row for timing in timings.all for row in timing.rows]
  if not rows:
    return NOTHING
  names = lambda field: "; ".join(sorted({str(row[field]) for row in rows}))
  busy = max(row["other_cores"] for row in rows)
  return "\n".join(
    (
      f"- Machine: {names('machine')}.",
      f"- Versions: {names('version')}.",
      f"- Measured: {names('date')}. Other processes kept at most {busy:.2f} cores busy during a case.",
    )
  )


def against(timings: Timings, set_: str) -> str:
  """Ours beside the others, and the ratio to the better of TRL and Tunix."""
  head = ("", "float32", "bfloat16", "TRL", "Tunix", "bare JAX", "ratio", "must hold", "aim")
  body = []
  factor = 2 if set_ == "ragged" else 1
  for model, task in _places(timings):
    place = (task, model, set_)
    if not timings.of(OURS, *place):
      continue
    must, aim = TARGETS[task]
    fastest = [timings.best((library,), *place) for library in (*PEERS, BARE)]
    body.append(
      (
        f"{model} {TASKS[task]}",
        *(_speed(timings.in_dtype(dtype, OURS, *place)) for dtype in ("float32", "bfloat16")),
        *(_speed(timing, dtype=True) for timing in fastest),
        _times(timings.ratio(*place), bold=True),
        DASH if factor > 1 else _times(must),
        _times(factor * aim),
      )
    )
  return markdown(head, body)


def ours(timings: Timings) -> str:
  """Everything measured of this library."""
  head = (
    *("", "dtype", "seconds", "tokens/s", "peak MB", "compile s", "programs", "again"),
    *("GFLOP/s", "of the peak", "of the bandwidth"),
  )
  body = []
  for timing in sorted(timings.all, key=_order):
    scaled = any(option.startswith("--scale") for option in timing.options)
    if timing.library != OURS or scaled:
      continue
    said = " ".join(option.removeprefix("--").replace("-", " ") for option in timing.options)
    name = f"{timing.model} {TASKS[timing.task]}, {timing.set}{', ' if said else ''}{said}"
    body.append(
      (
        name,
        timing.dtype,
        _seconds(timing.seconds),
        f"{timing.rate:,.0f}",
        f"{timing.megabytes:,.0f}",
        _number(timing.mean("compile_s"), ".1f"),
        _number(timing.mean("compilations"), ".0f"),
        _number(timing.mean("recompilations"), ".0f"),
        _number(timing.mean("flop_per_s"), ",.0f", 1e-9),
        _number(timing.mean("share_of_peak"), ".0f", 100, " %"),
        _number(timing.mean("share_of_bandwidth"), ".0f", 100, " %"),
      )
    )
  return markdown(head, body)


def memory(timings: Timings) -> str:
  """Peak megabytes, each library at its fastest dtype, and this one with its low-memory setting."""
  head = ("", "ours", "low memory", "TRL", "Tunix", "bare JAX", "ours / bare", "low / TRL")
  body = []
  for model, task in _places(timings):
    place = (task, model, "fixed")
    mine = timings.best((OURS,), *place)
    if mine is None:
      continue
    low = timings.best((OURS,), *place, "--low-memory")
    trl, tunix, bare = (timings.best((library,), *place) for library in (*PEERS, BARE))
    same = bare and timings.in_dtype(bare.dtype, OURS, *place)
    body.append(
      (
        f"{model} {TASKS[task]}",
        *(f"{t.megabytes:,.0f}" if t else DASH for t in (mine, low, trl, tunix, bare)),
        _number(same and same.megabytes / bare.megabytes, ".2f"),
        _number(low and trl and low.megabytes / trl.megabytes, ".2f"),
      )
    )
  return markdown(head, body)


def kinds_of_product(products: list[dict]) -> str:
  """GFLOP/s by kind of product, a column a model and dtype; and GB/s."""
  measured = [row for row in products if "flop_per_s" in row and "model" in row]
  columns = list(dict.fromkeys((row["model"], row["dtype"]) for row in measured))
  found = {(row["kind"], row["model"], row["dtype"]): row["flop_per_s"] for row in measured}
  body = [
    (kind, *(_number(found.get((kind, *column)), ",.0f", 1e-9) for column in columns))
    for kind in dict.fromkeys(row["kind"] for row in measured)
  ]
  table = markdown(("", *(" ".join(column) for column in columns)), body)
  squares = {row["dtype"]: row["flop_per_s"] for row in products if row["kind"] == "square"}
  moved = {row["kind"]: row["bytes_per_s"] for row in products if "bytes_per_s" in row}
  notes = [
    f"a square product in {name} {value / 1e9:,.0f} GFLOP/s" for name, value in squares.items()
  ]
  notes += [f"{name} {value / 1e9:.1f} GB/s" for name, value in moved.items()]
  return f"{table}\n\nBeside them: {', '.join(notes)}." if notes else table


def shortfalls(timings: Timings) -> str:
  """Where a ratio or a memory is not what it should be."""
  if not timings.all:
    return NOTHING
  found = []
  for model, task in _places(timings):
    must, aim = TARGETS[task]
    for set_, needed in (("fixed", must), ("ragged", 1.0)):
      ratio = timings.ratio(task, model, set_)
      name = f"{model} {TASKS[task]}, {set_}"
      if ratio is not None and ratio < 1:
        found.append(f"{name}: slower than TRL or Tunix, {ratio:.2f}x.")
      elif ratio is not None and ratio < needed:
        found.append(f"{name}: {ratio:.2f}x, below the {needed}x that must hold.")
      elif ratio is not None and ratio < (aim if set_ == "fixed" else 2 * aim):
        wanted = aim if set_ == "fixed" else 2 * aim
        found.append(f"{name}: {ratio:.2f}x, short of the aim of {wanted}x.")
    for dtype in ("float32", "bfloat16"):
      place = (task, model, "fixed")
      mine, bare = (timings.in_dtype(dtype, library, *place) for library in (OURS, BARE))
      name = f"{model} {TASKS[task]}, {dtype}"
      if mine and bare and mine.rate < bare.rate:
        found.append(f"{name}: {mine.rate / bare.rate:.2f} times as fast as the bare loop.")
      if mine and bare and mine.megabytes > bare.megabytes:
        ratio = mine.megabytes / bare.megabytes
        found.append(f"{name}: {ratio:.2f} times the memory of the bare loop.")
    low = timings.best((OURS,), task, model, "fixed", "--low-memory")
    trl = timings.best(("trl",), task, model, "fixed")
    if model == "M" and low and trl and low.megabytes > 0.6 * trl.megabytes:
      share = low.megabytes / trl.megabytes
      found.append(f"M {TASKS[task]}: with little memory {share:.0%} of TRL's, above 60 %.")
  found += [f"`{row['key']}` failed: {row['error']}" for row in timings.failures]
  return "\n".join(f"- {item}" for item in found) or "None."


def markdown(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
  """A table, numbers to the right; a column that holds nothing is left out."""
  if not body:
    return NOTHING
  kept = [i for i in range(len(head)) if i == 0 or any(row[i] != DASH for row in body)]
  line = lambda row: f"| {' | '.join(row[i] for i in kept)} |"
  rule = f"|{'|'.join('---' if i == 0 else '---:' for i in kept)}|"
  return "\n".join((line(head), rule, *map(line, body)))


def _places(timings: Timings) -> list[tuple[str, str]]:
  return [(model, task) for model in timings.models for task in TASKS]


def _order(timing: Timing) -> tuple:
  models = ("XS", "S", "M", "1B")
  return (
    models.index(timing.model),
    ("fixed", "ragged").index(timing.set),
    list(TASKS).index(timing.task),
    timing.options,
    timing.dtype != "float32",
  )


def _speed(timing: Timing | None, dtype: bool = False) -> str:
  """Seconds of a step of the fixed set, tokens per second of the ragged one."""
  if timing is None:
    return DASH
  said = _seconds(timing.seconds) + " s" if timing.set == "fixed" else f"{timing.rate:,.0f} t/s"
  return f"{said} ({timing.dtype})" if dtype else said


def _seconds(value: float) -> str:
  return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(ratio: float | None, bold: bool = False) -> str:
  if ratio is None:
    return DASH
  return f"**{ratio:.2f}x**" if bold else f"{ratio:g}x"


def _number(value: float | None, form: str, factor: float = 1.0, unit: str = "") -> str:
  return DASH if value is None else f"{value * factor:{form}}{unit}"


if __name__ == "__main__":
  main()
