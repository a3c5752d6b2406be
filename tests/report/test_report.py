import html.parser
import json
import re

import numpy as np
import pytest
from matplotlib import image

from rlhf_jax import report
from rlhf_jax.report import calibration, charts, intervals, tables, words
from rlhf_jax.report.run import Run, Series, read_run

RESULTS = {
  "reward_model/auc": 0.931,
  "reward_model/auc_low": 0.914,
  "reward_model/auc_high": 0.948,
  "reward_model/auc_102_to_300_tokens": 0.9,
  "reward_model/auc_13_to_31_tokens": 0.94,
  "reward_model/auc_gain": 0.059,
  "reward_model/auc_gain_low": 0.038,
  "reward_model/auc_gain_high": 0.08,
  "baseline/auc": 0.872,
  "sft/reward": 0.0,
  "sft/kl": 0.0,
  "sft/distinct_2": 0.7,
  "dpo/reward": 1.2,
  "best_of_4/reward": 0.9,
  "best_of_4/kl_bound": 0.636,
  "ppo/judge_agreement": 0.78,
  "ppo/judge_spearman": 0.69,
  "ppo/reward": 1.44,
  "ppo/kl": 8.9,
  "ppo/win_rate": 0.742,
  "ppo/win_rate_low": 0.697,
  "ppo/win_rate_high": 0.785,
  "ppo/distinct_2": 0.6,
  "ppo/distinct_2_ratio": 0.857,
  "seconds/ppo": 558.0,
  "seconds/total": 1290.0,
  "memory/peak_mb": 4870.0,
}


def lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def workdir(tmp_path):
  """A finished run of three stages."""
  rows = [
    {"stage": stage, "step": step, "loss/total": 3.0 - step / 20, "time/step": 0.5}
    for stage in ("sft", "reward_model")
    for step in range(1, 8)
  ]
  rows += [
    {
      "stage": "ppo",
      "step": step,
      "rewards/mean": step / 50,
      "policy/kl_k1": step / 10,
      "policy/kl_exact": step / 11,
      "value/loss": 1 / step,
      "optim/grad_norm": 1.0,
    }
    for step in range(1, 51)
  ]
  samples = [
    {"stage": "ppo", "step": s, "prompt": f"p{s}", "response": "r", "reward": 0.5}
    for s in (1, 2, 3)
  ]
  (tmp_path / "evaluation").mkdir()
  for policy, text, reward in (("sft", "is bad", -1.0), ("ppo", "is good", 2.0)):
    row = {"prompt": "The tea", "response": text, "reward": reward}
    (tmp_path / "evaluation" / f"{policy}.jsonl").write_text(lines([row]))
  stages = {"sft": {"finished": True}, "ppo": {"finished": True}}
  (tmp_path / "stages.json").write_text(json.dumps(stages))
  (tmp_path / "metrics.jsonl").write_text(lines(rows))
  (tmp_path / "samples.jsonl").write_text(lines(samples))
  (tmp_path / "results.json").write_text(json.dumps(RESULTS))
  (tmp_path / "config.json").write_text(json.dumps({"algorithm": {"name": "ppo"}, "seed": 3}))
  return tmp_path


class Balanced(html.parser.HTMLParser):
  """Fails on a tag that is closed out of order or never."""

  VOID = {"meta", "line", "path", "circle"}

  def __init__(self):
    super().__init__()
    self.open, self.seen = [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def page(workdir) -> str:
  return report.write_report(workdir).read_text(encoding="utf-8")


def parsed(text) -> Balanced:
  parser = Balanced()
  parser.feed(text)
  assert parser.open == []
  return parser


def test_the_page_holds_results_curves_stages_and_samples(workdir):
  text = page(workdir)
  for expected in ("Results", "PPO: curves", "Reward model: curves", "Stages", "Samples", "74.2",
                   "KL from the reference", "Value loss", "is good", "21 min 30 s", "4.87\u00a0GB"):  # fmt: skip
    assert expected in text
  assert "not finished" not in text


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(workdir):
  text = page(workdir)
  tags = parsed(text).seen
  assert not {"link", "script", "img", "iframe"} & {tag for tag, _ in tags}
  assert not [attrs for _, attrs in tags if {"src", "href"} & attrs.keys()]
  assert not re.search(r"url\(|@import|https?:", text)


def test_markup_in_samples_and_names_is_shown_and_not_run(workdir):
  evil = "<script>alert(1)</script>"
  row = {"stage": evil, "step": 1, "prompt": evil, "response": evil, "reward": 1.0}
  (workdir / "samples.jsonl").write_text(lines([row]))
  (workdir / "evaluation" / "sft.jsonl").write_text(lines([row]))
  (workdir / "metrics.jsonl").write_text(lines([{"stage": evil, "step": 1, evil: 1.0}]))
  (workdir / "config.json").write_text(json.dumps({evil: evil}))
  text = page(workdir)
  assert evil not in text
  assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
  assert "script" not in {tag for tag, _ in parsed(text).seen}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "results.json", "config.json"])
