"""When a process takes itself for one of several, and what it asks for."""

import argparse

import jax
import pytest

from rlhf_jax.cli import distributed
from rlhf_jax.cli.parser import Parser, UsageError

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


def parsed(*argv: str) -> argparse.Namespace:
  parser = Parser("train", "")
  distributed.add_options(parser)
  return parser.parse_args(list(argv))


@pytest.fixture
def joined(monkeypatch):
  """The calls of `jax.distributed.initialize`, which are not made."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **named: calls.append(args))
  for name in (*SLURM, "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  return calls


@pytest.mark.parametrize(
  "environ, several",
  [
    ({}, False),
    (SLURM, True),
    ({**SLURM, "SLURM_NTASKS": "1"}, False),
    ({"SLURM_NTASKS": "2"}, False),  # in a batch script, where srun has started nothing
    ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
  ],
)
def test_srun_and_mpirun_say_that_there_are_several(environ, several):
  assert distributed.started_as_several(environ) == several


def test_a_process_joins_others_where_it_is_told_to_and_only_there(joined, monkeypatch):
  distributed.join(argparse.Namespace())  # of a verb that runs as one process
  distributed.join(parsed())
  assert joined == []
  distributed.join(parsed("--distributed"))
  distributed.join(parsed("--coordinator=host:1234", "--processes=8", "--process=0"))
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1;tcp://10.0.0.1:5")
  distributed.join(parsed())
  assert joined == [(None, None, None), ("host:1234", 8, 0), (None, None, None)]


def test_a_mpirun_that_does_not_say_where_the_others_are_is_refused_with_what_to_add(
  joined, monkeypatch
):
  monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
  with pytest.raises(UsageError, match="as Open MPI 4 does and 5 does not"):
    distributed.join(parsed())
  assert joined == []


def test_the_three_options_go_together(joined):
  with pytest.raises(UsageError, match="--coordinator, --processes and --process go together"):
    distributed.join(parsed("--coordinator=host:1234", "--processes=8"))
  assert joined == []
