"""`rlhf-jax plan`: the tiny experiment compiled for devices that are not used, and what is refused."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import jax
import pytest

from rlhf_jax.cli import config, main
from rlhf_jax.models import registry
from rlhf_jax.plan import abstract, experiment, operations, programs, report
from rlhf_jax.plan.chips import CHIPS, HOST
from rlhf_jax.training import setup

ROOT = Path(__file__).parent.parent.parent
TINY = f"--config={ROOT / 'experiments' / 'tiny.py'}"
LAYERED = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
SHORT = ("--config.data.max_tokens=32", "--config.model.random.num_hidden_layers=3")


@pytest.fixture(scope="module")
def planned():
  """The SFT step of the tiny experiment on 2 x 2 devices, its layers written out and as a scan."""

  def one(*options):
    settings = config.load([TINY, *LAYERED, *SHORT, *options])
    return next(experiment.plan(settings, "cpu:4", only=("sft",)))

  return one(), one("--config.model.scan=true")


def test_a_chip_holds_its_part_of_parameters_and_moments(planned):
  written_out, _ = planned
  D, F, V, heads, kv = 16, 32, 257, 16, 8
  matrices = 2 * D * heads + 2 * D * kv + 3 * D * F
  # 257 rows do not divide by 2; norms are whole everywhere.
  numbers = V * D / 2 + 3 * matrices / 4 + (2 * 3 + 1) * D
  assert written_out.held["parameters"] == 4 * numbers
  counters = 2 * 4  # of Adam and of the schedule
  assert written_out.held["optimizer"] == 2 * 4 * numbers + counters
  assert written_out.held["batch"] == 16 / 2 * 32 * 4 * 4  # tokens, positions, segments, mask
  assert written_out.memory >= sum(written_out.held.values()) + written_out.temporaries


def test_a_scan_over_layers_costs_what_the_layers_cost(planned):
  written_out, scanned = planned
  assert written_out.asked == scanned.asked
  assert scanned.costs.flops == pytest.approx(written_out.costs.flops, rel=0.02)
  assert scanned.costs.unknown == written_out.costs.unknown == ()
  assert sum(written_out.costs.sent.values()) > 0


def test_all_stages_are_planned_by_the_names_that_they_have():
  settings = config.load([TINY, *LAYERED])
  made = programs.programs(abstract.make_setup(settings, jax.devices()))
  assert [program.name for program in made] == ["sft", "reward_model", "rollout", "ppo"]
  rollout, ppo = made[2:]
  assert rollout.turns == 23
  tokens = ppo.holds["batch"].sequences.tokens
  assert tokens.shape == (32, 8 + 24)
  assert tokens.sharding.shard_shape(tokens.shape) == (16, 32)


@pytest.mark.parametrize("name", ["dpo", "kto", "online_dpo", "grpo"])
def test_policies_of_every_kind_are_traced_without_data(name):
  settings = config.load([TINY, *LAYERED, f"--config.algorithm.name={name}"])
  made = programs.programs(abstract.make_setup(settings, jax.devices()))
  assert made[-1].name == name


@pytest.mark.parametrize(
  ("name", "options"), [("dpo", ("loss_type=bco_pair",)), ("ppo", ("epochs=1", "minibatches=1"))]
)
def test_a_step_that_is_split_shows_models_all_rows_in_parts(name, options):
  """Its gradient, the counts before it, the look at a batch before that; and of PPO what scores a rollout."""
  given = [f"--config.{name}.{option}" for option in ("accumulate=4", *options)]
  settings = config.load([TINY, f"--config.algorithm.name={name}", *given])
  made = programs.programs(abstract.make_setup(settings, jax.devices()))
  in_parts = {
    program.name: len(
      re.findall(r"length=4\b", str(program.function.trace(*program.arguments).jaxpr))
    )
    for program in made[2:]
  }
  assert in_parts == {"dpo": {"dpo": 3}, "ppo": {"rollout": 1, "ppo": 3}}[name]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_rollout_by_slots_computes_about_as_much_as_all_rows_at_once(devices):
  """Where all answers are as long as they may be; and it keeps keys and values of its slots."""

  def planned(slots):
    given = [f"--config.mesh.data={devices}", f"--config.rollout.slots={slots}"]
    setup = abstract.make_setup(config.load([TINY, *given]), jax.devices()[:devices])
    rollout = programs.programs(setup)[2]
    with jax.set_mesh(setup.mesh):
      asked = rollout.function.trace(*rollout.arguments).jaxpr.jaxpr
    return operations.flops(asked, rollout.turns), jax.tree.leaves(rollout.cache)[0].shape

  whole, keys = planned(0)
  for slots in (8, 32):
    flops, of_slots = planned(slots)
    assert flops == pytest.approx(whole, rel=0.15)
    assert of_slots == (slots, *keys[1:])


def test_a_matrix_that_the_mesh_could_part_is_named():
  settings = config.load([TINY, *LAYERED])
  made = abstract.make_setup(settings, jax.devices())
  (warning, *_) = report.replicated(programs.programs(made)[0], made.mesh, HOST)
  # Its 257 rows do not divide over tensor=2.
  assert warning.startswith("parameters: model/embed/embedding float32[257,16] is the same")
  assert "along tensor" in warning


def test_the_slowest_of_three_bounds_a_step(planned):
  written_out, _ = planned
  times = written_out.times
  assert set(times) == {"compute", "memory", "links"}
  assert times[written_out.bound] == max(times.values())
  assert times["compute"] == written_out.costs.flops / HOST.flops


def test_the_command_says_what_a_program_needs(planned, capsys, monkeypatch):
  monkeypatch.setattr(experiment, "plan", lambda *args, **kwargs: iter(planned))
  assert main(["plan", "--topology=cpu:4", TINY]) == 0
  said = capsys.readouterr().out
  for line in (
    "parameters",
    "temporaries",
    "memory a chip",
    "sent by all-",
    "at least",
    "bound by",
  ):
    assert line in said


REFUSED = {
  "--topology=v5e-16": "v5e-16 is v5e:4x4",
  "--topology=v7:4x4": "is not one of v5e:4x4",
  "--topology=cpu:3": "lower mesh.data, mesh.fsdp or mesh.tensor",
  "--topology=cpu:4 --config.mesh.fsdp=1": "set --config.mesh.data=-1",
  "--topology=cpu:64": "--xla_force_host_platform_device_count=64",
  "--topology=cpu:4 --only=dpo": "--only=dpo is not a program of this config",
  "--topology=cpu:4 --config.sft.batch_size=3": "does not divide over 2 data shards",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_planned_is_refused_with_a_remedy(options, capsys):
  assert main(["plan", TINY, *LAYERED, *options.split()]) == 1
  assert REFUSED[options] in capsys.readouterr().err


def test_without_the_compiler_of_tpus_the_command_says_how_to_get_it(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  assert main(["plan", TINY, "--topology=v5e:2x2"]) == 1
  assert "pip install 'rlhf_jax[plan]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs rlhf_jax[plan]")
def test_the_tiny_experiment_compiles_for_a_tpu():
  settings = config.load([TINY, *LAYERED, *SHORT, "--config.model.dtype=bfloat16"])
  (found,) = experiment.plan(settings, "v5e:2x2", only=("sft",))
  assert found.fits and found.chips == 4 and found.chip == CHIPS["v5e"]
  # The second look at a block's scores is saved, and nothing else.
  assert found.costs.flops * found.chips == pytest.approx(found.asked, rel=0.1)


@pytest.mark.parametrize(
  "size, count", [("1b", 1_235_814_400), ("8b", 8_030_261_248), ("70b", 70_553_706_496)]
)
def test_llama_shapes_have_the_parameters_of_the_published_models(size, count):
  settings = config.load([f"--config={ROOT / 'experiments' / 'llama.py'}:{size}_ppo_lora"])
  model = registry.language_model(setup.family_config_of(settings))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
