"""A custom reward: a Python function `(prompts, responses) -> floats` that may fail on some rows without harm to the rest."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("worker.py")
STARTING = 120.0  # seconds for a process to import the function


class Failed(Exception):
  """The function raised, took too long or returned no finite number for each row."""


class Function:
  """`PATH.py:NAME` or `package.module:NAME` in a process of its own, ended and begun again when it takes too long.

  A batch has `timeout` seconds. Where it fails its rows are tried one by one, with `row_timeout` seconds each, so that a bad
  row costs no other row its score.
  """

  def __init__(self, spec: str, *, timeout: float, row_timeout: float):
    self.spec, self.timeout, self.row_timeout = spec, timeout, row_timeout
    self._process: subprocess.Popen | None = None
    self._unread = b""

  def __call__(
    self, prompts: Sequence[str], responses: Sequence[str]
  ) -> tuple[np.ndarray, dict[int, str]]:
    """Scores float64[N], NaN where a row failed; and why, by row."""
    try:
      return self._score(prompts, responses, self.timeout), {}
    except Failed as failed:
      if len(responses) == 1:
        return np.asarray([np.nan]), {0: str(failed)}
    scores, errors = np.full(len(responses), np.nan), {}
    for row, pair in enumerate(zip(prompts, responses, strict=True)):
      try:
        scores[row] = self._score([pair[0]], [pair[1]], self.row_timeout)[0]
      except Failed as failed:
        errors[row] = str(failed)
    return scores, errors

  def start(self) -> None:
    """Begins the process unless it runs. Raises Failed where the function cannot be imported or called with two arguments."""
    if self._process is not None:
      return
    self._process = subprocess.Popen(
      [sys.executable, "-P", str(WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, "PYTHONHASHSEED": "0"},  # sets in the same order every time
      start_new_session=True,  # Ctrl-C stops the run, which stops this
    )
    try:
      self._ask({"function": self.spec, "path": sys.path}, STARTING)
    except Failed:
      self.close()
      raise

  def close(self) -> None:
    if self._process is None:
      return
    process, self._process, self._unread = self._process, None, b""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)  # and what it started
    process.wait()
    for pipe in (process.stdin, process.stdout):
      with contextlib.suppress(OSError):
        pipe.close()

  def _score(self, prompts: Sequence[str], responses: Sequence[str], seconds: float) -> np.ndarray:
    self.start()
    batch = {"prompts": list(prompts), "responses": list(responses)}
    seed = zlib.crc32(json.dumps(batch).encode())
    scores = self._ask({**batch, "seed": seed}, seconds)["scores"]
    if len(scores) != len(responses):
      raise Failed(f"it returned {len(scores)} scores for {len(responses)} responses")
    bad = [score for score in scores if not math.isfinite(score)]
    if bad:
      raise Failed(f"it returned {bad[0]}, which is not a finite number")
    return np.asarray(scores, np.float64)

  def _ask(self, request: dict, seconds: float) -> dict:
    """The reply to `request`. Raises Failed; the process is ended where it is late or has died."""
    try:
      self._process.stdin.write(json.dumps(request).encode() + b"\n")
      self._process.stdin.flush()
      reply = json.loads(self._line(time.monotonic() + seconds))
    except TimeoutError:
      self.close()
      raise Failed(f"it took longer than {seconds:g} s") from None
    except (EOFError, BrokenPipeError):
      code = self._process.wait()
      self.close()
      raise Failed(f"its process ended with code {code}") from None
    if "error" in reply:
      raise Failed(reply["error"])
    return reply

  def _line(self, deadline: float) -> bytes:
    output = self._process.stdout.fileno()
    while b"\n" not in self._unread:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([output], [], [], left)[0]:
        raise TimeoutError
      part = os.read(output, 1 << 16)
      if not part:
        raise EOFError
      self._unread += part
    line, _, self._unread = self._unread.partition(b"\n")
    return line
