"""Curves of a comparison: of which variants, over which updates, and the mean over seeds as far as all have come."""

import json

import numpy as np
import pytest
from matplotlib import image

from rlhf_jax.report import comparison, curves

RESULTS = {
  "sft": dict(score=0.3, score_low=0.2, score_high=0.4, length=8.0),
  "dpo": dict(score=0.5, score_low=0.4, score_high=0.6, length=3.0, kl_exact=2.0),
  "ppo": dict(score=0.9, score_low=0.8, score_high=1.0, length=3.5, kl_exact=1.5),
}


def log(folder, name: str, scores, updates_a_step: int = 4, kl: bool = True) -> None:
  """metrics.jsonl of a variant, measured every second step."""
  workdir = folder / "variants" / name
  workdir.mkdir(parents=True)
  rows = []
  for step in range(1, 2 * len(scores) + 1):
    row = {"step": step, "stage": name, "loss/total": 1.0}
    if step % 2 == 0:
      row |= {"eval/score": scores[step // 2 - 1], "eval/updates": step * updates_a_step}
      row |= {"eval/kl_exact": step / 10} if kl else {}
    rows.append(json.dumps(row) + "\n")
  (workdir / "metrics.jsonl").write_text("".join(rows))


@pytest.fixture
def seeds(tmp_path):
  """The folders of two seeds, of which the second has not finished."""
  folders = [tmp_path / "seed_0", tmp_path / "seed_1"]
  log(folders[0], "ppo", [0.5, 0.7, 0.9])
  log(folders[1], "ppo", [0.7, 0.9])
  log(folders[0], "dpo", [0.4, 0.5], updates_a_step=1)
  return folders


def test_a_curve_is_over_the_updates_at_which_it_was_measured(seeds):
  first, second = curves.read_curves(seeds, "ppo", "eval/score")
  assert first.steps.tolist() == [8, 16, 24] and first.values.tolist() == [0.5, 0.7, 0.9]
  assert second.steps.tolist() == [8, 16]
  (only,) = curves.read_curves(seeds, "dpo", "eval/score")
  assert only.steps.tolist() == [2, 4]
  assert curves.read_curves(seeds, "kto", "eval/score") == []


def test_the_mean_goes_as_far_as_all_seeds_have_come(seeds):
  line = curves.mean_curve(curves.read_curves(seeds, "ppo", "eval/score"))
  assert line.steps.tolist() == [8, 16]
  np.testing.assert_allclose(line.values, [0.6, 0.8], rtol=1e-12)


@pytest.mark.parametrize("kl", [True, False])
def test_curves_are_drawn_where_a_variant_was_measured(tmp_path, kl):
  log(tmp_path, "ppo", [0.5, 0.9], kl=kl)
  path = curves.write_curves(tmp_path, [RESULTS], [tmp_path])
  assert path == tmp_path / "curves.png"
  height, width, _ = image.imread(path).shape
  assert (width > 2.5 * height) == kl  # the KL has a panel of its own


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path):
  assert curves.write_curves(tmp_path, [RESULTS], [tmp_path]) is None
  written = comparison.write_comparison(tmp_path, RESULTS)
  assert [path.name for path in written] == ["comparison.md", "comparison.png"]


def test_a_comparison_of_several_seeds_draws_their_curves(seeds):
  written = comparison.write_comparison(seeds[0].parent, [RESULTS, RESULTS], seeds)
  assert [path.name for path in written] == ["comparison.md", "comparison.png", "curves.png"]


def test_checked_answers_order_a_comparison_by_score_after_sft():
  rows = comparison.table([RESULTS]).splitlines()
  assert rows[0] == "| variant | score | KL from SFT, nats | tokens |"
  assert [row.split(" | ")[0] for row in rows[2:]] == ["| sft", "| ppo", "| dpo"]
  assert "0.900 (0.800–1.000)" in rows[3] and "| – |" in rows[2]
  other = {name: {**row, "score": row["score"] - 0.1} for name, row in RESULTS.items()}
  assert "0.850 (0.800–0.900)" in comparison.table([RESULTS, other])
