"""Runs cases of the benchmark, each in a process of its own, this library beside others in turn.

  python -m benchmarks.run                                          this library, all cases
  python -m benchmarks.run --libraries=ours,trl,tunix,bare --models=S,M --dtypes=float32,bfloat16
  python -m benchmarks.run --more --scaling                         its low-memory setting, and its cost over size
  python -m benchmarks.run --list                                   what would be run, and how long it took before

A case is run in every library before the next case begins, and all cases once before the next round, so that a machine
that slows down slows all alike. Results are appended to a file of JSON lines; a case that it holds already is
skipped unless --again, so that a run that was stopped goes on where it was. `python -m benchmarks.tables` reads them.

A task with an option of its script is `dpo+cached-reference` or `sft+low-memory`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases import SHAPES, TASKS
from rlhf_jax.cli import environment

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
MORE = (
  "dpo+cached-reference",
  "sft+low-memory",
  "dpo+low-memory",
  "grpo+low-memory",
  "ppo+low-memory",
)
# (warm-up, timed) steps by model; of GRPO and PPO on M, whose steps take a minute elsewhere, fewer.
STEPS = {"XS": (1, 2), "S": (2, 5), "M": (1, 3), "1B": (1, 3)}
SLOW_STEPS = {"M": (1, 2), "1B": (1, 2)}


class Library(NamedTuple):
  """How a library's script is run, and what it takes."""

  script: tuple[str, ...]
  dtypes: dict[str, tuple[str, ...]]  # those of a script that count as float32, and as bfloat16
  tasks: tuple[str, ...] = TASKS
  ragged: tuple[str, ...] = TASKS  # tasks of the ragged set
  least_warmup: int = 1
  path: dict[str, str] = {}  # PYTHONPATH of a task
  on_gpu: tuple[str, ...] | None = None  # what its script is told there, None where it is not timed
  # On models larger than S, of a dtype the tasks in which it may be the best; each of its own takes as long as the others.
  on_large: dict[str, tuple[str, ...]] = {}

  def takes(self, job: Job) -> bool:
    tasks = self.tasks if job.set == "fixed" else self.ragged
    if job.model not in ("XS", "S") and not GPU:
      tasks = set(tasks) & set(self.on_large.get(job.dtype, TASKS))
    return job.task in tasks


class Job(NamedTuple):
  """A case in one library: one process."""

  library: str
  task: str
  model: str
  dtype: str  # as the library calls it
  set: str
  options: tuple[str, ...] = ()
  round: int = 0

  @property
  def key(self) -> str:
    return " ".join(map(str, (*self[:5], *self.options, self.round)))


def libraries(peers: Path) -> dict[str, Library]:
  """By name; `peers` holds the environments of the others."""
  both = {"float32": ("float32",), "bfloat16": ("bfloat16",)}
  ours = (sys.executable, "-m")
  return {
    "ours": Library(
      (*ours, "benchmarks.case"),
      both,
      least_warmup=2,
      on_gpu=("--config.model.source=random",),
    ),
    "trl": Library(
      (str(peers / "trl/bin/python"), "-m", "benchmarks.peers.trl"),
      {"float32": ("float32",), "bfloat16": ("mixed", "bfloat16")},
      path={"ppo": str(peers / "trl-1.12")},
      on_gpu=("--device=cuda", "--random"),
      on_large={"bfloat16": ("gen", "grpo")},
    ),
    "tunix": Library(
      (str(peers / "tunix/bin/python"), "-m", "benchmarks.peers.tunix"),
      both,
      tasks=("sft", "dpo", "gen", "grpo", "ppo"),
      ragged=("sft", "dpo"),
      on_large={"float32": ("sft", "dpo", "gen", "grpo"), "bfloat16": ()},
    ),
    "bare": Library(
      (*ours, "benchmarks.peers.bare"),
      both,
      tasks=("sft", "rm", "dpo", "gen", "ppo"),
      ragged=(),
      on_large={"float32": ()},
    ),
  }


