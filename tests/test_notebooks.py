"""The notebooks run from top to bottom as they were committed, and are committed with their outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws_what_it_was_committed_with(path, tmp_path, monkeypatch):
  for folder in ("notebooks", "experiments"):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
  committed = nbformat.read(path, as_version=4)
  run = nbformat.read(tmp_path / "notebooks" / path.name, as_version=4)
  nbclient.NotebookClient(
    run, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
  ).execute()
  assert _figures(run) == _figures(committed) and sum(_figures(committed)) > 0


def _figures(notebook) -> list[int]:
  """How many figures each code cell shows."""
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  return [sum("image/png" in output.get("data", {}) for output in c.outputs) for c in cells]
