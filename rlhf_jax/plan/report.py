"""What a program needs of every chip, how long a call takes at least, and what to look at where it is much."""

from __future__ import annotations

import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp

from rlhf_jax.plan import hlo, operations
from rlhf_jax.plan.chips import GIB, Chip, heard
from rlhf_jax.plan.programs import Program
from rlhf_jax.training.optimizer import HOST

LARGE = 0.01  # of a chip's memory, or of all that a program is called with: worth a warning
REPEATED = 1.15  # times the operations that were asked for
PARTITIONER = "Involuntary full rematerialization"


@dataclasses.dataclass
class Report:
  """Bytes, operations and seconds of one call, on one chip."""

  name: str
  chips: int
  chip: Chip
  held: dict[str, float]  # bytes of what the program is called with, and of what lies beside
  temporaries: float = 0.0  # activations, gradients, caches: made and dropped within the call
  output: float = 0.0  # what is not written over an argument
  code: float = 0.0
  cache: float = 0.0  # of keys and values, among the temporaries
  asked: float = 0.0  # operations, of all chips together
  costs: hlo.Costs | None = None  # None where the compiler gave up
  refused: str = ""  # why
  seconds: float = 0.0  # to compile
  warnings: list[str] = dataclasses.field(default_factory=list)
  largest: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)

  @property
  def memory(self) -> float:
    return sum(self.held.values()) + self.temporaries + self.output + self.code

  @property
  def fits(self) -> bool:
    return not self.refused and self.memory <= self.chip.memory

  @property
  def times(self) -> dict[str, float]:
    """Seconds that each would take alone: products, memory, links."""
    if self.costs is None:
      return {"compute": self.asked / self.chips / self.chip.flops}
    return {
      "compute": self.costs.flops / self.chip.flops,
      "memory": self.costs.bytes / self.chip.bandwidth,
      "links": sum(self.costs.sent.values()) / self.chip.links,
    }

  @property
  def bound(self) -> str:
    return max(self.times, key=self.times.get)


def compiled(program: Program, mesh, chip: Chip) -> Report:
  """`program` compiled for `mesh`, as a report."""
  held = {name: on_chip(tree) for name, tree in {**program.holds, **program.beside}.items()}
  report = Report(program.name, mesh.size, chip, held)
  clock = time.perf_counter()
  with jax.set_mesh(mesh), heard() as said:
    traced = program.function.trace(*program.arguments)
    report.asked = operations.flops(traced.jaxpr.jaxpr, program.turns)
    try:
      executable = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      executable = None
      _refuse(report, str(error))
  report.seconds = time.perf_counter() - clock
  if executable is not None:
    _measure(report, program, executable)
  report.warnings += replicated(program, mesh, chip)
  report.warnings += _of_partitioner(said())
  return report


def _measure(report: Report, program: Program, executable) -> None:
  memory = executable.memory_analysis()
  report.temporaries = memory.temp_size_in_bytes
  report.output = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
  report.code = memory.generated_code_size_in_bytes
  module = hlo.Module(executable.as_text())
  report.costs = module.costs(program.turns)
  report.largest = module.largest()
  if program.cache is not None:
    report.cache = _cache(program.cache, module)
  for loop in report.costs.unknown:
    report.warnings.append(
      f"a loop of unknown length counts as {program.turns:.4g} turns, with which all answers are as long as they may be: {loop}"
    )
  if module.recomputed():
    report.warnings.append(
      f"the compiler computes {module.recomputed()} instructions again to save memory: it was short of it"
    )
  if module.on_host():
    report.warnings.append(f"arrays of up to {size(module.on_host())} stay in the host's memory")
  repeated = report.costs.flops * report.chips / report.asked if report.asked else 1.0
  if repeated > REPEATED:
    report.warnings.append(
      f"chips do {repeated:.2f} times the operations that are asked for: some compute the same"
    )


def on_chip(tree) -> float:
  """Bytes of the largest part of `tree` that one chip holds; what waits in the host's memory takes none of its own."""
  total = 0.0
  for leaf in jax.tree.leaves(tree):
    sharding = leaf.sharding
    if sharding is not None and sharding.memory_kind == HOST:
      continue
    shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
    total += math.prod(shape) * item_bytes(leaf.dtype)
  return total


def item_bytes(dtype) -> float:
  """Four-bit numbers lie two in a byte."""
  name = str(dtype)
  if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return 8
  return 0.5 if name in ("int4", "uint4") else jnp.dtype(dtype).itemsize


def replicated(program: Program, mesh, chip: Chip) -> list[str]:
  """Large arrays of which several chips hold the same part, with the sides of the mesh that could part them."""
  warnings = []
  everything = sum(map(on_chip, program.holds.values()))
  limit = LARGE * min(everything, chip.memory)
  for kind, tree in program.holds.items():
    for path, leaf in jax.tree.leaves_with_path(tree):
      if leaf.sharding is None or on_chip(leaf) < limit:
        continue
      used = {
        a
        for axis in leaf.sharding.spec
        if axis
        for a in (axis if isinstance(axis, tuple) else (axis,))
      }
      # Copies of the weights over "data" are what that axis is for.
      spare = [
        a for a, n in mesh.shape.items() if n > 1 and a not in used and a != mesh.axis_names[0]
      ]
      if spare:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = ",".join(map(str, leaf.shape))
        warnings.append(
          f"{kind}: {name} {leaf.dtype}[{shape}] is the same on all chips along {' and '.join(spare)}, {size(on_chip(leaf))} each"
        )
  return warnings


