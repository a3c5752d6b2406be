"""Files of a run directory: replaced whole, and what is said when one is broken or the disk is full.

Of several processes the first alone writes. What it has written the others learn by `processes.from_first`, or once they have
waited for it.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax.sharding import processes

SPARE = 1 << 20  # bytes left for logs


def replace(path: Path, text: str) -> None:
  """Writes `path` anew: whoever reads it finds the old text or the new, whole."""
  if not processes.is_first():
    return
  temporary = path.with_suffix(".tmp")
  with naming_full_disk(path):
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """`replace` with JSON Lines, an object a line."""
  replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """More lines for a JSON Lines file, which is made with the first of them."""
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  if lines and processes.is_first():
    with naming_full_disk(path), open(path, "a", encoding="utf-8") as file:
      file.write("".join(lines))


def rows(path: Path) -> list[dict]:
  """The objects of a JSON Lines file that was written by `replace_rows`."""
  # Not splitlines(): text may hold U+2028 and other characters that it takes for the end of a line.
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@contextmanager
def naming_full_disk(path: Path):
  """Within, a full disk raises OSError that names `path` and what to do."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise OSError(
      error.errno,
      f"the disk is full while writing {path}; free some space and run the same command again, "
      "which goes on from the last checkpoint",
    ) from error


def assert_room(folder: Path, num_bytes: int, what: str) -> None:
  """Raises OSError when the disk of `folder` has no room for `what` of `num_bytes`."""
  free = shutil.disk_usage(folder).free
  if free < num_bytes + SPARE:
    raise OSError(
      errno.ENOSPC,
      f"{what} needs {num_bytes / 1e6:.0f} MB and the disk of {folder} has {free / 1e6:.0f} MB "
      "left; free some space and run the same command again",
    )