GPU = any(map(os.path.exists, environment.ACCELERATORS))
LIBRARIES = libraries(ROOT / os.environ.get("PEERS_DIR", ".venv-peers"))


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  cases = [*(more() if args.more else ()), *(scaling() if args.scaling else ())] or matrix(args)
  known = read(args.results)
  wanted = [job for job in cases if args.again or not is_done(known, job)]
  print(
    f"{len(cases)} cases, {len(cases) - len(wanted)} of them in {args.results}", file=sys.stderr
  )
  if args.list:
    for job in wanted:
      print(job.key, known.get(job.key, {}).get("wall_s", ""))
    return 0
  return run_all(wanted, args.results, args.timeout, known)


def parse(argv: list[str] | None) -> argparse.Namespace:
  names = lambda text: tuple(filter(None, text.split(",")))
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--libraries", type=names, default=("ours",))
  parser.add_argument("--tasks", type=names, default=TASKS)
  parser.add_argument("--models", type=names, help="S,M unless --gpu")
  parser.add_argument("--dtypes", type=names, help="float32,bfloat16 unless --gpu")
  parser.add_argument("--set", dest="sets", type=names, default=("fixed",))
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--more", action="store_true", help="this library's own options instead")
  parser.add_argument("--scaling", action="store_true", help="this library at other sizes instead")
  parser.add_argument("--gpu", action="store_true", help="M and 1B in bfloat16; without a GPU, XS")
  parser.add_argument("--again", action="store_true", help="also what the file holds already")
  parser.add_argument("--list", action="store_true")
  parser.add_argument("--timeout", type=float, default=1800.0, help="seconds a case")
  parser.add_argument("--results", type=Path, help="benchmarks/results/cpu.jsonl or gpu.jsonl")
  args = parser.parse_args(argv)
  args.models = args.models or ((("M", "1B") if GPU else ("XS",)) if args.gpu else ("S", "M"))
  args.dtypes = args.dtypes or (("bfloat16",) if args.gpu else ("float32", "bfloat16"))
  args.results = args.results or RESULTS / ("gpu.jsonl" if args.gpu else "cpu.jsonl")
  for name, values, known in (
    ("libraries", args.libraries, LIBRARIES),
    ("tasks", [task.split("+")[0] for task in args.tasks], TASKS),
    ("models", args.models, SHAPES["models"]),
    ("dtypes", args.dtypes, ("float32", "bfloat16")),
    ("set", args.sets, ("fixed", "ragged")),
  ):
    for value in set(values) - set(known):
      parser.error(f"--{name} has {value!r}; it takes {', '.join(known)}.")
  return args


def matrix(args) -> list[Job]:
  """The cases asked for, in the order that they are run in."""
  found = []
  places = itertools.product(range(args.rounds), args.sets, args.models, args.tasks, args.dtypes)
  for round_, set_, model, task, dtype in places:
    task, *options = task.split("+")
    for name in args.libraries:
      for own in LIBRARIES[name].dtypes[dtype]:
        flags = tuple(f"--{option}" for option in options)
        job = Job(name, task, model, own, set_, flags, round_)
        if LIBRARIES[name].takes(job) and not (GPU and LIBRARIES[name].on_gpu is None):
          found.append(job)
  return found


def more() -> list[Job]:
  """This library with options that others lack, or that no ratio is made of."""
  return [
    Job("ours", task, model, "bfloat16", "fixed", tuple(f"--{option}" for option in options))
    for model in ("S", "M")
    for task, *options in (name.split("+") for name in MORE)
  ]


def scaling() -> list[Job]:
  """This library's SFT over batch and length, its generation over rows, and both over the model's size."""
  sizes = {
    ("sft", "S"): [f"batch={b}" for b in (4, 8, 16, 32, 64)]
    + [f"batch=8,seq={t}" for t in (64, 128, 256, 512, 1024)],
    ("gen", "S"): [f"batch={b}" for b in (1, 4, 16, 64, 256)],
    ("gen", "M"): [f"batch={b}" for b in (1, 4, 16, 64)],
    ("sft", "M"): ["batch=8"],
    ("sft", "XS"): ["batch=8,seq=128"],
  }
  return [
    Job("ours", task, model, "bfloat16", "fixed", (f"--scale={scale}",))
    for (task, model), scales in sizes.items()
    for scale in scales
  ]


