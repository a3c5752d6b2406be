"""What a run directory knows of itself: its config, which stages are finished, and the results."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax.sharding import processes
from rlhf_jax.training import disk

RECOVERY = (
  "delete stages.json, results.json and config.json in that folder and run the same command again: "
  "what is finished is restored from its checkpoints."
)


class RunDir:
  """`stages.json` records each stage's own config, seconds and whether it is finished; `results.json`
  is flat. Both are replaced whole, never half written."""

  def __init__(self, workdir: Path):
    self.workdir = workdir
    if workdir.exists() and not workdir.is_dir():
      raise FileExistsError(f"{workdir} is a file; give a folder as --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    self.stages: dict[str, dict] = _read(workdir / "stages.json")
    self.results: dict[str, float] = _read(workdir / "results.json")

  @property
  def config(self) -> dict[str, Any]:
    """The config of the last run here. Raises FileNotFoundError where there was none."""
    path = self.workdir / "config.json"
    if not path.exists():
      raise FileNotFoundError(f"{path} does not exist; is this the --workdir of a run that began?")
    return _read(path)

  def save_config(self, config: Mapping[str, Any]) -> None:
    _write(self.workdir / "config.json", config)

  def save_data(self, files: Mapping[str, str]) -> None:
    """`data.json`: of each file that the run reads, named by its option, the path and the SHA-256 hash of its bytes."""
    if not processes.is_first():
      return
    known = {name: {"path": path, "sha256": _sha256(Path(path))} for name, path in files.items()}
    _write(self.workdir / "data.json", known)

  def finished(self, stage: str) -> bool:
    return self.stages.get(stage, {}).get("finished", False)

  def assert_same(self, stage: str, sections: Mapping[str, Any]) -> None:
    """Raises ValueError when `stage` was begun here with something else than `sections`."""
    before = _flat(self.stages.get(stage, {}).get("config", {}))
    now = _flat(_plain(sections))
    for name in sorted(before.keys() | now.keys()) if before else ():
      if before.get(name) != now.get(name):
        raise ValueError(
          f"{self.workdir} ran stage {stage} with {name}={before.get(name, 'unset')!r}, and now it "
          f"is {now.get(name, 'unset')!r}; set it back, or use another --workdir."
        )

  @contextmanager
  def timed(self, stage: str, sections: Mapping[str, Any] | None = None):
    """Notes what `stage` is run with; adds the wall time within, also when it is interrupted; marks it finished."""
    start = time.perf_counter()
    begun = {"config": _plain(sections or {}), "seconds": 0.0, "finished": False}
    entry = self.stages.setdefault(stage, begun)
    again = entry["finished"]
    _write(self.workdir / "stages.json", self.stages)
    try:
      yield
      entry["finished"] = True
    finally:
      if not again:  # restoring a finished stage is not training it
        entry["seconds"] += time.perf_counter() - start
      _write(self.workdir / "stages.json", self.stages)
      self.add({})

  def add(self, found: Mapping[str, float]) -> None:
    """Adds to results.json, with seconds and peak memory so far."""
    seconds = {f"seconds/{stage}": entry["seconds"] for stage, entry in self.stages.items()}
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    before = self.results.get("memory/peak_mb", 0.0)
    self.results = {
      **self.results,
      **found,
      **seconds,
      "seconds/total": sum(seconds.values()),
      "memory/peak_mb": max(before, peak),
    }
    _write(self.workdir / "results.json", self.results)


def _read(path: Path) -> dict:
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error}); {RECOVERY}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, not an object; {RECOVERY}")
  return value


def _write(path: Path, value: Mapping) -> None:
  disk.replace(path, json.dumps(value, indent=2, sort_keys=True, default=list) + "\n")


def _plain(sections: Mapping[str, Any]) -> dict:
  """`sections` as they are read back from a file: tuples are lists."""
  return json.loads(json.dumps(sections))


def _flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flat(value, f"{prefix}{name}."))
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def _sha256(path: Path) -> str:
  """Of a file's bytes, or of those of a folder's files in the order of their names."""
  digest = hashlib.sha256()
  for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
    with open(file, "rb") as opened:
      while chunk := opened.read(1 << 20):
        digest.update(chunk)
  return digest.hexdigest()
