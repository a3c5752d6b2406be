"""What one call of a compiled program costs a chip, counted in its text: operations, bytes of memory, bytes sent.

`compiled.cost_analysis()` counts the body of a loop once, so that a scan over layers costs one layer. Here every loop counts
as often as it turns: `known_trip_count` where the compiler wrote it, else what the loop's condition says of its counter.

  operations   of products, 2 a multiplication with its addition
  memory       what every instruction reads and writes of the chip's large memory; a fusion is one instruction
  sent         all-gather (n − 1)/n of its result, reduce-scatter of its operand, all-reduce twice that, permute all
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
FREE = (
  "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id copy-done "
  "all-gather-done all-reduce-done collective-permute-done async-done async-update slice-done opt-barrier"
).split()
ON_CHIP = 1  # the memory space beside the core, whose traffic is not counted


class Array(NamedTuple):
  """One array of an instruction's result."""

  dtype: str
  shape: tuple[int, ...]
  space: int  # 0 is the large memory

  @property
  def bytes(self) -> int:
    bits = re.search(r"\d+", self.dtype)
    size = BYTES.get(self.dtype, int(bits[0]) / 8 if bits else 0)
    return math.ceil(size * math.prod(self.shape))


class Instruction(NamedTuple):
  name: str
  results: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  literal: str  # between the parentheses, a constant's value

  def attribute(self, name: str) -> str:
    """`name=…` of a plain value, a name after % or a list in braces; "" without it."""
    found = re.search(rf"\b{name}=(?:%([\w.\-]+)|(\{{[^}}]*\}})|([\w.\->]+))", self.attributes)
    return next((group for group in found.groups() if group), "") if found else ""

  def numbers(self, name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

  @property
  def says(self) -> str:
    """What of the traced program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.results)


class Computation(NamedTuple):
  instructions: dict[str, Instruction]
  root: str

  @property
  def parameters(self) -> dict[int, str]:
    of = self.instructions.values()
    return {int(i.literal): i.name for i in of if i.opcode == "parameter"}


@dataclasses.dataclass
class Costs:
  """Of one call, on one chip."""

  flops: float = 0.0
  bytes: float = 0.0
  sent: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
  unknown: tuple[str, ...] = ()  # loops whose length is not in the program

  def add(self, other: Costs, times: float = 1.0) -> None:
    self.flops += times * other.flops
    self.bytes += times * other.bytes
    for kind, sent in other.sent.items():
      self.sent[kind] += times * sent
    self.unknown = tuple(dict.fromkeys((*self.unknown, *other.unknown)))


class Module:
  """A compiled program's computations by name, from `compiled.as_text()`."""

  def __init__(self, text: str):
    self.computations, self.entry = _parse(text)
    self.turns = 1

  def costs(self, turns: float = 1) -> Costs:
    """Of one call; loops of unknown length take `turns`."""
    self.turns = turns
    return self._of_computation(self.entry, [])

  def part_of(self, shape: tuple[int, ...], item_bytes: float) -> float:
    """Bytes of the largest array that may be a chip's part of one of `shape`, 0 where there is none."""
    found = [
      math.prod(array.shape) * item_bytes
      for computation in self.computations.values()
      for made in computation.instructions.values()
      for array in made.results
      if len(array.shape) == len(shape)
      and array.shape[-2:] == shape[-2:]
      and all(whole % part == 0 for whole, part in zip(shape, array.shape, strict=True))
    ]
    return max(found, default=0.0)

  def largest(self, count: int = 5) -> list[tuple[int, str, str]]:
    """(bytes, shape, origin) of the largest arrays that are made anew, outside of fusions."""
    found = {}
    fused = set(self._fused())
    for name, computation in self.computations.items():
      if name in fused:
        continue
      for made in computation.instructions.values():
        if made.opcode in FREE or made.opcode.endswith("-start"):
          continue
        for array in made.results:
          if array.space != ON_CHIP:
            key = (array.bytes, f"{array.dtype}[{','.join(map(str, array.shape))}]")
            found.setdefault(key, made.says)
    return [(*key, found[key]) for key in sorted(found, reverse=True)[:count]]

  def recomputed(self) -> int:
    """How many instructions the compiler computes again to save memory, of its own accord."""
    each = itertools.chain.from_iterable(c.instructions for c in self.computations.values())
    return sum(bool(re.search(r"\.remat\d*(\.|$)", name)) for name in each)

  def on_host(self) -> int:
    """Bytes of arrays that the compiler keeps in the host's memory."""
    each = itertools.chain.from_iterable(
      c.instructions.values() for c in self.computations.values()
    )
    return max((a.bytes for i in each for a in i.results if a.space == 5), default=0)

  def _fused(self) -> Iterator[str]:
    for computation in self.computations.values():
      for instruction in computation.instructions.values():
        if instruction.opcode == "fusion":
          yield instruction.attribute("calls")

  def _of_computation(self, name: str, callers: list) -> Costs:
    """`callers`: the loops around, each with the computation that it stands in."""
    computation = self.computations[name]
    costs, sent = Costs(), {}
    for made in computation.instructions.values():
      if made.opcode == "while":
        turns = self._turns(computation, made, callers)
        body = self._of_computation(made.attribute("body"), [*callers, (computation, made)])
        costs.add(body, self.turns if turns is None else turns)
        if turns is None:
          costs.unknown = (*costs.unknown, made.says or made.name)
      elif made.opcode == "conditional":
        branches = re.findall(r"%([\w.\-]+)", made.attribute("branch_computations"))
        branches = branches or [made.attribute(f"{w}_computation") for w in ("true", "false")]
        each = [self._of_computation(branch, callers) for branch in branches]
        costs.add(max(each, key=lambda c: (c.flops, c.bytes)))
      elif made.opcode in ("call", "async-start") and (
        made.attribute("to_apply") or made.attribute("calls")
      ):
        called = made.attribute("to_apply") or made.attribute("calls")
        costs.add(self._of_computation(called, callers))
      else:
        costs.bytes += self._traffic(computation, made)
        for inner, scope in self._inside(made, computation):
          costs.flops += _flops(inner, scope)
          kind = _kind(inner, scope)
          if kind:  # an asynchronous one is written in every fusion that it runs beside, under one channel
            sent[kind, inner.attribute("channel_id") or inner.name] = _sent(inner, kind, scope)
    for (kind, _), amount in sent.items():
      costs.sent[kind] += amount
    return costs

  def _inside(self, made: Instruction, computation: Computation):
    """The instruction, or those that a fusion is made of, each with its computation."""
    if made.opcode != "fusion":
      yield made, computation
      return
    called = self.computations[made.attribute("calls")]
    for inner in called.instructions.values():
      yield from self._inside(inner, called)

  def _traffic(self, computation: Computation, made: Instruction) -> float:
    if made.opcode in FREE or made.opcode == "custom-call" and "AllocateBuffer" in made.attributes:
      return 0
    inner = self.computations[made.attribute("calls")] if made.opcode == "fusion" else None
    read = 0.0
    for index, name in enumerate(made.operands):
      if name in computation.instructions:
        read += _read(computation.instructions[name], made, index, inner)
    return read + _written(made, computation, inner)

  def _turns(self, computation: Computation, loop: Instruction, callers: list) -> int | None:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
      return int(known[1])
    condition = self.computations[loop.attribute("condition")]
    body = self.computations[loop.attribute("body")]
    around = [*callers, (computation, loop)]
    for made, scope, bound in self._compared(condition):
      left, right = (self._value(name, scope, bound, around) for name in made.operands)
      if left is None or right is None:
        continue
      direction = made.attribute("direction")
      low, high = (left, right) if direction in ("LT", "LE", "NE") else (right, left)
      steps = [self._step(name, scope, bound, body) for name in made.operands]
      step = next((s for s in steps if s), 1)
      return max(0, math.ceil((high - low + (direction in ("LE", "GE"))) / step))
    return None

  def _compared(self, condition: Computation):
    """Comparisons in a condition, with what their fusion's parameters stand for."""
    for made in condition.instructions.values():
      if made.opcode == "compare":
        yield made, condition, None
      if made.opcode == "fusion":
        inner = self.computations[made.attribute("calls")]
        for compared in inner.instructions.values():
          if compared.opcode == "compare":
            yield compared, inner, (condition, made.operands)

  def _value(self, name: str, scope: Computation, bound, around: list) -> int | None:
    """The whole number that `name` holds when the innermost loop of `around` begins, None where that is not plain."""
    made = scope.instructions.get(name)
    if made is None:
      return None
    if made.opcode == "constant":
      return int(made.literal) if re.fullmatch(r"-?\d+", made.literal) else None
    if made.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
      return self._value(made.operands[0], scope, bound, around)
    if made.opcode == "parameter" and bound:
      outer, operands = bound
      return self._value(operands[int(made.literal)], outer, None, around)
    if made.opcode == "get-tuple-element" and around:
      source = scope.instructions[made.operands[0]]
      index = made.numbers("index")[0]
      if source.opcode == "while":
        inside = self._value_in(source.operands[0], index, scope, around)
        return inside
      if source.opcode == "parameter":
        outer, loop = around[-1]
        return self._value_in(loop.operands[0], index, outer, around[:-1])
    return None

  def _value_in(self, name: str, index: int, scope: Computation, around: list) -> int | None:
    made = scope.instructions.get(name)
    if made is None:
      return None
    if made.opcode == "tuple":
      return self._value(made.operands[index], scope, None, around)
    if made.opcode == "parameter" and around:
      outer, loop = around[-1]
      return self._value_in(loop.operands[0], index, outer, around[:-1])
    return None

  def _step(self, name: str, scope: Computation, bound, body: Computation) -> int | None:
    """What a turn adds to the counter `name` of the condition."""
    made = scope.instructions.get(name)
    if made is not None and made.opcode == "parameter" and bound:
      outer, operands = bound
      return self._step(operands[int(made.literal)], outer, None, body)
    if made is None or made.opcode != "get-tuple-element":
      return None
    index, root = made.numbers("index")[0], body.instructions[body.root]
    if root.opcode != "tuple":
      return None
    following = body.instructions[root.operands[index]]
    while following.opcode in ("copy", "bitcast"):
      following = body.instructions[following.operands[0]]
    if following.opcode != "add":
      return None
    for operand in following.operands:
      added = body.instructions[operand]
      while added.opcode == "copy":
        added = body.instructions[added.operands[0]]
      if added.opcode == "constant" and added.literal.isdigit():
        return int(added.literal)
    return None


def _read(operand: Instruction, made: Instruction, index: int, inner: Computation | None) -> float:
  """Bytes of an operand that an instruction reads from large memory: of a slice, the slice."""
  whole = sum(array.bytes for array in operand.results if array.space != ON_CHIP)
  if not whole:
    return 0
  if made.opcode in ("dynamic-slice", "slice", "gather", "slice-start"):
    return min(whole, made.bytes) if index == 0 else whole
  if made.opcode == "dynamic-update-slice":
    return 0 if index == 0 else whole
  if inner is None:
    return whole
  name = inner.parameters.get(index)
  users = [i for i in inner.instructions.values() if name in i.operands]
  if users and all(_slices(user, name) for user in users):
    return min(whole, sum(user.bytes for user in users if user.opcode != "dynamic-update-slice"))
  return whole


def _slices(user: Instruction, name: str) -> bool:
  sliced = user.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice")
  return sliced and user.operands[0] == name and name not in user.operands[1:]


def _written(made: Instruction, computation: Computation, inner: Computation | None) -> float:
  whole = sum(array.bytes for array in made.results if array.space != ON_CHIP)
  if made.opcode.endswith("-start"):  # operand and result in one tuple
    kept = made.results[1:2] if made.opcode == "all-gather-start" else made.results[:1]
    return sum(array.bytes for array in kept if array.space != ON_CHIP)
  last = made
  if inner is not None:
    computation, last = inner, inner.instructions[inner.root]
    while last.opcode in ("bitcast", "copy", "reshape"):
      last = computation.instructions[last.operands[0]]
  if last.opcode == "dynamic-update-slice":  # in place
    return min(whole, computation.instructions[last.operands[1]].bytes)
  return whole


def _flops(made: Instruction, scope: Computation) -> float:
  if made.opcode == "dot":
    left = scope.instructions[made.operands[0]].results[0].shape
    summed = math.prod(left[i] for i in made.numbers("lhs_contracting_dims"))
    return 2.0 * math.prod(made.results[0].shape) * summed
  if made.opcode == "convolution":
    return _convolution_flops(made, scope)
  return 0.0


def _convolution_flops(made: Instruction, scope: Computation) -> float:
  """As the compiler of a TPU writes products; its windows may hold padding and dilation, which cost nothing."""
  labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", made.attributes)
  left, right = (scope.instructions[name].results[0].shape for name in made.operands[:2])
  of_left, of_right, of_out = (dict(zip(labels[i], range(99), strict=False)) for i in (1, 2, 3))
  out = made.results[0].shape
  window = made.attribute("window")

  def each(name: str, default: int) -> list[str]:
    found = re.search(rf"\b{name}=([\d_x\-]+)", window)
    return found[1].split("x") if found else [str(default)] * 9

  places = 1
  for i, space in enumerate(sorted(label for label in of_out if label.isdigit())):
    size, stride = right[of_right[space]], int(each("stride", 1)[i])
    low = int(each("pad", 0)[i].split("_")[0])
    spread, apart = int(each("lhs_dilate", 1)[i]), int(each("rhs_dilate", 1)[i])
    base = left[of_left[space]]
    inside = 0
    if size * out[of_out[space]] > 1 << 22:
      inside = size * out[of_out[space]]
    else:
      for k, o in itertools.product(range(size), range(out[of_out[space]])):
        at = o * stride - low + k * apart
        inside += at % spread == 0 and 0 <= at // spread < base
    places *= inside
  features = right[of_right["i"]] * out[of_out["f"]] * out[of_out["b"]]
  groups = made.numbers("batch_group_count")
  return 2.0 * features * places / (groups[0] if groups else 1)


def _kind(made: Instruction, scope: Computation) -> str | None:
  kind = made.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  root = scope.instructions[scope.root]
  if kind == "all-reduce" and root.opcode == "dynamic-slice" and root.operands[0] == made.name:
    return "reduce-scatter"  # as the compiler of a TPU writes it
  return kind


def _sent(made: Instruction, kind: str, scope: Computation) -> float:
  """Bytes that a chip sends."""
  results = made.results
  if made.opcode.endswith("-start"):
    results = results[1:2] if kind in ("all-gather", "collective-permute") else results[:1]
  size = sum(array.bytes for array in results)
  if kind == "collective-permute":
    return size
  ways = _group_size(made)
  share = (ways - 1) / ways
  if kind == "reduce-scatter" and made.opcode.startswith("reduce-scatter"):
    size *= ways
  return size * share * (2 if kind == "all-reduce" else 1)


def _group_size(made: Instruction) -> int:
  """How many chips take part together."""
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", made.attributes)
  if listed:
    return max(1, len(listed[1].split(",")))
  counted = re.search(r"replica_groups=\[\d+,(\d+)\]", made.attributes)
  if counted:
    return int(counted[1])
  named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", made.attributes)
  if not named:
    return 1
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
  # An axis, or a part of one: 'axis_0':(1)4.
  axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
  return math.prod(int(part or sizes[axis]) for axis, part in axes)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
  computations, entry = {}, ""
  name, instructions, root = "", {}, ""
  for line in text.splitlines():
    header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if header and not line.startswith(" "):
      name, instructions, root = header[2], {}, ""
      entry = name if header[1] else entry
    elif line.startswith("}") and name:
      computations[name] = Computation(instructions, root)
      name = ""
    elif name and " = " in line:
      made = _instruction(line.strip())
      instructions[made.name] = made
      root = made.name if line.lstrip().startswith("ROOT ") else root
  return computations, entry


def _instruction(line: str) -> Instruction:
  name, _, rest = line.removeprefix("ROOT ").partition(" = ")
  end = _closing(rest) if rest.startswith("(") else rest.index(" ")
  results, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  rest = rest[len(opcode) :]
  end = _closing(rest)
  inside, attributes = rest[1 : end - 1], rest[end:]
  operands = tuple(re.findall(r"%([\w.\-]+)", inside))
  arrays = []
  for dtype, shape, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", results):
    space = re.search(r"S\((\d+)\)", layout)
    dims = tuple(int(d.strip("<=")) for d in shape.split(",") if d)
    arrays.append(Array(dtype, dims, int(space[1]) if space else 0))
  return Instruction(name.lstrip("%"), tuple(arrays), opcode, operands, attributes, inside)


def _closing(text: str) -> int:
  """Where the parenthesis that `text` begins with has been closed."""
  depth = 0
  for at, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return at + 1
  return len(text)
