"""What the scripts here share: a case read from the command line, a clock, and the JSON line that comes out.

Only the standard library is imported, since each script runs in the environment of the library that it times.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import random
import time

from benchmarks import host, ragged

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = json.loads((ROOT / "benchmarks/shapes.json").read_text())
MODELS = pathlib.Path(os.environ.get("PEERS_MODELS", ROOT / ".cache/peers"))  # by make_model.py
THREADS = SHAPES["threads"]
PAD, BOS, EOS, FIRST = 0, 1, 2, 4  # ids below FIRST are marks and are not drawn


@dataclasses.dataclass(frozen=True)
class Case:
  """One thing to time. `options` are the library's own, as they stand on the command line."""

  task: str
  model: str  # S or M
  dtype: str  # float32, bfloat16, or mixed: float32 weights with products in bfloat16
  set: str
  warmup: int
  steps: int
  cached_reference: bool
  device: str  # cpu or cuda
  options: dict[str, str | int | bool]

  @property
  def shape(self) -> dict[str, int]:
    return SHAPES["tasks" if self.device == "cpu" else "gpu"][self.task][self.model]

  @property
  def architecture(self) -> dict:
    return SHAPES["models"][self.model]

  @property
  def folder(self) -> pathlib.Path:
    """The model as a Hugging Face folder."""
    return MODELS / self.model

  @property
  def ragged(self) -> bool:
    return self.set == "ragged"

  def rows(self) -> list[list[ragged.Row]]:
    """[warmup + steps][rows of a batch]"""
    count = self.warmup + self.steps
    draw = ragged.rows if self.ragged else ragged.fixed_rows
    return draw(self.task, self.shape, count)

  def sorted_rows(self) -> list[list[ragged.Row]]:
    """The same, with the timed rows put into batches of similar length, as a sampler by length does."""
    batches = self.rows()
    size = len(batches[0])
    timed = sorted(sum(batches[self.warmup :], []), key=lambda row: -row.longest)
    return batches[: self.warmup] + [timed[i : i + size] for i in range(0, len(timed), size)]

  def tokens(self) -> int:
    """Tokens of all timed steps, without padding."""
    return sum(
      ragged.tokens(self.task, row) for batch in self.rows()[self.warmup :] for row in batch
    )


def parse(docstring: str, tasks: tuple[str, ...], dtypes: tuple[str, ...], **options) -> Case:
  """The case on the command line; `options` are the library's own, name to default (a bool is a flag)."""
  parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
  parser.add_argument("task", choices=tasks)
  parser.add_argument("model", choices=tuple(SHAPES["models"]))
  parser.add_argument("--dtype", choices=dtypes, default="float32")
  parser.add_argument("--set", choices=("fixed", "ragged"), default="fixed")
  parser.add_argument(
    "--device", choices=("cpu", "cuda"), default="cpu", help="cuda takes the shapes of a GPU"
  )
  parser.add_argument("--warmup", type=int)
  parser.add_argument("--steps", type=int)
  parser.add_argument("--cached-reference", action="store_true", help="DPO's, before the steps")
  for name, default in options.items():
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
      parser.add_argument(flag, action="store_true")
    else:
      parser.add_argument(flag, default=default, type=type(default))
  args = parser.parse_args()
  counts = SHAPES["steps"][args.model]
  if args.task in ("ppo", "grpo"):
    counts = SHAPES["steps"]["slow"].get(args.model, counts)
  return Case(
    task=args.task,
    model=args.model,
    dtype=args.dtype,
    set=args.set,
    warmup=counts["warmup"] if args.warmup is None else args.warmup,
    steps=counts["timed"] if args.steps is None else args.steps,
    cached_reference=args.cached_reference,
    device=args.device,
    options={name: getattr(args, name) for name in options},
  )


class Ids:
  """Random ids of one case's vocabulary, the same in every run."""

  def __init__(self, case: Case):
    self._rng = random.Random(0)
    self._vocab = case.architecture["vocab"]

  def __call__(self, length: int) -> list[int]:
    return [self._rng.randrange(FIRST, self._vocab) for _ in range(length)]

  def text(self, length: int) -> str:
    """Words of one token each: "w17" is id 17."""
    return " ".join(f"w{i}" for i in self(length))


class Clock:
  """Seconds between ticks, without those of the warm-up; the first tick starts the first step."""

  def __init__(self, case: Case):
    self._case = case
    self._ticks: list[float] = []

  def tick(self) -> None:
    self._ticks.append(time.perf_counter())
    if len(self._ticks) == self._case.warmup + 1:
      self._start = (time.perf_counter(), *host.busy())
    if len(self._ticks) == self._case.warmup + self._case.steps + 1:
      end = (time.perf_counter(), *host.busy())
      wall, busy, own = (b - a for a, b in zip(self._start, end, strict=True))
      self.other_cores = max(0.0, busy - own) / wall

  @property
  def times(self) -> list[float]:
    steps = [b - a for a, b in itertools.pairwise(self._ticks)]
    assert len(steps) >= self._case.warmup + self._case.steps, f"{len(steps)} steps were run"
    return steps[self._case.warmup :][: self._case.steps]


def report(
  case: Case,
  library: str,
  version: str,
  clock: Clock,
  tokens: int | None = None,
  gpu: tuple[str, int] | None = None,
) -> None:
  """Prints the JSON line. Tokens per second are of the median step where all steps are alike, of all steps otherwise.

  `gpu` is the name of the one that was used, and the peak bytes of its memory.
  """
  times = clock.times
  tokens = case.tokens() if tokens is None else tokens
  machine, peak = f"{os.cpu_count()} x {host.processor()}", host.peak_bytes()
  if gpu is not None:
    machine, peak = f"1 x {gpu[0]}", gpu[1]
  line = {
    "library": library,
    "version": version,
    "model": case.model,
    "dtype": case.dtype,
    "set": case.set,
    "task": case.task,
    "shape": case.shape,
    "options": {
      "cached_reference": case.cached_reference,
      **case.options,
      "hugetlb": host.has_huge_pages(),
    },
    **host.timing(times, tokens, case.ragged, peak),
    "other_cores": round(clock.other_cores, 2),
    "machine": machine,
    "date": datetime.date.today().isoformat(),
  }
  print(json.dumps(line), flush=True)
