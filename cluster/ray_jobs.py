"""Several trainings at once on a Ray cluster, each on devices of its own: a sweep over seeds and options.

    pip install -e '.[ray]'
    python cluster/ray_jobs.py --config=experiments/tiny.py --workdir=/shared/runs/sweep --gpus=1 \\
        --vary seed=0,1 --vary ppo.kl_coef=0.02,0.05

runs `rlhf-jax train` four times, in /shared/runs/sweep/seed=0,ppo.kl_coef=0.02 and so on; further options are passed on. Ray starts a
job where the devices that it asks for are free. One that was stopped, killed, or whose node is lost, starts again and goes on from
its last checkpoint, up to --retries times; an error ends its job and no other. Without a cluster to join, by --address or
RAY_ADDRESS, this machine is the cluster.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STOPPED = 128  # exit codes above are signals, as negative ones are
# Becomes its arguments, told by SIGTERM when Ray's worker is killed (PR_SET_PDEATHSIG, 1): the training that follows
# has the folder to itself.
ENDING_WITH_ITS_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Stopped(RuntimeError):
  """A training that a signal ended, which can go on."""


def main() -> int:
  import ray

  args, others = parse(sys.argv[1:])
  ray.init(address=args.address)
  resources = {"TPU": args.tpus} if args.tpus else {}
  task = ray.remote(
    num_cpus=args.cpus,
    num_gpus=args.gpus,
    resources=resources,
    max_retries=args.retries,
    retry_exceptions=[Stopped],
  )(train)
  running = {
    task.remote([*args.program, "train", *command], str(Path.cwd())): name
    for name, command in jobs(args.config, args.workdir, args.vary, others).items()
  }
  failed = 0
  while running:
    (done,), _ = ray.wait(list(running))
    name = running.pop(done)
    try:
      ray.get(done)
      print(f"{name}: finished", flush=True)
    except ray.exceptions.RayError as error:
      failed += 1
      print(f"{name}: failed, {str(error).strip().splitlines()[-1]}", flush=True)
  return min(failed, 1)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", required=True, help="experiment, as of rlhf-jax train")
  parser.add_argument(
    "--workdir", required=True, help="folder of the jobs' folders; all nodes see it"
  )
  parser.add_argument(
    "--vary", action="append", default=[], metavar="OPTION=VALUE,VALUE", help="may be repeated"
  )
  parser.add_argument("--gpus", type=float, default=0, help="of a job")
  parser.add_argument("--tpus", type=float, default=0, help="chips of a job")
  parser.add_argument("--cpus", type=float, default=1, help="of a job")
  parser.add_argument("--retries", type=int, default=10, help="of a job that was stopped")
  parser.add_argument("--address", help="of a Ray cluster")
  parser.add_argument(
    "--program",
    type=str.split,
    default=[sys.executable, "-m", "rlhf_jax"],
    help="rlhf-jax on the nodes, where that is another environment",
  )
  args, others = parser.parse_known_args(argv)
  for option in others:
    if not option.startswith("--config."):
      parser.error(f"{option} is not an option; those of an experiment are --config.NAME=VALUE.")
  return args, others


def jobs(
  config: str, workdir: str, vary: Sequence[str], others: Sequence[str]
) -> dict[str, list[str]]:
  """The arguments of `rlhf-jax train` for every combination of values, by the name of its folder.

  Raises ValueError for an option without values.
  """
  choices = []
  for item in vary:
    option, _, values = item.partition("=")
    if not option or not values:
      raise ValueError(f"--vary {item} should be OPTION=VALUE,VALUE such as seed=0,1.")
    choices.append([(option.removeprefix("config."), value) for value in values.split(",")])
  found = {}
  for chosen in itertools.product(*choices):
    name = ",".join(f"{option}={value}" for option, value in chosen) or "run"
    options = [f"--config.{option}={value}" for option, value in chosen]
    found[name] = [f"--config={config}", f"--workdir={workdir}/{name}", *others, *options]
  return found


def train(command: list[str], folder: str) -> None:
  """Runs one training on the node that Ray chose. Raises Stopped where it can go on, RuntimeError where it failed."""
  linux = sys.platform == "linux"
  begin = [sys.executable, "-c", ENDING_WITH_ITS_PARENT] if linux else []
  code = subprocess.run([*begin, *command], cwd=folder, check=False).returncode
  if code < 0 or code > STOPPED:
    raise Stopped(f"stopped with exit code {code}")
  if code:
    raise RuntimeError(f"ended with exit code {code}")


if __name__ == "__main__":
  sys.exit(main())
