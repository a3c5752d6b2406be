"""What the generators of `tests/golden/` share: seeded inputs, stand-ins for absent packages, the file format.

Each `<library>_golden.py` beside this file runs in an environment of its own that has the library; its
docstring says how to build one. The project and its tests need none of them.

Inputs are multiples of 1/64, so that float32 holds them exactly and a reference that computes in
float64 sees the same numbers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import inspect
import json
import pathlib
import sys
import textwrap
import types
from unittest import mock

import numpy as np

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

# Rows that end early, start late (left padding), and skip a tool's turn in the middle.
MASK = [
  [1, 1, 1, 1, 1, 1, 1],
  [1, 1, 1, 1, 0, 0, 0],
  [0, 0, 1, 1, 1, 1, 1],
  [1, 1, 0, 0, 1, 1, 0],
]
B, T = 4, 7


def grid(values) -> np.ndarray:
  return np.round(np.asarray(values, np.float64) * 64) / 64


def trajectories(seed: int = 1) -> dict:
  """Rewards, values, mask and the value after the last token, for advantage estimation."""
  rng = np.random.default_rng(seed)
  return dict(
    rewards=grid(rng.normal(0, 1, (B, T))),
    values=grid(rng.normal(0, 2, (B, T))),
    mask=np.asarray(MASK, np.float64),
    bootstrap=grid([0.0, 1.5, -0.75, 0.25]),
  )


def policy_step(seed: int = 2) -> dict:
  """Log-probabilities far enough from the old ones that the clip acts on both sides and both signs."""
  rng = np.random.default_rng(seed)
  old_logps = grid(-rng.gamma(2.0, 1.0, (B, T)) - 0.5)
  return dict(
    logps=grid(old_logps + rng.normal(0, 0.4, (B, T))),
    old_logps=old_logps,
    advantages=grid(rng.normal(0, 1, (B, T))),
    mask=np.asarray(MASK, np.float64),
  )


def value_step(seed: int = 3) -> dict:
  rng = np.random.default_rng(seed)
  old_values = grid(rng.normal(0, 1, (B, T)))
  return dict(
    values=grid(old_values + rng.normal(0, 0.4, (B, T))),
    old_values=old_values,
    returns=grid(rng.normal(0, 1.5, (B, T))),
    mask=np.asarray(MASK, np.float64),
  )


def pairs(seed: int = 4, scale: float = 6.0) -> dict:
  """Sequence log-probabilities of six preference pairs, some of them ranked wrongly by a wide margin."""
  rng = np.random.default_rng(seed)
  ref_w, ref_l = -rng.gamma(9.0, 3.0, (2, 6))
  return dict(
    logps_w=grid(ref_w + rng.normal(0, scale, 6)),
    logps_l=grid(ref_l + rng.normal(0, scale, 6)),
    ref_logps_w=grid(ref_w),
    ref_logps_l=grid(ref_l),
  )


def token_preferences(seed: int = 15) -> dict:
  """Token log-probabilities of four pairs: longer chosen, longer rejected, equal lengths, one token."""
  rng = np.random.default_rng(seed)
  lengths = dict(w=[7, 2, 4, 1], l=[4, 6, 4, 3])
  inputs = {}
  for side, length in lengths.items():
    mask = (np.arange(T) < np.asarray(length)[:, None]).astype(np.float64)
    ref_logps = grid(-rng.gamma(2.0, 0.75, (B, T)))
    inputs[f"logps_{side}"] = grid(np.minimum(ref_logps + rng.normal(0, 0.5, (B, T)), -0.015625))
    inputs[f"ref_logps_{side}"] = ref_logps
    inputs[f"mask_{side}"] = mask
  return inputs


def judgements(seed: int = 16, drift: float = 0.0) -> dict:
  """Log-probabilities of seven single answers and their labels; `drift` moves the mismatched pairs' mean."""
  rng = np.random.default_rng(seed)
  ref_logps, kl_ref_logps = -rng.gamma(9.0, 3.0, (2, 7))
  return dict(
    logps=grid(ref_logps + rng.normal(0, 6.0, 7)),
    ref_logps=grid(ref_logps),
    labels=np.array([1, 0, 1, 1, 0, 0, 1]),
    kl_logps=grid(kl_ref_logps + drift + rng.normal(0, 2.0, 7)),
    kl_ref_logps=grid(kl_ref_logps),
  )


def likelihoods(seed: int = 17) -> dict:
  """Log-probabilities of six preference pairs averaged over their tokens: negative and near zero."""
  rng = np.random.default_rng(seed)
  logps_w, logps_l = np.minimum(grid(-rng.gamma(2.0, 0.6, (2, 6))), -0.046875)
  return dict(logps_w=logps_w, logps_l=logps_l)


def token_pairs(seed: int = 5) -> dict:
  """Token log-probabilities under a policy and a reference less than 10 nats apart."""
  rng = np.random.default_rng(seed)
  logps = grid(-rng.gamma(2.0, 1.0, (B, T)))
  return dict(logps=logps, ref_logps=grid(logps + rng.normal(0, 0.8, (B, T))))


def scores(seed: int = 6) -> dict:
  rng = np.random.default_rng(seed)
  return dict(chosen=grid(rng.normal(0.5, 2, 6)), rejected=grid(rng.normal(0, 2, 6)))


def predictions(seed: int = 7, vocabulary: int = 11) -> dict:
  """Logits before each token of ragged rows: `logits[:, t]` predicts `tokens[:, t + 1]`."""
  rng = np.random.default_rng(seed)
  return dict(
    logits=grid(rng.normal(0, 2, (B, T, vocabulary))),
    tokens=rng.integers(0, vocabulary, (B, T)),
    mask=np.asarray(MASK, np.float64),
  )


