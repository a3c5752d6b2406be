"""Checkouts of this library timed against one another, a step of each in turn: differences of 1 % show on a noisy machine.

  git worktree add ../before HEAD~1
  python -m benchmarks.turns ../before . -- sft S --dtype=bfloat16

Each checkout runs the case (the options after `--` are those of `benchmarks.case`) in a process of its own, which waits before
every step until it is called, so that a slow minute is slow for all. Processes of one program differ too, by where their memory
lies, so `--launches` starts all anew. A ratio is to the first checkout; name that twice to see what is noise.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, TextIO

from rlhf_jax.cli import environment


class Turn(NamedTuple):
  """A checkout's process and the pipes by which steps are called for and their seconds come back."""

  process: subprocess.Popen
  go: TextIO
  done: TextIO


def main(argv: list[str] | None = None) -> None:
  argv = sys.argv[1:] if argv is None else argv
  split = argv.index("--") if "--" in argv else len(argv)
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("checkouts", nargs="+", type=Path, help="folders; then -- TASK MODEL ...")
  parser.add_argument("--steps", type=int, default=30, help="of each checkout and launch")
  parser.add_argument("--launches", type=int, default=2, help="of every checkout's process")
  args = parser.parse_args(argv[:split])
  case = argv[split + 1 :]
  if not case:
    parser.error("no case is named: end with -- sft S, for example.")
  for checkout in args.checkouts:
    if not (checkout / "benchmarks" / "gauge.py").exists():
      parser.error(f"{checkout} is no checkout of this library: it has no benchmarks/gauge.py.")

  seconds = [[] for _ in args.checkouts]
  for _ in range(args.launches):
    turns = [start(checkout, [*case, f"--steps={args.steps}"]) for checkout in args.checkouts]
    for _ in range(args.steps):
      for i in random.sample(range(len(turns)), len(turns)):
        seconds[i].append(step(turns[i]))
    for turn in turns:
      turn.process.kill()
      turn.process.wait()

  medians = [statistics.median(each) for each in seconds]
  for checkout, median in zip(args.checkouts, medians, strict=True):
    print(f"{median:.4f} s  {median / medians[0]:.3f}  {checkout}")


def start(checkout: Path, case: list[str]) -> Turn:
  """Runs the case in `checkout` up to its first timed step."""
  (called, go), (done, reports) = os.pipe(), os.pipe()
  environ = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
  if tunables := environment.allocator(environ):
    environ["GLIBC_TUNABLES"] = tunables
  process = subprocess.Popen(
    [sys.executable, __file__, str(called), str(reports), *case],
    cwd=checkout,
    env=environ,
    pass_fds=(called, reports),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(called)
  os.close(reports)
  turn = Turn(process, os.fdopen(go, "w", buffering=1), os.fdopen(done))
  if not turn.done.readline():
    command = f"cd {checkout} && python -m benchmarks.case {' '.join(case)}"
    raise SystemExit(f"{checkout}: the case ended before its first step; see why: {command}")
  return turn


def step(turn: Turn) -> float:
  """Seconds of the next one."""
  turn.go.write("\n")
  return float(turn.done.readline())


def child(called: TextIO, reports: TextIO, case: list[str]) -> None:
  """The case, whose steps wait for a line from `called` and write their seconds to `reports`."""
  import time

  import jax

  from benchmarks import case as cases
  from benchmarks import gauge

  tick, ticks, began = gauge.Clock.tick, 0, 0.0

  def tick_in_turn(clock):
    nonlocal ticks, began
    jax.block_until_ready(jax.live_arrays())
    ticks += 1
    if ticks > clock.warmup:
      reports.write(f"{time.perf_counter() - began}\n")
      called.readline()
      began = time.perf_counter()
    tick(clock)

  gauge.Clock.tick = tick_in_turn
  cases.main(case)


if __name__ == "__main__":
  if sys.argv[1].isdigit():
    child(os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w", buffering=1), sys.argv[3:])
  else:
    main()