def command(job: Job) -> list[str]:
  """The command line of a job."""
  warmup, steps = STEPS[job.model]
  if job.task in ("grpo", "ppo"):
    warmup, steps = SLOW_STEPS.get(job.model, (warmup, steps))
  library = LIBRARIES[job.library]
  flags = [
    f"--dtype={job.dtype}",
    f"--set={job.set}",
    f"--warmup={max(warmup, library.least_warmup)}",
    f"--steps={steps}",
  ]
  there = library.on_gpu or () if GPU else ()
  return [*library.script, job.task, job.model, *flags, *there, *job.options]


def surroundings(job: Job) -> dict[str, str]:
  """Its environment: memory as our command line has it, and huge pages alone for others; nothing compiled before."""
  kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
  tunables = environment.allocator(kept)
  if tunables:
    kept["GLIBC_TUNABLES"] = tunables if job.library == "ours" else environment.HUGE_PAGES
  path = LIBRARIES[job.library].path.get(job.task)
  if path:
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (path, kept.get("PYTHONPATH"))))
  return kept


def run_all(jobs: list[Job], results: Path, timeout: float, known: dict[str, dict]) -> int:
  """Runs `jobs` one after another and appends what came of each; returns how many failed."""
  results.parent.mkdir(parents=True, exist_ok=True)
  walls = {key: row["wall_s"] for key, row in known.items() if "wall_s" in row}
  failed = 0
  for number, job in enumerate(jobs, start=1):
    row = run_one(job, timeout)
    walls[job.key] = row["wall_s"]
    with open(results, "a", encoding="utf-8") as file:
      file.write(json.dumps(row) + "\n")
    failed += "error" in row
    left = remaining([other.key for other in jobs[number:]], walls)
    said = row.get("error") or f"{row['median_s']:.3f} s a step"
    print(
      f"[{number}/{len(jobs)}] {job.key}: {said} ({row['wall_s']:.0f} s; {left / 60:.0f} min left)",
      file=sys.stderr,
      flush=True,
    )
  return failed


def remaining(keys: list[str], walls: dict[str, float]) -> float:
  """Seconds for the cases to come: what each took before, or what cases took on average."""
  average = sum(walls.values()) / max(len(walls), 1)
  return sum(walls.get(key, average) for key in keys)


def run_one(job: Job, timeout: float) -> dict:
  """The result of one case, or its `error`; with its key, its place among the cases, and the seconds of the whole process."""
  began = time.monotonic()
  process = subprocess.Popen(
    command(job),
    cwd=ROOT,
    env=surroundings(job),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    out, err = process.communicate(timeout=timeout)
    row = outcome(process.returncode, out, err)
  except subprocess.TimeoutExpired:
    row = {"error": f"took longer than {timeout:g} s"}
  finally:
    if process.poll() is None:  # late, or this program is being stopped
      os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
  place = {"key": job.key, "case": job._asdict()}
  return place | row | {"wall_s": round(time.monotonic() - began, 1)}


def outcome(code: int, out: str, err: str) -> dict:
  """The last line of a script's output as its result."""
  last = (out.strip().splitlines() or [""])[-1]
  try:
    row = json.loads(last)
  except json.JSONDecodeError:
    row = None
  if code == 0 and isinstance(row, dict):
    return row
  tail = (err.strip().splitlines() or ["it said nothing"])[-1]
  return {"error": f"code {code}: {tail[-300:]}"}


def read(results: Path) -> dict[str, dict]:
  """The newest row of every key in a file of results; {} where there is none."""
  if not results.is_file():
    return {}
  rows = map(json.loads, results.read_text(encoding="utf-8").splitlines())
  return {row["key"]: row for row in rows}


def is_done(known: dict[str, dict], job: Job) -> bool:
  """Whether a result is there; what failed is tried again."""
  return job.key in known and "error" not in known[job.key]


if __name__ == "__main__":
  sys.exit(main())
