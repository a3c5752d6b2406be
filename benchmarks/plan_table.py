"""The tables of docs/plan.md: what Llama shapes need on pods, and memory by option of the 8B shape.

    python benchmarks/plan_table.py                     compiles what docs/plan.jsonl lacks, and writes the tables
    python benchmarks/plan_table.py --only=8b_dpo       of rows whose name has that in it
    python benchmarks/plan_table.py --tables            only writes the tables

Every row is one run of `rlhf-jax plan` in a process of its own; what is compiled is not compiled again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOUND, PAGE = ROOT / "docs" / "plan.jsonl", ROOT / "docs" / "plan.md"
GIB = 1 << 30

TOPOLOGIES = {
  "v5e-16": ("v5e:4x4", 16),
  "v5e-256": ("v5e:16x16", 256),
  "v5p-128": ("v5p:4x4x4", 64),
}
SIZES = ("1b", "8b", "70b")


class Row(NamedTuple):
  name: str
  config: str
  topology: str
  only: str
  options: tuple[str, ...]


def pods() -> list[Row]:
  """256 pairs, or prompts, a step; one pair a chip at a time, and for PPO four rows on eight chips."""
  rows = []
  for size in SIZES:
    for pod, (topology, chips) in TOPOLOGIES.items():
      dpo = (f"mesh.fsdp={chips}", f"dpo.accumulate={256 // chips}", *other_stages(chips))
      rows.append(Row(f"{size}_dpo on {pod}", f"{size}_dpo", topology, "dpo", dpo))
      shards = chips // 8
      parts = 256 // (4 * shards)
      ppo = ("mesh.tensor=8", f"mesh.fsdp={shards}", f"ppo.accumulate={parts}")
      ppo = (*ppo, *other_stages(shards))
      rows.append(
        Row(f"{size}_ppo_lora on {pod}", f"{size}_ppo_lora", topology, "rollout,ppo", ppo)
      )
  return rows


def other_stages(shards: int) -> tuple[str, ...]:
  """Their batches have to divide as well; 16 parts, the experiment's, do over 16 shards."""
  parts = 256 // shards
  return () if parts >= 16 else (f"sft.accumulate={parts}", f"reward_model.accumulate={parts}")


FLAGS = {  # of the 8B shape on v5e-16: the row's name, and what it changes
  "DPO as above": ("dpo", ()),
  "without remat": ("dpo", ("model.remat=false",)),
  "remat_policy='attention_saveable'": ("dpo", ("model.remat_policy=attention_saveable",)),
  "remat_policy='attention_and_residual_saveable'": (
    "dpo",
    ("model.remat_policy=attention_and_residual_saveable",),
  ),
  "remat_policy='attention_and_residual_offloadable'": (
    "dpo",
    ("model.remat_policy=attention_and_residual_offloadable",),
  ),
  "two pairs at a time": ("dpo", ("dpo.accumulate=8",)),
  "dpo.momentum_dtype='bfloat16'": ("dpo", ("dpo.momentum_dtype=bfloat16",)),
  "dpo.optimizer='adafactor'": ("dpo", ("dpo.optimizer=adafactor",)),
  "dpo.optimizer_memory='host'": ("dpo", ("dpo.optimizer_memory=host",)),
  "mesh.tensor=8": ("dpo", ("mesh.fsdp=2", "mesh.tensor=8")),
  "mesh.tensor=8, mesh.sequence": ("dpo", ("mesh.fsdp=2", "mesh.tensor=8", "mesh.sequence=true")),
  "lora.rank=64": ("dpo", ("lora.rank=64",)),
  "lora.rank=64, lora.base=int8": ("dpo", ("lora.rank=64", "lora.base=int8")),
  "lora.rank=64, lora.base=int4": ("dpo", ("lora.rank=64", "lora.base=int4")),
}


def flags() -> list[Row]:
  base = ("mesh.fsdp=16", "dpo.accumulate=16")
  return [
    Row(f"8b, {name}", "8b_dpo", "v5e:4x4", only, (*base, *options))
    for name, (only, options) in FLAGS.items()
  ]


def key(row: Row) -> str:
  return " ".join((row.config, row.topology, row.only, *row.options))


def known() -> dict[str, list[dict]]:
  if not FOUND.exists():
    return {}
  return {row["key"]: row["programs"] for row in map(json.loads, FOUND.read_text().splitlines())}


def compile_row(row: Row) -> None:
  """Runs the command, and adds a line with all of its programs."""
  written = FOUND.with_suffix(".tmp")
  written.unlink(missing_ok=True)
  command = [
    *(sys.executable, "-m", "rlhf_jax", "plan", f"--config=experiments/llama.py:{row.config}"),
    *(f"--topology={row.topology}", f"--only={row.only}", f"--json={written}"),
    *(f"--config.{option}" for option in row.options),
  ]
  subprocess.run(command, cwd=ROOT, check=True)
  programs = [json.loads(line) for line in written.read_text().splitlines()]
  written.unlink()
  with FOUND.open("a") as file:
    file.write(json.dumps({"key": key(row), "programs": programs}) + "\n")


def line(name: str, found: dict) -> str:
  held = found["held"]
  state = held.get("parameters", 0) + held.get("optimizer", 0)
  frozen = sum(held.values()) - state - held.get("batch", 0)
  gib = lambda count: f"{count / GIB:.2f}"
  step = max(found["times"].values())
  sent = "" if found["sent"] is None else gib(sum(found["sent"].values()))
  verdict = "yes" if found["fits"] else "**no**"
  each = (
    name,
    found["name"],
    gib(state),
    gib(frozen),
    gib(found["temporaries"]),
    gib(found["memory"]),
  )
  rest = (
    verdict,
    f"{found['asked']:.2e}",
    sent,
    f"{step:.2f} s",
    found["bound"],
    f"{found['seconds']:.0f} s",
  )
  return "| " + " | ".join((*each, *rest)) + " |"


HEADING = (
  "| | program | state | frozen, beside | temporaries | all of a chip | fits | operations | sent | at least | bound by "
  "| compiled in |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(rows: list[Row]) -> str:
  found = known()
  lines = [line(row.name, program) for row in rows for program in found.get(key(row), ())]
  return "\n".join((HEADING, *lines))


def write_tables() -> None:
  page = PAGE.read_text()
  for name, rows in (("pods", pods()), ("flags", flags())):
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    page = f"{before}{begin}\n{table(rows)}\n{end}{rest.partition(end)[2]}"
  PAGE.write_text(page)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="rows whose name has this in it")
  parser.add_argument("--tables", action="store_true", help="compile nothing")
  args = parser.parse_args()
  for row in () if args.tables else (*pods(), *flags()):
    if args.only in row.name and key(row) not in known():
      print(row.name, flush=True)
      compile_row(row)
      write_tables()
  write_tables()


if __name__ == "__main__":
  main()
