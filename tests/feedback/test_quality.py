"""Agreement by hand and against published examples; reliability recovers what simulated annotators are."""

import math

import numpy as np
import pytest
from some_items import pairs

from rlhf_jax.feedback import export, quality, reliability, simulate
from rlhf_jax.feedback.export import Judgement
from rlhf_jax.feedback.project import Project, Question, parse_item
from rlhf_jax.feedback.simulate import Simulated
from rlhf_jax.feedback.store import Store

NAN = np.nan


def test_cohens_kappa_by_hand():
  # Observed agreement 0.7; expected 0.6 · 0.5 + 0.4 · 0.5 = 0.5.
  first = np.asarray([1, 1, 1, 1, 1, 1, 0, 0, 0, 0.0])
  second = np.asarray([1, 1, 1, 1, 0, 0, 1, 0, 0, 0.0])
  assert quality.cohen_kappa(first, second) == pytest.approx(0.4)


def test_linear_weights_forgive_neighbours():
  first, second = np.asarray([0, 1, 2.0]), np.asarray([1, 2, 1.0])
  assert quality.cohen_kappa(first, second, ordered=True) > quality.cohen_kappa(first, second)


def test_fleiss_kappa_by_hand():
  # Three annotators, two units: {a, a, b} and {b, b, b}. P = (1/3 + 1) / 2, shares 1/3 and 2/3, expected 5/9.
  codes = np.asarray([[0, 1], [0, 1], [1, 1.0]])
  assert quality.fleiss_kappa(codes) == pytest.approx((2 / 3 - 5 / 9) / (4 / 9))


def test_krippendorffs_alpha_is_that_of_his_own_example():
  # Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section C: four observers, twelve units.
  rows = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
  ]
  codes = np.asarray(rows, float)
  assert quality.alpha(codes, "nominal") == pytest.approx(0.743, abs=5e-4)
  assert quality.alpha(codes, "ordinal") == pytest.approx(0.815, abs=5e-4)
  assert quality.alpha(codes, "interval") == pytest.approx(0.849, abs=5e-4)


def test_what_nobody_shares_or_what_never_varies_is_not_defined():
  alone = np.asarray([[0, NAN], [NAN, 1.0]])
  alike = np.ones((2, 3))
  for codes in (alone, alike):
    assert math.isnan(quality.alpha(codes, "nominal"))
    assert math.isnan(quality.fleiss_kappa(codes))
  assert quality.alike(alike) == 1.0 and math.isnan(quality.alike(alone))


QUESTIONS = (
  Question("better", "pairs"),
  Question("order", "rankings"),
)


def judgement(item, annotator, **said):
  return Judgement(item, annotator, said, [0, 1], 0.0, 0.0, "")


def test_every_form_is_cut_into_units():
  one = parse_item({"id": "x", "prompt": "p", "answers": ["a b c"]}, Project("", ()))
  said = {
    "rates": {"helpful": 4, "kind": 2},
    "class": {"class": "good"},
    "mark": {"label": True},
    "spans": {"spans": [{"start": 2, "end": 3, "label": "wrong"}]},
    "text": {"text": "a b d"},
    "steps": {"labels": [True, None, False]},
  }
  scales = ({"name": "helpful", "low": 1, "high": 5}, {"name": "kind", "low": 1, "high": 5})
  questions = (
    Question("rates", "ratings", scales=scales),
    Question("class", "classes", classes=("poor", "good")),
    Question("mark", "marks"),
    Question("spans", "spans", categories=("rude", "wrong")),
    Question("text", "corrections"),
    Question("steps", "steps"),
  )
  expected = {
    "rates": [4, 2],
    "class": [1],
    "mark": [1],
    "spans": [0, 2, 0],
    "text": [],
    "steps": [1, 0],
  }
  project = Project("", questions)
  for question in questions:
    found = quality.units([judgement(one, "ann", **said)], question, project)
    np.testing.assert_array_equal(found.codes.ravel(), expected[question.name])


def labelled(tmp_path, annotators, count=60, overlap=4, seed=0, project=None, utility=None):
  """(store, judgements) of pairs of which the first is better by 2 in even items, and the second in odd ones."""
  project = project or Project("t", (Question("better", "pairs"),), overlap=overlap)
  store = Store(f"sqlite:///{tmp_path}/labels.sqlite", project)
  store.add_items(pairs(count, project))
  utility = utility or (lambda item: (2.0, 0.0) if int(item.id.split()[1]) % 2 == 0 else (0.0, 2.0))
  simulate.label_all(store, annotators, utility, seed=seed)
  return store, export.judgements(store)


def test_dawid_skene_finds_out_who_answers_blindly(tmp_path):
  people = {
    "good": Simulated(temperature=0.5),
    "fair": Simulated(),
    "careful": Simulated(temperature=0.6),
  }
  store, found = labelled(tmp_path, {**people, "blind": Simulated(noise=1.0)})
  question = store.project.questions[0]
  model = reliability.dawid_skene(found, question)
  assert model.skill["blind"] < 0.7 < min(model.skill[name] for name in people)
  right = lambda labels: np.mean(
    [labels[f"item {i}"].get(("first", "second")[i % 2], 0.0) > 0.5 for i in range(60)]
  )
  votes = reliability.majority(found, question)
  assert right(model.labels) >= right(votes.labels) and right(model.labels) > 0.9
  assert all(0 <= bits <= 2 for bits in model.difficulty.values())
  store.close()


