"""The plan of an experiment: its programs, one after the other, compiled for a topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.config import suggest
from rlhf_jax.plan import abstract, chips, programs, report
from rlhf_jax.training import options


def plan(
  config: Mapping[str, Any], topology: str, *, only: Sequence[str] = ()
) -> Iterator[report.Report]:
  """A report of every program of `config`, or of `only` some, as soon as it is compiled.

  Raises ValueError or ImportError, with the remedy, before anything is compiled.
  """
  options.check(config)
  found = chips.topology(topology)
  setup = abstract.make_setup(config, found.devices)
  if setup.mesh.size != len(found.devices):
    raise ValueError(
      f"the mesh {' x '.join(f'{name}={size}' for name, size in setup.mesh.shape.items())} takes {setup.mesh.size} of the "
      f"{len(found.devices)} chips of {topology}; set --config.mesh.data=-1 to spread over the rest, or other sizes whose "
      f"product is {len(found.devices)}."
    )
  made = programs.programs(setup)
  names = [program.name for program in made]
  for name in only:
    if name not in names:
      raise ValueError(f"--only={name} is not a program of this config{suggest(name, names)}")
  chosen = [program for program in made if not only or program.name in only]
  return (report.compiled(program, setup.mesh, found.chip) for program in chosen)
