"""Two processes that are interrupted, one of them by SIGTERM or SIGKILL, end together and go on together, bit for bit."""

import signal
import time

import pytest
import small_runs

pytestmark = pytest.mark.slow
MESH = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
STAGES = (
  "--config.stages=('sft', 'reward_model', 'policy')",
  "--config.sft.epochs=20",
  "--config.sft.checkpoint_every=7",
  "--config.ppo.steps=12",
  "--config.ppo.checkpoint_every=3",
  "--config.rewards.terms=('reward_model', 'length')",
  "--config.rewards.length_target=2",
)
INTERRUPTIONS = (  # which process, by what, in which stage after how many logged steps
  (1, signal.SIGTERM, "sft", 9),
  (1, signal.SIGKILL, "sft", 25),
  (0, signal.SIGTERM, "ppo", 2),
  (0, signal.SIGKILL, "ppo", 7),
)


def start(folder, workdir):
  data = small_runs.write_data(folder)
  return small_runs.start_two([small_runs.arguments(workdir, data, *MESH, *STAGES)])


def interrupted(folder, workdir, index, number, stage, step) -> list[small_runs.End]:
  processes = start(folder, workdir)
  logged = lambda: len(small_runs.metrics(workdir, stage))
  while logged() < step and all(process.poll() is None for process in processes):
    time.sleep(0.002)
  processes[index].send_signal(number)
  return small_runs.ends(processes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The folder of both runs, and how the processes of the interrupted one ended each time."""
  folder = tmp_path_factory.mktemp("preemption")
  small_runs.finish(start(folder, folder / "straight"))
  ends = [interrupted(folder, folder / "interrupted", *stop) for stop in INTERRUPTIONS]
  small_runs.finish(start(folder, folder / "interrupted"))
  return folder, ends


def test_a_signal_to_one_process_stops_both_after_one_step(runs):
  for (_, number, stage, _), ends in zip(INTERRUPTIONS, runs[1], strict=True):
    if number == signal.SIGTERM:
      for code, _, error in ends:
        assert code == 128 + number, error
        assert "stopped by SIGTERM after step" in error and f"of stage {stage}" in error
        assert "Run the same command again to go on from there." in error


def test_the_others_end_when_one_is_killed(runs):
  for (index, number, *_), ends in zip(INTERRUPTIONS, runs[1], strict=True):
    if number == signal.SIGKILL:
      assert ends[index].code == -number and ends[1 - index].code != 0


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_what_was_interrupted_ends_the_same_bit_for_bit(runs, stage):
  expected, found = (
    small_runs.state(runs[0] / name, stage) for name in ("straight", "interrupted")
  )
  assert expected.keys() == found.keys() and len(expected) > 30
  for name in expected:
    assert expected[name].tobytes() == found[name].tobytes(), name
  logged = lambda name: small_runs.metrics(runs[0] / name, stage)
  assert logged("straight") == logged("interrupted") != []
