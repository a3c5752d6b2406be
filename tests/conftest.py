"""Tests run on four fake CPU devices, offline, with implicit rank promotion an error, and compilations cached and quick."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile most of the time: a step of PPO on a tiny model in 1.0 s with these, in 4.5 without. Programs of processes
# that a test starts are compiled as users' are.
FLAGS = (
  "--xla_force_host_platform_device_count=4",
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
  "jax_compilation_cache_dir", os.path.join(os.path.dirname(__file__), "..", ".cache", "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True, scope="module")
def programs_of_their_own():
  """Compiled programs are dropped after each file: a process has memory maps for some thousands only."""
  yield
  jax.clear_caches()


TINY = Path(__file__).parent.parent / "experiments" / "tiny.py"
FEW_STEPS = (  # of the tiny experiment: seconds instead of a minute
  "--config.sft.epochs=0.03",
  "--config.reward_model.epochs=0.05",
  "--config.ppo.steps=3",
  "--config.data.test_prompts=16",
  "--config.evaluation.batch_size=32",
)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
  """The arguments of `rlhf-jax train` for a short run of experiments/tiny.py that is finished, and its workdir.

  Shared by all tests: copy the workdir before changing it.
  """
  from rlhf_jax.cli import main

  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  arguments = ["train", f"--config={TINY}", f"--workdir={workdir}", *FEW_STEPS]
  assert main(arguments) == 0
  return arguments, workdir
