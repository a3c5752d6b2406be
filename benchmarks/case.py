"""One case of the benchmark in this process: a task, a model and a dtype, timed as `rlhf-jax train` runs them.

  python -m benchmarks.case dpo S --dtype=bfloat16
  python -m benchmarks.case gen M --set=ragged --steps=4
  python -m benchmarks.case ppo S --low-memory --config.ppo.minibatches=2

The last line on standard output is the result, one JSON object; benchmarks/README.md says what its fields count. `--config.*`
are options of the library, as on its command line. Compilations are not cached, so that their time is seen, unless
JAX_COMPILATION_CACHE_DIR is set.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax

import rlhf_jax
from benchmarks import cost, gauge, host, workload
from benchmarks.cases import SHAPES, TASKS, Case

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> None:
  case = parse(argv)
  gauge.count_compilations()
  with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(sys.stderr):
    clock = workload.run(case, Path(workdir))
  print(json.dumps(result(case, clock)), flush=True)


def parse(argv: list[str] | None) -> Case:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("task", choices=TASKS)
  parser.add_argument("model", choices=tuple(SHAPES["models"]))
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--set", choices=("fixed", "ragged"), default="fixed")
  parser.add_argument("--warmup", type=int, help="steps before those that are timed")
  parser.add_argument("--steps", type=int, help="steps that are timed")
  parser.add_argument("--cached-reference", action="store_true", help="DPO's, before the steps")
  parser.add_argument("--low-memory", action="store_true", help="what fits, not what is fastest")
  parser.add_argument(
    "--scale", default="", help="a shape other than the table's: batch=64,new=128"
  )
  args, rest = parser.parse_known_args(argv)
  for option in rest:
    if not option.startswith("--config.") or "=" not in option:
      parser.error(f"{option} is not an option; those of the library are --config.NAME=VALUE.")
  try:
    return workload.case(**vars(args), config=tuple(option[len("--config.") :] for option in rest))
  except ValueError as error:
    parser.error(str(error))


def result(case: Case, clock: gauge.Clock) -> dict:
  """The JSON line of a case that was run."""
  times = clock.times
  median = statistics.median(times)
  tokens = workload.tokens(case, clock.rows)
  peaks = gauge.peaks()
  flops = cost.flops(case, clock.rows) / len(times)
  flop_per_s = flops * len(times) / host.seconds(times, case.ragged)
  line = {
    "library": "rlhf_jax",
    "version": f"{rlhf_jax.__version__} {_commit()} / jax {jax.__version__}",
    "model": case.model,
    "dtype": case.dtype,
    "set": case.set,
    "task": case.task,
    "shape": case.shape,
    "options": {
      "cached_reference": case.cached_reference,
      "low_memory": case.low_memory,
      "scale": case.scale,
      "config": list(case.config),
      "hugetlb": host.has_huge_pages(),
    },
    **host.timing(times, tokens, case.ragged, gauge.peak_bytes()),
    "compile_s": round(clock.first - median, 2),
    "compilations": clock.compilations,
    "recompilations": clock.recompilations,
    "flops": round(flops),
    "flop_per_s": round(flop_per_s),
    "share_of_peak": _share(flop_per_s, peaks.get(case.dtype)),
  }
  if not case.ragged:
    line["bytes"] = round(cost.bytes_moved(case))
  if case.task == "gen" and not case.ragged:
    # The prompt's pass counts as the step that it yields a token for.
    line["bytes_per_step"] = round(cost.decode_bytes(case))
    line["share_of_bandwidth"] = _share(line["bytes"] / median, peaks.get("bandwidth"))
  return line | {
    "other_cores": round(clock.other_cores, 2),
    "machine": gauge.machine(),
    "date": datetime.date.today().isoformat(),
  }


def _share(achieved: float, peak: float | None) -> float | None:
  return None if peak is None else round(achieved / peak, 4)


def _commit() -> str:
  asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
  return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
  main()
