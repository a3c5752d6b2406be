"""Writes rows as a file of any kind that is read."""

import json
from pathlib import Path

import datasets
import pandas as pd

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", "_folder")


def write(folder: Path, suffix: str, rows: list[dict]) -> str:
  """The path of a file of `rows` of the kind that `suffix` names; a table where the kind is one."""
  path = folder / f"rows{suffix}"
  names = list(dict.fromkeys(name for row in rows for name in row))
  table = {name: [row.get(name) for row in rows] for name in names}
  if suffix in (".jsonl", ".ndjson"):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif suffix == ".json":
    path.write_text(json.dumps(rows))
  elif suffix in (".csv", ".tsv"):
    cells = pd.DataFrame(
      {n: [json.dumps(v) if isinstance(v, list | dict) else v for v in table[n]] for n in names},
      dtype=object,
    )
    cells.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
  elif suffix == ".parquet":
    pd.DataFrame(table, dtype=object).to_parquet(path, index=False)
  else:
    datasets.Dataset.from_dict(table).save_to_disk(path)
  return str(path)