def test_a_run_with_a_file_missing_still_has_a_page(workdir, name):
  (workdir / name).unlink()
  parsed(page(workdir))


def test_an_empty_workdir_has_a_page_that_says_so(tmp_path):
  assert "nothing trained yet" in page(tmp_path)


def test_an_unfinished_run_names_its_latest_stage(workdir):
  (workdir / "stages.json").write_text('{"sft": {"finished": true}, "ppo": {"finished": false}}')
  assert "not finished; latest stage: PPO" in page(workdir)


def test_a_line_cut_by_a_kill_is_left_out_and_named(workdir):
  with open(workdir / "metrics.jsonl", "ab") as file:
    file.write(b'{"stage": "ppo", "st\xff')
  run = read_run(workdir)
  assert run.notes == ["metrics.jsonl: left out what is not a JSON object, line 65."]
  assert run.metrics["ppo"]["rewards/mean"].steps[-1] == 50
  assert "line 65" in page(workdir)


@pytest.mark.parametrize("content, what", [("{", "is not JSON"), ("[1]", "holds a list")])
def test_broken_results_are_noted(workdir, content, what):
  (workdir / "results.json").write_text(content)
  assert what in read_run(workdir).notes[0]
  parsed(page(workdir))


def test_a_missing_workdir_is_an_error_with_its_name(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
    report.write_report(tmp_path / "nowhere")


def test_values_that_are_not_numbers_are_not_results(workdir):
  (workdir / "results.json").write_text('{"a/b": 1, "c/d": "x", "e/f": NaN, "g/h": true}')
  assert read_run(workdir).results == {"a/b": 1.0}


def test_a_step_logged_again_counts_once_with_its_last_value(tmp_path):
  rows = [{"stage": "sft", "step": s, "loss/total": v} for s, v in ((2, 5.0), (1, 4.0), (2, 3.0))]
  (tmp_path / "metrics.jsonl").write_text(lines(rows))
  series = read_run(tmp_path).metrics["sft"]["loss/total"]
  assert (list(series.steps), list(series.values)) == ([1, 2], [4.0, 3.0])


def test_policies_stand_in_order_and_empty_columns_are_left_out():
  table = tables.policy_table({"mine/reward": 0.5, **RESULTS})
  assert [row[0].text for row in table.rows] == ["SFT", "Best of 4", "PPO", "DPO", "Mine"]
  assert table.headings == ["Policy", "Reward", "KL, nats", "Wins, TF-IDF judge", "Distinct\u20112"]
  ppo = table.rows[2]
  assert [cell.text for cell in ppo] == ["PPO", "1.44", "8.90", "74.2\u00a0%", "0.600"]
  assert [cell.detail for cell in ppo] == ["", "", "", "69.7–78.5", "× 0.86"]
  assert table.rows[3][2].text == words.NONE
  assert table.rows[1][2].text == "≤ 0.64"


CHECKED = {
  "sft/score": 0.35,
  "sft/score_low": 0.3,
  "sft/score_high": 0.4,
  "grpo/score": 0.62,
  "grpo/score_low": 0.55,
  "grpo/score_high": 0.68,
  "grpo/score_gain": 0.27,
  "grpo/score_gain_low": 0.2,
  "grpo/score_gain_high": 0.33,
}


def test_scores_of_a_task_that_can_be_checked_stand_with_their_gain_over_sft():
  table = tables.policy_table(CHECKED)
  assert table.headings == ["Policy", "Score", "Score over SFT"]
  sft, grpo = ([tuple(cell) for cell in row] for row in table.rows)
  assert sft == [("SFT", ""), ("0.350", "0.300 to 0.400"), (words.NONE, "")]
  assert grpo[1:] == [("0.620", "0.550 to 0.680"), ("0.270", "0.200 to 0.330")]
  run = Run("checked", {}, {}, [], {}, CHECKED, {}, finished=True, notes=[])
  (tile,) = tables.headlines(run)
  assert tile[0] == "0.620" and "0.270 over SFT" in tile[2] and "0.200 to 0.330" in tile[2]


def test_scores_are_placed_about_sfts_and_may_leave_the_unit_interval():
  figure = intervals.scores(CHECKED)
  assert [row.label for row in figure.rows] == ["SFT", "GRPO"]
  assert (figure.low_label, figure.high_label) == ("0.2", "0.7")
  np.testing.assert_allclose(figure.reference, 30.0)
  wide = intervals.scores({"sft/score": -1.0, "grpo/score": 2.0})
  assert 0 < wide.rows[0].at == wide.reference < 10 and wide.rows[1].at == 100
  assert intervals.scores(RESULTS) is None


def test_win_rates_are_placed_on_a_common_track():
  # From 0.4 (a tenth under the line of no difference) to 0.8, the next tenth over 0.785.
  figure = intervals.win_rates(RESULTS)
  assert (figure.low_label, figure.high_label) == ("0.4", "0.8")
  np.testing.assert_allclose(figure.reference, 25.0)
  np.testing.assert_allclose(
    [figure.rows[0].low, figure.rows[0].at, figure.rows[0].high], [74.25, 85.5, 96.25]
  )


def test_a_policy_that_always_loses_stays_on_the_track():
  figure = intervals.win_rates({"ppo/win_rate": 0.1})
  assert 0 <= figure.rows[0].at <= figure.reference <= 100


def test_scorers_put_the_reward_model_first_with_its_lengths_in_order_below():
  figure = intervals.scorers(dict(sorted({"vader/auc": 0.7, **RESULTS}.items())))
  labels = [row.label for row in figure.rows]
  expected = ["Reward model", "· 13–31 tokens", "· 102–300 tokens", "TF-IDF baseline", "VADER"]
  assert labels == expected
  assert figure.rows[0].text == "0.931 (0.914–0.948)"
  assert "paired: 0.059 (0.038–0.080)." in figure.remark
  assert (
    "PPO's and SFT's answers to 78.0\u00a0% of prompts (rank correlation 0.690)" in figure.remark
  )


def test_stages_show_steps_time_and_the_whole_run(workdir):
  results = {**RESULTS, "seconds/ppo_evaluation": 90.0, "seconds/setup": 6.0}
  table = tables.stage_table(read_run(workdir)._replace(results=results))
  assert [[cell.text for cell in row] for row in table.rows] == [
    ["Setup", "–", "6.0 s", "–"],
    ["SFT", "7", "3.5 s", "–"],  # the sum of its steps
    ["Reward model", "7", "3.5 s", "–"],
    ["PPO", "50", "9 min 18 s", "–"],  # as the results say
    ["PPO evaluation", "–", "1 min 30 s", "–"],
    ["Whole run", "–", "21 min 30 s", "4.87\u00a0GB"],
  ]


def test_first_answers_to_one_prompt_stand_side_by_side_and_the_best_is_marked():
  row = lambda prompt, response, reward: dict(prompt=prompt, response=response, reward=reward)
  answers = {
    "dpo": [row("p", "c", 1.5)],
    "ppo": [row("p", "b", 2.0), row("q", "e", 0.0)],
    "sft": [row("p", "a", 1.0), row("p", "f", 9.0)],
  }
  first, second = tables.evaluation_samples(answers)
  assert [tuple(answer) for answer in first.answers] == [
    ("SFT", "a", "+1.00", False),
    ("PPO", "b", "+2.00", True),
    ("DPO", "c", "+1.50", False),
  ]
  assert [tuple(answer) for answer in second.answers] == [("PPO", "e", "+0.00", False)]


def test_training_samples_are_of_the_first_and_last_step(workdir):
  ((stage, table),) = tables.training_samples(read_run(workdir).samples)
  assert stage == "PPO"
  assert [row[1].text for row in table.rows] == ["p1", "p3"]


def test_every_metric_of_a_stage_is_drawn_once():
  series = Series(np.arange(3), np.arange(3.0))
  names = ["policy/kl_k1", "policy/kl_k3", "value/loss", "time/rollout", "optim/a", "rewards/std"]
  group = charts.stage_charts({name: series for name in names}, "ppo")
  assert [c.title for c in group.named] == ["KL from the reference", "Value loss"]
  assert [c.label for c in group.named[0].curves] == ["k1", "k3"]
  assert [c.title for c in group.others] == ["optim/a", "rewards/std", "time/rollout"]


def test_a_curve_runs_from_corner_to_corner_of_its_area():
  chart = charts.line_chart("x", {"a/b": Series(np.asarray([0, 10]), np.asarray([0.0, 1.0]))})
  margin = 0.06 / 1.12 * (charts.BOTTOM - charts.TOP)
  bottom, top = charts.BOTTOM - margin, charts.TOP + margin
  assert chart.curves[0].raw == f"M{charts.LEFT:.1f} {bottom:.1f}L{charts.RIGHT:.1f} {top:.1f}"
  assert [t.label for t in chart.y_ticks] == ["0", "0.25", "0.5", "0.75", "1"]


def test_a_curve_is_lifted_off_where_it_is_not_finite_and_lone_points_are_dots():
  values = np.asarray([0.0, 1.0, np.nan, 0.5, np.inf])
  chart = charts.line_chart("x", {"a": Series(np.arange(5), values)})
  assert chart.curves[0].raw.count("M") == 2
  assert len(chart.curves[0].dots) == 1
  assert charts.line_chart("x", {"a": Series(np.arange(2), np.full(2, np.nan))}) is None


def test_one_early_peak_does_not_flatten_the_rest():
  values = np.concatenate([[-500.0], np.linspace(0, 1, 99)])
  chart = charts.line_chart("x", {"a": Series(np.arange(100), values)})
  assert {"0", "1"} <= {t.label for t in chart.y_ticks}
  assert chart.range == "−500 to 1"


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_a_constant_curve_is_drawn(value):
  chart = charts.line_chart("x", {"a": Series(np.arange(3), np.full(3, value))})
  assert "nan" not in chart.curves[0].raw and chart.y_ticks


def test_the_running_mean_keeps_a_line_and_the_length():
  line = 2.0 * np.arange(60) + 1
  mean = charts.running_mean(line)
  np.testing.assert_allclose(mean[3:-3], line[3:-3])
  assert mean.shape == line.shape


def test_long_curves_are_thinned():
  chart = charts.line_chart("x", {"a": Series(np.arange(5000), np.arange(5000.0))})
  assert chart.curves[0].raw.count("L") == charts.MOST_POINTS - 1


@pytest.mark.parametrize(
  "value, expected",
  [(0.0, "0"), (-0.0, "0"), (1234.0, "1,234"), (-3.14159, "−3.14"), (0.012345, "0.0123"),
   (123.456, "123"), (1e-7, "1.00e−07"), (float("nan"), "–"), (None, "–")],
)  # fmt: skip
def test_numbers_have_three_digits(value, expected):
  assert words.number(value) == expected


@pytest.mark.parametrize(
  "seconds, expected", [(4.25, "4.2 s"), (59.99, "1 min 00 s"), (725, "12 min 05 s"), (3720, "1 h 02 min")]
)  # fmt: skip
def test_durations_are_as_one_says_them(seconds, expected):
  assert words.duration(seconds) == expected


def test_the_picture_has_a_panel_for_what_there_is(workdir, tmp_path):
  widths = []
  for missing in (None, "results.json"):
    if missing:
      (workdir / missing).unlink()
    path = report.write_picture(workdir, tmp_path / "picture.png")
    widths.append(image.imread(path).shape[1])
  assert widths == [1920, 1280]


def test_a_picture_of_nothing_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no reward, KL or win rate to draw"):
    report.write_picture(tmp_path, tmp_path / "picture.png")


CURVE = {
  "stated": [0.55, 0.75, 0.95],
  "observed": [0.6, 0.7, 0.9],
  "low": [0.5, 0.55, 0.8],
  "high": [0.7, 0.8, 0.96],
  "count": [225, 25, 400],
  "error": 0.0525,
}


def test_calibration_is_drawn_against_the_diagonal(workdir):
  (workdir / "evaluation").mkdir(exist_ok=True)
  (workdir / "calibration.json").write_text(json.dumps(CURVE))
  drawn = calibration.reliability(CURVE)
  x = [point.x for point in drawn.points]
  assert x == sorted(x) and charts.LEFT < x[0] and x[-1] < charts.RIGHT
  # Pixels run down: the first bin is above the diagonal, the others below it.
  x1, y1, x2, y2 = drawn.diagonal
  on_diagonal = [y1 + (y2 - y1) * (p.x - x1) / (x2 - x1) for p in drawn.points]
  assert [p.y < y for p, y in zip(drawn.points, on_diagonal, strict=True)] == [True, False, False]
  assert all(p.high < p.y < p.low for p in drawn.points)
  assert [round(p.radius, 3) for p in drawn.points] == [4.5, 3.0, 6.0]
  page = report.write_report(workdir).read_text()
  assert "Expected calibration error 0.0525" in page and "25 pairs: stated 0.75" in page


@pytest.mark.parametrize("broken", [{}, {**CURVE, "low": [0.5]}, {**CURVE, "count": None}])
def test_a_broken_calibration_is_left_out(broken):
  assert calibration.reliability(broken) is None
