"""The files that start training on a cluster: shell that parses, a JobSet whose numbers agree, a sweep's jobs."""

import argparse
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child")
def test_a_training_ends_with_the_worker_that_started_it(tmp_path):
  child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(100)"
  worker = f"import sys; sys.path.insert(0, {str(CLUSTER)!r}); import ray_jobs; "
  worker += f"ray_jobs.train([sys.executable, '-c', {child!r}], {str(tmp_path)!r})"
  process = subprocess.Popen([sys.executable, "-c", worker])
  pid = tmp_path / "pid"
  wait_for(lambda: pid.exists() and pid.read_text())
  process.kill()
  process.wait()
  wait_for(lambda: not running(int(pid.read_text())))


def wait_for(condition):
  for _ in range(300):
    if condition():
      return
    time.sleep(0.1)
  raise AssertionError("not within 30 s")


def running(pid: int) -> bool:
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"


SMALL = dict(
  vocab_size=257,
  hidden_size=64,
  intermediate_size=64,
  num_hidden_layers=1,
  num_attention_heads=16,
  num_key_value_heads=16,
)
BEGIN = """
import sys
from rlhf_jax.cli import main
from rlhf_jax.training import experiment

def begin(setup):
  print("begun on", setup.mesh.size)
  raise SystemExit(0)

experiment.stages.sft = begin
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
  ("file", "devices"),
  [("slurm.sh", 16), ("tpu_vm.sh", 16), ("jobset_gpu.yaml", 16), ("jobset_tpu.yaml", 32)],
)
def test_what_they_ask_for_begins_on_as_many_devices(file, devices, tmp_path):
  """With a small model and a few texts in place of what a cluster has."""
  asked = re.findall(r"--config[\w.]*=[\w/:.-]+", (CLUSTER / file).read_text())
  texts = [dict(prompt="ask", response=f"{i} " * 450) for i in range(100, 400)]
  pairs = [dict(prompt="ask", chosen=f"yes {i}", rejected=f"no {i}") for i in range(300)]
  for name, rows in (("texts", texts), ("pairs", pairs)):
    (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  asked = [arg.replace("/shared", str(tmp_path)) for arg in asked if "model.source" not in arg]
  asked = [arg for arg in asked if arg != "--config=FILE"]  # of a line on usage
  assert any("data.sft" in arg for arg in asked) and any("data.feedback" in arg for arg in asked)
  small = [f"--config.model.random.{name}={value}" for name, value in SMALL.items()]
  flags = f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-c", BEGIN, "train", f"--workdir={tmp_path / 'run'}", *asked, *small],
    cwd=CLUSTER.parent,
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert f"begun on {devices}" in done.stdout, done.stderr