def group_step(seed: int = 41, *, empty_row: bool = False) -> dict:
  """Four responses with an advantage each: the clip acts on tokens and on whole sequences, on both sides.

  With `empty_row` the third response has no tokens.
  """
  rng = np.random.default_rng(seed)
  old_logps = grid(-rng.gamma(2.0, 1.0, (B, T)) - 0.5)
  drift = np.array([0.375, -0.5, 0.625, 0.0])[:, None]
  mask = np.asarray(MASK, np.float64)
  if empty_row:
    mask[2] = 0.0
  return dict(
    logps=grid(np.minimum(old_logps + drift + rng.normal(0, 0.5, (B, T)), -0.015625)),
    old_logps=old_logps,
    ref_logps=grid(old_logps + rng.normal(0, 0.5, (B, T))),
    advantages=np.array([1.25, -0.75, -1.5, 0.5]),
    mask=mask,
  )


def group_rewards(seed: int = 21) -> np.ndarray:
  """float64[N, G] = [3, 4], fractional and of both signs; all responses to the second prompt score the same."""
  rewards = grid(np.random.default_rng(seed).normal(0.25, 1.0, (3, 4)))
  rewards[1] = 0.75
  return rewards


def wide_token_pairs(seed: int = 22) -> dict:
  """Log-ratios up to some 25 nats on both sides, beyond every library's clamp."""
  inputs = token_pairs(seed)
  log_ratio = np.linspace(-25.0, 25.0, B * T).reshape(B, T)
  return inputs | dict(ref_logps=grid(inputs["logps"] - log_ratio))


def transitions(seed: int = 23) -> dict:
  """Six steps over five actions: Q-values before and after, of the learner and of its target, and two policies."""
  rng = np.random.default_rng(seed)
  q_values, next_q, target_next_q = grid(rng.normal(0, 2, (3, 6, 5)))
  return dict(
    q_values=q_values,
    actions=rng.integers(0, 5, 6),
    rewards=grid(rng.normal(0, 1, 6)),
    discounts=grid([0.96875, 0.96875, 0.0, 0.96875, 1.0, 0.0]),
    next_q=next_q,
    target_next_q=target_next_q,
    next_actions=rng.integers(0, 5, 6),
    next_logits=grid(rng.normal(0, 1, (6, 5))),
  )


def excerpt(function, first: str, before: str):
  """The statements of `function` from the line that holds `first` up to, without it, the next that holds `before`.

  For equations that a library computes in the middle of a longer method: `run(**names)` executes them as they stand
  and returns every name they leave behind.
  """
  lines = inspect.getsource(function).splitlines()
  start = next(i for i, line in enumerate(lines) if first in line)
  stop = next(i for i in range(start, len(lines)) if before in lines[i])
  code = compile(textwrap.dedent("\n".join(lines[start:stop])), function.__qualname__, "exec")

  def run(**names):
    scope = dict(function.__globals__) | names
    exec(code, scope)
    return types.SimpleNamespace(**scope)

  return run


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Stands in for packages that a library imports but the recorded functions never touch."""

  def __init__(self, *packages: str):
    self.packages = packages
    sys.meta_path.append(self)  # after the real finders: an installed package is used as it is

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in self.packages:
      return importlib.machinery.ModuleSpec(name, self, is_package=True)
    return None

  def create_module(self, spec):
    module = types.ModuleType(spec.name)
    module.__getattr__ = lambda attribute: mock.MagicMock(name=attribute)
    return module

  def exec_module(self, module):
    pass

  def withdraw(self):
    """From here on the packages are missing again, for functions that fall back on their own code."""
    sys.meta_path.remove(self)
    for name in [name for name in sys.modules if name.split(".")[0] in self.packages]:
      del sys.modules[name]


class Recorder:
  """Collects the cases of one library and writes them to `tests/golden/<file>.json`.

  `file` is the library's name unless a second version of it is recorded beside the first; `version` is for a
  library that is not installed as a distribution.
  """

  def __init__(
    self,
    library: str,
    distribution: str,
    *runtime: str,
    precision: str = "float64",
    file: str | None = None,
    version: str | None = None,
  ):
    self.file = file or library
    self.head = dict(
      library=library,
      version=version or importlib.metadata.version(distribution),
      runtime={name: importlib.metadata.version(name) for name in runtime},
      precision=precision,
    )
    self.cases = []

  def case(self, kind, name, function, inputs, outputs, *, settings=None, gradients=None, **extra):
    """`gradients` are of the mean loss, by input name; `extra` may hold a note and another precision."""
    self.cases.append(
      dict(
        kind=kind,
        name=name,
        function=function,
        settings=settings or {},
        inputs=_plain(inputs),
        outputs=_plain(outputs),
        gradients=_plain(gradients or {}),
        **extra,
      )
    )

  def write(self):
    fields = [
      ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in case.items())
      for case in self.cases
    ]
    head = ",\n".join(
      f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self.head.items()
    )
    cases = ",\n".join("  {\n" + text + "\n  }" for text in fields)
    path = GOLDEN / f"{self.file}.json"
    path.write_text("{\n" + head + ',\n "cases": [\n' + cases + "\n ]\n}\n")
    print(f"{path.name}: {len(self.cases)} cases")


def _plain(arrays: dict) -> dict:
  return {key: np.asarray(value).tolist() for key, value in arrays.items()}
