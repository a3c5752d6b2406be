"""Joining the other processes of a job, by `jax.distributed`, and leaving them."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import contextmanager

from rlhf_jax.cli.parser import UsageError

HEARTBEAT = 100  # seconds


def add_options(parser) -> None:
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="one process of several, as a TPU pod or Kubernetes tells it; SLURM and Open MPI 4 need no option",
  )
  parser.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    help="of process 0, where nothing tells; with --processes and --process",
  )
  parser.add_argument("--processes", type=int, metavar="N", help="how many there are")
  parser.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
  parser.add_argument(
    "--heartbeat",
    type=int,
    metavar="SECONDS",
    default=HEARTBEAT,
    help=f"after which a silent process is taken for dead, and all end ({HEARTBEAT})",
  )


def join(args: argparse.Namespace) -> None:
  """Makes this process one of several where options or the scheduler say so; before any device is touched."""
  if "coordinator" not in args:
    return
  given = [getattr(args, name) is not None for name in ("coordinator", "processes", "process")]
  if any(given) and not all(given):
    raise UsageError(
      "--coordinator, --processes and --process go together.",
      "A scheduler that JAX knows, such as SLURM, needs none of them.",
    )
  if not (any(given) or args.distributed or started_as_several(os.environ)):
    return
  if not (any(given) or args.distributed) and _by_a_silent_mpirun(os.environ):
    raise UsageError(
      "this mpirun does not say where its first process is, as Open MPI 4 does and 5 does not.",
      "Say so yourself: mpirun ... sh -c 'rlhf-jax ... --coordinator=HOST:8476 --processes=$OMPI_COMM_WORLD_SIZE "
      "--process=$OMPI_COMM_WORLD_RANK', or start with srun.",
    )
  import jax

  if jax.distributed.is_initialized():
    return
  jax.distributed.initialize(
    args.coordinator,
    args.processes,
    args.process,
    heartbeat_timeout_seconds=args.heartbeat,
  )


def started_as_several(environ: Mapping[str, str]) -> bool:
  """Whether srun or mpirun has started this process as one of several."""
  return _by_slurm(environ) or int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1


def _by_a_silent_mpirun(environ: Mapping[str, str]) -> bool:
  """Whether it was mpirun, and JAX cannot find the others by what it has set."""
  return not _by_slurm(environ) and "OMPI_MCA_orte_hnp_uri" not in environ


def _by_slurm(environ: Mapping[str, str]) -> bool:
  return "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1


@contextmanager
def ending_alone():
  """Within, an error that nobody catches ends this process at once where it is one of several."""
  try:
    yield
  except UsageError:
    raise
  except Exception:
    if several():
      traceback.print_exc()
      print(
        "this process leaves its job; start all of them again to go on from the last checkpoint.",
        file=sys.stderr,
      )
    end(1)
    raise


def end(code: int) -> int:
  """`code`; of several processes this one ends with it here, without waiting.

  An orderly end waits for the others, which may wait for what this one was to send. They end when they miss it.
  """
  if several():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


def several() -> bool:
  if "jax" not in sys.modules:
    return False
  from rlhf_jax.sharding import processes

  return processes.several()
