"""What a run leaves to read: metrics.jsonl, samples.jsonl, reward_errors.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter

from rlhf_jax.sharding import processes
from rlhf_jax.training import disk

REWARD_ERRORS = "reward_errors.jsonl"  # appended to by training.rewarding


def open_log(workdir: str | os.PathLike, stage: str, *, resume_step: int) -> Log | Silent:
  """The log of a stage; of several processes only the first has one."""
  return Log(workdir, stage, resume_step=resume_step) if processes.is_first() else Silent()


class Silent:
  """A `Log` that keeps nothing."""

  def metrics(self, step: int, scalars: dict[str, float]) -> None: ...

  def samples(self, step: int, rows: list[dict]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class Log:
  """Appends to the files of one stage. On resume, lines after the checkpoint's step are cut first."""

  def __init__(self, workdir: str | os.PathLike, stage: str, *, resume_step: int):
    self.workdir, self.stage = Path(workdir), stage
    for name in ("metrics.jsonl", "samples.jsonl", REWARD_ERRORS):
      _cut(self.workdir / name, stage, resume_step)
    self._metrics = open(self.workdir / "metrics.jsonl", "a", encoding="utf-8")
    self._samples = open(self.workdir / "samples.jsonl", "a", encoding="utf-8")
    events = str(self.workdir / "tensorboard" / stage)
    self._events = SummaryWriter(events, purge_step=resume_step + 1)

  def metrics(self, step: int, scalars: dict[str, float]) -> None:
    """One line, one object; scalars named `group/name`."""
    self._write(self._metrics, {"step": step, "stage": self.stage, **scalars})
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)

  def samples(self, step: int, rows: list[dict]) -> None:
    for row in rows:
      self._write(self._samples, {"stage": self.stage, "step": step, **row})

  def flush(self) -> None:
    """Everything written so far is on disk, as it must be before a checkpoint claims it."""
    for file in (self._metrics, self._samples):
      with disk.naming_full_disk(Path(file.name)):
        file.flush()
        os.fsync(file.fileno())
    self._events.flush()

  def close(self) -> None:
    self.flush()
    self._metrics.close()
    self._samples.close()
    self._events.close()

  @staticmethod
  def _write(file, row: dict) -> None:
    with disk.naming_full_disk(Path(file.name)):
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
      file.flush()


def _cut(path: Path, stage: str, step: int) -> None:
  """Drops `stage`'s lines after `step`, and a last line that a kill cut in two."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").split("\n"):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if row["stage"] != stage or row["step"] <= step:
      kept.append(line + "\n")
  disk.replace(path, "".join(kept))