def _cache(cache, module: hlo.Module) -> float:
  """Bytes of keys and values a chip, as the compiler has laid them out."""
  total = 0.0
  for leaf in jax.tree.leaves(cache):
    if leaf.ndim == 4:
      total += module.part_of(leaf.shape, item_bytes(leaf.dtype))
  return total


def _refuse(report: Report, text: str) -> None:
  """What the compiler says of a program that does not fit, and how large its temporaries are if it says so."""
  said = re.sub(r"\s+", " ", text.split("RESOURCE_EXHAUSTED:")[-1]).strip()
  report.refused = said.partition(" Largest program allocations")[0][:400]
  units = {"K": 1 << 10, "M": 1 << 20, "G": GIB}
  found = re.search(r"(?:HLO temporaries \(|HLO temp )([\d.]+)([KMG])", said)
  if found:
    report.temporaries = float(found[1]) * units[found[2]]


def _of_partitioner(text: str) -> list[str]:
  """Arrays that the compiler could only bring from one layout to another by making them whole on every chip."""
  found = re.findall(rf"{PARTITIONER}.*?for HLO operation %?\S+ = (\w+\[[\d,]*\])", text)
  return [
    f"made whole on every chip, to be laid out anew: {shape}" for shape in dict.fromkeys(found)
  ]


def size(count: float) -> str:
  """Bytes for people."""
  for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
    if count >= unit:
      return f"{count / unit:.2f} {name}"
  return f"{count:.0f} B"


def duration(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def text(report: Report) -> str:
  """The report as lines."""
  parts = {
    **report.held,
    "temporaries": report.temporaries,
    "output": report.output,
    "program": report.code,
  }
  lines = [
    f"{report.name}: compiled in {report.seconds:.0f} s for {report.chips} x {report.chip.name}",
    "",
  ]
  for name, count in parts.items():
    if count:
      lines.append(f"  {name:<28}{size(count):>12}")
    if name == "temporaries" and report.cache:
      lines.append(f"    of these keys and values  {size(report.cache):>12}")
  verdict = "fits" if report.fits else "DOES NOT FIT"
  limit = "" if math.isinf(report.chip.memory) else f" of {size(report.chip.memory)}: {verdict}"
  lines.append(f"  {'memory a chip':<28}{size(report.memory):>12}{limit}")
  if report.refused:
    lines += ["", f"  the compiler: {report.refused}"]
  lines += ["", f"  {'operations, all chips':<28}{report.asked:>12.3g}"]
  if report.costs is not None:
    lines.append(f"  {'operations a chip':<28}{report.costs.flops:>12.3g}")
    lines.append(f"  {'memory traffic a chip':<28}{size(report.costs.bytes):>12}")
    for kind, sent in report.costs.sent.items():
      if sent:
        lines.append(f"  {'sent by ' + kind:<28}{size(sent):>12}")
  times = ", ".join(f"{name} {duration(t)}" for name, t in report.times.items())
  lines += [
    "",
    f"  at least {duration(max(report.times.values()))} a call, bound by {report.bound} ({times})",
  ]
  if report.largest:
    lines += ["", "  largest arrays made:"]
    lines += [
      f"    {size(count):>12}  {shape}  {origin[-90:]}" for count, shape, origin in report.largest
    ]
  if report.warnings:
    shown = report.warnings[:12]
    lines += ["", *(f"  warning: {warning}" for warning in shown)]
    if len(report.warnings) > len(shown):
      lines.append(f"  and {len(report.warnings) - len(shown)} more warnings")
  return "\n".join(lines)


def summary(reports: list[Report]) -> list[str]:
  """A line a program."""
  lines = [f"{'program':<16}{'memory a chip':>16}{'at least':>12}   bound by"]
  for report in reports:
    verdict = "" if report.fits else "   DOES NOT FIT"
    fastest = duration(max(report.times.values()))
    lines.append(
      f"{report.name:<16}{size(report.memory):>16}{fastest:>12}   {report.bound}{verdict}"
    )
  return lines


def row(report: Report) -> dict:
  """The report as plain numbers, for a file."""
  kept = ("name", "chips", "held", "temporaries", "output", "code", "cache", "asked", "refused")
  return {
    **{name: getattr(report, name) for name in kept},
    "chip": report.chip.name,
    "memory": report.memory,
    "fits": report.fits,
    "flops": report.costs and report.costs.flops,
    "bytes": report.costs and report.costs.bytes,
    "sent": report.costs and report.costs.sent,
    "times": report.times,
    "bound": report.bound,
    "seconds": report.seconds,
    "warnings": report.warnings,
    "largest": report.largest,
  }
