"""The benchmark: one tiny case in full, and what is done with results, by hand."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cost, host, ragged, run, tables
from benchmarks.cases import SHAPES, Case
from benchmarks.timings import Timings

ROOT = Path(__file__).parent.parent.parent
PROMISED = """library version model dtype set task shape options median_s min_s max_s times n tokens tokens_per_s peak_mb compile_s
compilations recompilations flops flop_per_s share_of_peak bytes other_cores machine date""".split()


def test_a_case_prints_what_it_promises_and_compiles_nothing_anew():
  command = [sys.executable, "-m", "benchmarks.case", "sft", "XS", "--warmup=2", "--steps=3"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert set(PROMISED) <= set(found)
  assert len(found["times"]) == found["n"] == 3
  assert found["tokens"] == 3 * 4 * 24
  assert found["recompilations"] == 0 < found["compilations"]


def test_a_case_that_the_file_holds_is_skipped_and_one_that_failed_is_tried_again(
  tmp_path, monkeypatch
):
  said = {"median_s": 0.5, "wall_s": 2.0}
  outcomes = iter([said, {"error": "code 1: no", "wall_s": 1.0}, said])
  asked = []

  def run_one(job, timeout):
    asked.append(job.task)
    return {"key": job.key} | next(outcomes)

  monkeypatch.setattr(run, "run_one", run_one)
  file = tmp_path / "results.jsonl"
  options = ["--models=XS", "--tasks=sft,rm", "--dtypes=bfloat16", f"--results={file}"]
  assert run.main(options) == 1
  assert run.main(options) == 0
  assert run.main(options) == 0
  assert asked == ["sft", "rm", "rm"]


def test_a_processor_without_bfloat16_is_another_machine(tmp_path):
  said = "model name\t: A fast one\nflags\t\t: fpu avx2 {}\n"
  for flags, name in (
    ("avx512f", "A fast one without bfloat16 units"),
    ("avx512_bf16", "A fast one"),
  ):
    (tmp_path / "cpuinfo").write_text(said.format(flags))
    assert host.processor(tmp_path / "cpuinfo") == name
  (tmp_path / "cpuinfo").write_text("Features\t: fp asimd bf16\n")  # no name, as on Arm
  assert host.processor(tmp_path / "cpuinfo") == platform.machine()


def test_libraries_take_turns_case_by_case():
  args = run.parse(["--libraries=ours,trl,tunix", "--models=M", "--tasks=rm,gen", "--rounds=2"])
  turns = [(job.round, job.task, job.library, job.dtype) for job in run.matrix(args)]
  rm = [("rm", "ours", "float32"), ("rm", "trl", "float32"), ("rm", "ours", "bfloat16")]
  assert turns[:4] == [(0, *turn) for turn in (*rm, ("rm", "trl", "mixed"))]
  assert [turn[0] for turn in turns] == sorted(turn[0] for turn in turns)


def row(library, dtype, seconds, **others):
  job = run.Job(library, "sft", "S", dtype, "fixed")
  about = {"machine": "m", "version": "v", "date": "d", "other_cores": 0.0}
  timed = {"times": [seconds, 9.0, seconds], "n": 3, "tokens": 300, "peak_mb": 10}
  return {"key": job.key, "case": job._asdict()} | about | timed | others


def test_a_ratio_is_to_the_better_peer_at_its_best_dtype():
  rows = [
    row("ours", "float32", 2.0),
    row("ours", "bfloat16", 0.5),
    row("trl", "float32", 1.5),
    row("trl", "mixed", 1.25),
    row("tunix", "float32", 3.0),
    row("bare", "bfloat16", 0.4, peak_mb=8),
  ]
  timings = Timings(rows)
  assert timings.ratio("sft", "S", "fixed") == pytest.approx(1.25 / 0.5)
  found = tables.tables(timings, [])
  assert "| S SFT step | 2 s | 0.5 s | 1.25 s (mixed) | 3 s (float32) |" in found["fixed"]
  assert "**2.50x**" in found["fixed"]
  assert "0.80 times as fast as the bare loop" in found["shortfalls"]
  assert "1.25 times the memory of the bare loop" in found["shortfalls"]
  page = "a\n<!-- benchmark fixed -->\nearlier\n<!-- end -->\nb\n"
  filled = tables.filled(page, found)
  assert "earlier" not in filled and found["fixed"] in filled and filled.endswith("\nb\n")
  assert tables.filled(filled, found) == filled


def test_flops_are_those_of_a_forward_and_two_backward():
  a = dict(layers=3, d=8, heads=4, kv_heads=2, ffn=5, vocab=11)
  # q, k, v, o: 8 x (8 + 4 + 4 + 8); gate, up, down: 3 x 8 x 5
  assert cost.layer_weights(a) == 3 * (8 * 24 + 120)
  # 2 tokens: 3 pairs of query and key a head, scores and values; logits of one token
  assert cost.forward(a, 2, 1) == 2 * 936 * 2 + 3 * (4 * 8 * 3) + 2 * 8 * 11
  case = Case("sft", "XS", "float32", "fixed", 1, 2, {}, False, False, "", ())
  both = [ragged.Row(2, (3,)), ragged.Row(1, (1,))]
  whole = sum(3 * cost.forward(case.architecture, T, T) for T in (5, 2))
  assert cost.flops(case, both) == whole


def test_ragged_rows_are_the_same_for_everyone_and_within_their_limits():
  shape = SHAPES["tasks"]["dpo"]["S"]
  few, many = (ragged.rows("dpo", shape, steps) for steps in (2, 3))
  assert many[:2] == few
  prompt, response = ragged.limits("dpo", shape)
  rows = sum(many, [])
  assert max(row.prompt for row in rows) <= prompt
  assert max(max(row.responses) for row in rows) <= response
  assert len({row.longest for row in rows}) > 10