def test_soft_labels_are_rows_that_training_reads(tmp_path):
  from rlhf_jax.data import feedback

  store, found = labelled(tmp_path, {"a": Simulated(), "b": Simulated()}, count=8, overlap=2)
  for method in reliability.METHODS:
    rows = reliability.soft_rows(found, store.project, method)
    assert len(rows) == 8
    for i, row in enumerate(rows):
      (pair,) = feedback.parse(row, f"row {i}", feedback.Layout())
      assert 0.5 <= pair.preference <= 1.0
  store.close()


def test_noisy_bradley_terry_finds_the_better_model_and_who_looks_at_the_side_alone(tmp_path):
  project = Project("t", (Question("better", "pairs"),), overlap=3)
  answers = [{"content": "good answer", "model": "new"}, {"content": "bad answer", "model": "old"}]
  items = [
    parse_item(
      {"id": f"item {i}", "prompt": str(i), "answers": answers[:: 1 if i % 2 else -1]}, project
    )
    for i in range(120)
  ]
  store = Store(f"sqlite:///{tmp_path}/labels.sqlite", project)
  store.add_items(items)
  better = lambda item: [2.0 * (a["model"] == "new") for a in item.answers]
  people = {"a": Simulated(), "b": Simulated(), "left": Simulated(position=8.0)}
  simulate.label_all(store, people, better)
  found = reliability.noisy_bradley_terry(export.judgements(store), project.questions[0])
  assert found.scores["new"] > found.scores["old"]
  assert min(found.skill["a"], found.skill["b"]) > max(found.skill["left"], 0.6), found
  store.close()


@pytest.mark.parametrize(
  "annotator, share",
  [
    (Simulated(temperature=0.0), 1.0),
    (Simulated(temperature=1.0), 1 / (1 + math.exp(-2))),
    (Simulated(noise=1.0), 0.5),
    (Simulated(noise=0.5, temperature=0.0), 0.75),
  ],
)
def test_simulated_annotators_are_right_as_often_as_they_should(annotator, share):
  rng, question, (item,) = np.random.default_rng(0), Question("q", "pairs"), pairs(1)
  said = [simulate.say(annotator, question, item, [0, 1], (2.0, 0.0), rng) for _ in range(4000)]
  right = np.mean([s["choice"] == "first" for s in said])
  assert right == pytest.approx(share, abs=4 * math.sqrt(0.25 / 4000))


def test_biases_of_simulated_annotators_show_in_the_overview(tmp_path):
  from rlhf_jax.feedback import overview

  equal = lambda item: (0.0, 0.0)
  store, found = labelled(
    tmp_path, {"left": Simulated(position=2.0)}, overlap=1, count=200, utility=equal
  )
  counts = overview.positions(found, store.project)["better"]
  assert counts["left"] / 200 == pytest.approx(1 / (1 + math.exp(-2)), abs=0.09)
  store.close()


def test_a_bias_to_length_prefers_the_longer():
  rng, question = np.random.default_rng(0), Question("q", "pairs")
  item = parse_item({"prompt": "p", "answers": ["x" * 80, "y" * 10]}, Project("", (question,)))
  said = [
    simulate.say(Simulated(length=1.0), question, item, [1, 0], (0.0, 0.0), rng)
    for _ in range(2000)
  ]
  assert np.mean([s["choice"] == "first" for s in said]) == pytest.approx(8 / 9, abs=0.03)


def test_ranking_scores_and_marks_follow_the_utility():
  rng = np.random.default_rng(0)
  item = parse_item({"prompt": "p", "answers": ["a", "b", "c"]}, Project("", ()))
  exact = Simulated(temperature=0.0)
  ranked = simulate.say(exact, Question("q", "rankings"), item, [2, 0, 1], (0.0, 3.0, 1.0), rng)
  assert ranked == {"ranks": [3, 1, 2]}
  scale = ({"name": "good", "low": 1, "high": 5},)
  rate = lambda u: simulate.say(exact, Question("q", "ratings", scales=scale), item, [0], (u,), rng)
  assert [rate(u)["good"] for u in (-9.0, 0.0, 9.0)] == [1, 3, 5]
  mark = lambda u: simulate.say(exact, Question("q", "marks"), item, [0], (u,), rng)
  assert [mark(u)["label"] for u in (-1.0, 1.0)] == [False, True]
  with pytest.raises(ValueError, match="do not answer questions of spans"):
    simulate.say(exact, Question("q", "spans"), item, [0], (0.0,), rng)


def test_intervals_are_over_items():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 2, 80)
  codes = np.stack([np.where(rng.random(80) < 0.9, truth, 1 - truth) for _ in range(3)]).astype(
    float
  )
  units = quality.Units(codes, np.arange(80), ("a", "b", "c"), "nominal")
  alpha = quality.agreement(units)["alpha"]
  assert alpha.low < alpha.value < alpha.high and alpha.high - alpha.low < 0.4
