"""The files that start training on a cluster: shell that parses, a JobSet whose numbers agree, a sweep's jobs."""

import argparse
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_jax.cli import distributed

CLUSTER = Path(__file__).parent.parent / "cluster"


@pytest.fixture(scope="module")
def ray_jobs():
  spec = importlib.util.spec_from_file_location("ray_jobs", CLUSTER / "ray_jobs.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse_and_can_be_run(script):
  subprocess.run(["bash", "-n", script], check=True)
  assert script.stat().st_mode & 0o100


def test_slurm_queues_again_what_saved_itself_and_nothing_else(tmp_path):
  fake = lambda name, does: (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
  fake("scontrol", 'echo "$@" > requeued')
  fake("srun", 'printf "%s|" "$@" > asked; exit "$CODE"')
  for path in tmp_path.iterdir():
    path.chmod(0o755)

  def run(code):
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "17"}
    command = [CLUSTER / "slurm.sh", "--workdir=a b", "--config=c.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ | {"CODE": str(code)}, check=False)
    return done.returncode

  assert run(0) == 0 and run(1) == 1
  assert not (tmp_path / "requeued").exists()
  assert run(143) == 143
  assert (tmp_path / "requeued").read_text() == "requeue 17\n"
  asked = (tmp_path / "asked").read_text().split("|")
  assert asked[-5:-1] == ["rlhf-jax", "train", "--workdir=a b", "--config=c.py"]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_jobset_starts_a_process_on_every_host_and_restarts_all(kind):
  jobset = yaml.safe_load((CLUSTER / f"jobset_{kind}.yaml").read_text())
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
  (group,) = jobset["spec"]["replicatedJobs"]
  job = group["template"]["spec"]
  assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
  (container,) = job["template"]["spec"]["containers"]
  options = dict(arg.lstrip("-").partition("=")[::2] for arg in container["args"][1:])
  if kind == "gpu":
    assert int(options["processes"]) == group["replicas"] * job["completions"]
    host = options["coordinator"].partition(":")[0]
    assert (
      host
      == f"{jobset['metadata']['name']}-{group['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    )
  else:
    selector = job["template"]["spec"]["nodeSelector"]
    chips = math.prod(int(n) for n in selector["cloud.google.com/gke-tpu-topology"].split("x"))
    assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
    assert "distributed" in options


def test_their_options_are_those_of_train():
  parser = argparse.ArgumentParser(add_help=False)
  distributed.add_options(parser)
  options = {action.option_strings[0] for action in parser._actions}
  for kind in ("gpu", "tpu"):
    (group,) = yaml.safe_load((CLUSTER / f"jobset_{kind}.yaml").read_text())["spec"][
      "replicatedJobs"
    ]
    (container,) = group["template"]["spec"]["template"]["spec"]["containers"]
    for arg in container["args"][1:]:
      name = arg.partition("=")[0]
      assert name in options | {"--config", "--workdir"} or name.startswith("--config.")


def test_a_sweep_is_a_job_for_every_combination_in_a_folder_of_its_own(ray_jobs):
  jobs = ray_jobs.jobs("e.py", "runs/s", ["seed=0,1", "config.ppo.kl_coef=0.5"], ["--config.x=y"])
  assert list(jobs) == ["seed=0,ppo.kl_coef=0.5", "seed=1,ppo.kl_coef=0.5"]
  assert jobs["seed=1,ppo.kl_coef=0.5"] == [
    "--config=e.py",
    "--workdir=runs/s/seed=1,ppo.kl_coef=0.5",
    "--config.x=y",
    "--config.seed=1",
    "--config.ppo.kl_coef=0.5",
  ]
  with pytest.raises(ValueError, match="--vary seed should be OPTION=VALUE,VALUE"):
    ray_jobs.jobs("e.py", "runs/s", ["seed"], [])


def test_what_a_signal_stopped_starts_again_and_what_failed_does_not(ray_jobs, tmp_path):
  run = lambda code: ray_jobs.train([sys.executable, "-c", code], str(tmp_path))
  run("pass")
  with pytest.raises(ray_jobs.Stopped):
    run("raise SystemExit(143)")
  with pytest.raises(ray_jobs.Stopped):
    run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
  with pytest.raises(RuntimeError, match="exit code 1") as failed:
    run("raise SystemExit(1)")
  assert not isinstance(failed.value, ray_jobs.Stopped)
