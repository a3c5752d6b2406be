"""The reference's log-probabilities of a data set, computed once and kept: keyed by the model and by the tokens.

`reference/<model>.npz` of the workdir holds them; another algorithm, another epoch or a resumed run reads what is
there and computes what is missing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example, Logps
from rlhf_jax.sharding import processes
from rlhf_jax.training import disk
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params

BATCH = 64  # rows of a forward pass


def reference_logps(setup: Setup, frozen: Params, wanted: Iterable[Example]) -> Logps:
  """A function from any of `wanted` to log π_ref of its tokens, float32[tokens], at temperature 1."""
  path = setup.shared / "reference" / f"{_fingerprint(frozen)}.npz"
  known = _load(path)
  asked = {_digest(e): e for e in wanted}
  # They compute together, also where a network's disk shows the file to some of them only.
  lacking = set().union(*processes.gather([d for d in asked if d not in known]))
  missing = {d: e for d, e in asked.items() if d in lacking}
  if missing:
    known |= _compute(setup, frozen, missing)
    if processes.is_first():
      _save(path, known)
    processes.wait("reference log-probabilities are on disk")
  return lambda example: known[_digest(example)]


@functools.partial(jax.jit, static_argnums=0)
def _logps(policy, frozen, sequences):
  return policy.evaluate(frozen["reference"], frozen, sequences, 1.0).logps


def _compute(setup: Setup, frozen: Params, missing: dict[str, Example]) -> dict[str, np.ndarray]:
  """Shortest first, in batches of one size and few widths; the last batch is filled up and cut again."""
  needed = {"base": frozen["base"], "reference": frozen["reference"]}
  items = sorted(missing.items(), key=lambda item: len(item[1].tokens))
  found = {}
  starts = range(0, len(items), BATCH)
  quiet = not processes.is_first()
  for start in tqdm(starts, desc=f"{'reference':>12}", unit="batch", leave=False, disable=quiet):
    part = items[start : start + BATCH]
    rows = [example for _, example in part] + [part[0][1]] * (BATCH - len(part))
    width = examples.width_of(rows, multiple=16)
    batch = setup.place_batch(examples.collate_records(rows, width))
    logps = processes.fetch(_logps(setup.policy, needed, batch))
    found |= {
      key: row[: len(example.tokens)] for (key, example), row in zip(part, logps, strict=False)
    }
  return found


def _fingerprint(frozen: Params) -> str:
  digest = hashlib.blake2b(digest_size=12)
  tree = {"base": frozen["base"], "reference": frozen["reference"]}
  for path, leaf in jax.tree.leaves_with_path(tree):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(processes.fetch(leaf)).tobytes())
  return digest.hexdigest()


def _digest(example: Example) -> str:
  return hashlib.blake2b(np.asarray(example.tokens, np.int32).tobytes(), digest_size=12).hexdigest()


def _load(path: Path) -> dict[str, np.ndarray]:
  if not path.exists():
    return {}
  try:
    with np.load(path) as file:
      keys, values, ends = file["keys"], file["values"], np.cumsum(file["lengths"])
  except (OSError, ValueError, KeyError) as error:
    raise ValueError(
      f"{path} is damaged ({error}); delete it, and it is computed again."
    ) from error
  return dict(zip(keys.tolist(), np.split(values, ends[:-1]), strict=True))


def _save(path: Path, known: dict[str, np.ndarray]) -> None:
  path.parent.mkdir(exist_ok=True)
  temporary = path.with_suffix(".tmp.npz")
  with disk.naming_full_disk(path):
    np.savez(
      temporary,
      keys=np.asarray(list(known)),
      values=np.concatenate(list(known.values())).astype(np.float32),
      lengths=np.asarray([len(v) for v in known.values()]),
    )
    temporary.replace(path)
