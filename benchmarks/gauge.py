"""What is measured around a case: seconds between steps, compilations, peak memory, and how busy others kept the machine."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

import jax

from benchmarks import host

RESULTS = Path(__file__).parent / "results"
COMPILATION = "/jax/core/compile/backend_compile_duration"

_compiled = []


class Enough(Exception):
  """All steps that were asked for are done."""


class Clock:
  """Seconds between ticks, the first of which begins the first step.

  `rows` is to hold what was learned from, or answered, in the timed steps.
  """

  def __init__(self, warmup: int, steps: int):
    self.warmup, self.steps = warmup, steps
    self.first = 0.0  # seconds of the first step until its result was there
    self.rows = []
    self._ticks: list[float] = []
    self._compiled: list[int] = []

  def tick(self) -> None:
    """Raises Enough where the last timed step is done."""
    self._ticks.append(time.perf_counter())
    self._compiled.append(len(_compiled))
    if len(self._ticks) == self.warmup + 1:
      self._start = (self._ticks[-1], *host.busy())
    if len(self._ticks) == self.warmup + self.steps + 1:
      end = (self._ticks[-1], *host.busy())
      wall, busy, own = (b - a for a, b in zip(self._start, end, strict=True))
      self.other_cores = max(0.0, busy - own) / wall
      raise Enough

  def first_done(self, result) -> None:
    """To be told each step's result; waits for the first."""
    if len(self._ticks) == 1:
      jax.block_until_ready(result)
      self.first = time.perf_counter() - self._ticks[0]

  @property
  def times(self) -> list[float]:
    ticks = self._ticks[self.warmup :]
    return [after - before for before, after in zip(ticks[:-1], ticks[1:], strict=True)]

  @property
  def compilations(self) -> int:
    """Programs compiled from the process's start to the end of the warm-up."""
    return self._compiled[self.warmup]

  @property
  def recompilations(self) -> int:
    """Programs compiled in timed steps."""
    return self._compiled[-1] - self._compiled[self.warmup]


def count_compilations() -> None:
  def count(event: str, seconds: float, **_) -> None:
    if event == COMPILATION:
      _compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(count)


def peak_bytes() -> int:
  """Of an accelerator's memory; on a CPU, of the process's."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return host.peak_bytes()


def peaks_file() -> Path:
  """What benchmarks/machine.py writes."""
  kind = jax.default_backend()
  return RESULTS / ("machine.jsonl" if kind == "cpu" else f"machine_{kind}.jsonl")


def peaks() -> dict[str, float]:
  """FLOP/s of the machine's best product by dtype, and bytes/s as "bandwidth"; {} where they were not measured here."""
  if not peaks_file().is_file():
    return {}
  found: dict[str, float] = {}
  for line in peaks_file().read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    if row["machine"] != machine():
      continue
    name, value = row.get("dtype", "bandwidth"), row.get("flop_per_s", row.get("bytes_per_s"))
    found[name] = max(found.get(name, 0.0), value)
  return found


def machine() -> str:
  """Which kind of machine, without its name."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    return f"{jax.local_device_count()} x {device.device_kind}"
  return f"{os.cpu_count()} x {host.processor()}"


def seconds_of(function, *args, repeats: int = 5, at_least: float = 0.1) -> float:
  """Median seconds of a call of a compiled function, of `repeats` timings that each last `at_least` so long."""
  jax.block_until_ready(function(*args))
  began = time.perf_counter()
  jax.block_until_ready(function(*args))
  calls = max(1, int(at_least / max(time.perf_counter() - began, 1e-7)))
  timings = []
  for _ in range(repeats):
    began = time.perf_counter()
    for _ in range(calls):
      out = function(*args)
    jax.block_until_ready(out)
    timings.append((time.perf_counter() - began) / calls)
  return statistics.median(timings)
