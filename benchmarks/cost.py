"""What a case has to compute and to move, by the model's shape: its FLOPs, and the least bytes.

A multiplication and an addition are 2 FLOPs. Only matrix products count. With N weights in the layers' matrices, a forward
pass over a row of T tokens, `scored` of which have their log-probability asked for, takes

    2 N T + 4 L H C T (T + 1) / 2 + 2 D V scored

and a backward pass twice as much. Every row counts whole, also the prompt that two answers share, and nothing counts twice
that is computed twice (rematerialisation). So a library that computes a shared prompt once, or leaves out padding, shows
it as more FLOP/s. The cases:

  sft    3 forward
  rm     3 forward, nothing scored
  dpo    3 forward of both answers, responses scored; 1 more for the reference unless that is cached
  gen    1 forward, responses scored
  ppo    gen; reward model 1; policy and reference 1 each, responses scored; critic 1; then epochs of 3 each for policy
         and critic
  grpo   gen; reference 1, responses scored; then 3 for the policy, whose first pass says what its old log-probabilities are

The least bytes are those of weights and optimizer state, and of the cache in decoding; activations are left out, which a
machine with enough cache need not move. A pass of frozen weights reads them once. An update reads float32 weights forward and
backward, writes and reads gradients, reads and writes two moments, and writes the weights: 9 times 4 bytes a weight.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks import ragged
from benchmarks.cases import Case
from benchmarks.ragged import Row

SIZES = {"float32": 4, "bfloat16": 2}  # bytes


def flops(case: Case, rows: Iterable[Row]) -> float:
  """Of one pass through all `rows`."""
  return sum(_of_answer(case, row.prompt, response) for row in rows for response in row.responses)


def _of_answer(case: Case, prompt: int, response: int) -> float:
  T = prompt + response
  plain = forward(case.architecture, T, 0)
  scored = forward(case.architecture, T, response)
  if case.task == "sft":
    return 3 * forward(case.architecture, T, T)
  if case.task == "rm":
    return 3 * plain
  if case.task == "dpo":
    return (3 if case.cached_reference else 4) * scored
  if case.task == "gen":
    return scored
  if case.task == "grpo":
    return scored + scored + 3 * scored
  epochs = case.shape["epochs"]
  return scored + plain + 2 * scored + plain + epochs * 3 * (scored + plain)


def forward(a: dict, T: int, scored: int) -> float:
  """FLOPs of a forward pass over T tokens."""
  attention = 4 * a["layers"] * a["d"] * T * (T + 1) / 2
  return 2 * layer_weights(a) * T + attention + 2 * a["d"] * a["vocab"] * scored


def layer_weights(a: dict) -> int:
  """Weights in the matrices of all layers."""
  channels = a["d"] // a["heads"]
  attention = a["d"] * channels * (2 * a["heads"] + 2 * a["kv_heads"])
  return a["layers"] * (attention + 3 * a["d"] * a["ffn"])


def bytes_moved(case: Case) -> float:
  """The least that a step of the fixed set moves."""
  a = case.architecture
  W, size = layer_weights(a) + a["d"] * a["vocab"], SIZES[case.dtype]
  update, frozen = 36 * W, size * W
  written = decode_bytes(case) * case.shape["new"] if case.writes else 0
  if case.task == "gen":
    return written
  if case.task == "grpo":
    return written + frozen + update
  if case.task == "ppo":
    return written + 4 * frozen + case.shape["epochs"] * case.shape["minibatches"] * 2 * update
  with_reference = case.task == "dpo" and not case.cached_reference
  return update + (frozen if with_reference else 0)


def decode_bytes(case: Case) -> float:
  """Bytes that a decoding step has to read: every weight once, and the keys and values so far, on average."""
  a, shape = case.architecture, case.shape
  weights = layer_weights(a) + a["d"] * a["vocab"]
  rows = ragged.per_step(case.task, shape) * shape.get("group", 1)
  context = shape["prompt"] + shape["new"] / 2
  channels = a["d"] // a["heads"]
  cache = 2 * a["layers"] * a["kv_heads"] * channels * context * rows
  return SIZES[case.dtype] * (weights + cache)
