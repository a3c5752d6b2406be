"""How long a run takes before it does anything: imports and compilation of experiments/tiny.py.

  python -m benchmarks.cold_start [--config=experiments/tiny.py] [--config.ppo.steps=2 ...]

Runs `rlhf-jax train` twice in new processes, with an empty cache of compiled programs and with what the first left there, and
prints a JSON line each: `import_s`; `compile_s`, the time in which a program was traced, lowered, compiled or read from the
cache; their sum `cold_start_s`, and `total_s` of the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_jax.cli import environment

ROOT = Path(__file__).parent.parent
INSIDE = "--inside"  # marks the process that is measured
EVENTS = "/jax/core/compile/"  # of tracing, lowering and compiling


def main(argv: list[str]) -> None:
  if argv[:1] == [INSIDE]:
    return inside(argv[1:])
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default=str(ROOT / "experiments/tiny.py"))
  args, rest = parser.parse_known_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    environ = environment.defaults(os.environ) | os.environ
    environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
    tunables = environment.allocator(environ)
    if tunables:
      environ["GLIBC_TUNABLES"] = tunables
    for cache in ("empty", "warm"):
      options = [f"--config={args.config}", f"--workdir={folder}/{cache}", *rest]
      command = [sys.executable, "-m", "benchmarks.cold_start", INSIDE, *options]
      run = subprocess.run(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True
      )
      found = json.loads(run.stdout.splitlines()[-1])
      print(json.dumps({"config": Path(args.config).name, "cache": cache} | found), flush=True)


def inside(options: list[str]) -> None:
  """Runs `rlhf-jax train` in this process and prints what it was waiting for."""
  began = time.perf_counter()
  import jax

  from rlhf_jax import cli
  from rlhf_jax.training import experiment  # noqa: F401, all that a run imports

  imported = time.perf_counter()
  spans: list[tuple[float, float]] = []
  programs = 0

  def note(event: str, seconds: float, **_) -> None:
    nonlocal programs
    if event.startswith(EVENTS):
      now = time.perf_counter()
      spans.append((now - seconds, now))
      programs += event.endswith("backend_compile_duration")

  jax.monitoring.register_event_duration_secs_listener(note)
  code = cli.main(["train", *options])
  if code:
    sys.exit(code)
  done = time.perf_counter()
  waited = covered(spans)
  found = {
    "import_s": round(imported - began, 2),
    "compile_s": round(waited, 2),
    "cold_start_s": round(imported - began + waited, 2),
    "total_s": round(done - began, 2),
    "programs": programs,
    "jax": jax.__version__,
  }
  print(json.dumps(found))


def covered(spans: list[tuple[float, float]]) -> float:
  """Seconds in any of the spans: tracing one function traces those inside it."""
  total, end = 0.0, float("-inf")
  for start, stop in sorted(spans):
    total += max(0.0, stop - max(start, end))
    end = max(end, stop)
  return total


if __name__ == "__main__":
  main(sys.argv[1:])
