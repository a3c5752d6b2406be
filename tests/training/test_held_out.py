"""What is reported of a reward model on held-out feedback, with one that scores an answer by its first token."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sharding, types
from rlhf_jax.data.examples import Example, Labelled, Pair, Ranking, TokenLabelled
from rlhf_jax.training import ensemble, held_out

NAN = float("nan")


def answer(value: int, length: int = 1, seed: int = 0) -> Example:
  """A prompt of one token, then `value` and as many zeros as make `length`."""
  tokens = [seed, value, *[0] * (length - 1)]
  return Example(f"{value}x{length}", tokens, [0, *[1] * length])


def normalized(params, scores):
  n = params.get("normalization", {"gain": 1.0, "bias": 0.0})
  return n["gain"] * scores + n["bias"]


def score(params, frozen, rows):
  said = params["scale"] * rows.tokens[:, 1].astype(jnp.float32)
  return normalized(params, said)


SCORER = types.Scorer(
  score=score,
  outputs=lambda params, frozen, rows: jnp.stack(
    [rows.tokens[:, 1], -rows.tokens[:, 1]], axis=1
  ).astype(jnp.float32),
  tokens=lambda params, frozen, rows: rows.tokens.astype(jnp.float32),
)
# As after normalization: the rewards are not in the units of the likelihood.
PARAMS = {"scale": jnp.log(3.0), "normalization": {"gain": jnp.float32(0.01), "bias": jnp.ones(())}}


def reported(name: str, params=PARAMS, batch_size: int = 4, **records):
  mesh = sharding.make_mesh()
  setup = SimpleNamespace(
    config={"algorithm": {"name": "ppo", "reward_model": name}},
    scorer=SCORER,
    mesh=mesh,
    place_batch=lambda batch: jax.device_put(batch, sharding.batch_sharding(mesh)),
    task=SimpleNamespace(
      held_out_feedback=lambda form: records.get(form, []), attributes=("wit", "cheer")
    ),
  )
  return held_out.results(held_out.Reader(setup, params, {"base": {}}, batch_size))


PAIRS = [
  Pair(answer(2, 3), answer(1), annotator="a"),  # right, and stated with 3/4
  Pair(answer(1, 5), answer(2), annotator="a"),  # wrong
  Pair(answer(1), answer(3, 4), preference=0.2, annotator="b"),  # the second is better: right, 9/10
  Pair(answer(1), answer(5, 2), preference=0.5, annotator="b"),  # a tie says nothing
  Pair(answer(2, 2), answer(2, 2), annotator="b"),  # equal scores: half
]


def test_pairs():
  found, calibration = reported("reward_model", pairs=PAIRS)
  assert found["reward_model/pair_accuracy"] == 2.5 / 4
  assert (
    found["reward_model/pair_accuracy_low"] < 2.5 / 4 < found["reward_model/pair_accuracy_high"]
  )
  assert found["reward_model/pair_accuracy_by_a"] == 0.5
  assert found["reward_model/pair_accuracy_by_b"] == 0.75
  # Longer by 2, 4, 3 and 0: in four bins.
  by_length = {n: v for n, v in found.items() if n.endswith("longer")}
  assert by_length == {
    "reward_model/pair_accuracy_0_to_0_tokens_longer": 0.5,
    "reward_model/pair_accuracy_2_to_2_tokens_longer": 1.0,
    "reward_model/pair_accuracy_3_to_3_tokens_longer": 1.0,
    "reward_model/pair_accuracy_4_to_4_tokens_longer": 0.0,
  }
  # Before gain and bias the margins are log 3 (twice, once right), log 9 and 0.
  np.testing.assert_allclose(calibration.stated, [0.5, 0.75, 0.9], rtol=1e-5)
  np.testing.assert_allclose(calibration.observed, [0.5, 0.5, 1.0])
  error = found["reward_model/pair_calibration_error"]
  np.testing.assert_allclose(error, (0 + 2 * 0.25 + 0.1) / 4, rtol=1e-4)


def test_an_ensemble_states_the_mean_of_its_members_probabilities():
  member = lambda scale: {"scale": jnp.float32(scale), "normalization": PARAMS["normalization"]}
  params = {
    **PARAMS,
    "members": ensemble.stacked([member(np.log(3.0)), member(0.0)]),
  }
  _, calibration = reported("reward_model", params, pairs=PAIRS[:1])
  np.testing.assert_allclose(calibration.stated, [(0.75 + 0.5) / 2], rtol=1e-5)


def test_rankings_come_with_pairs():
  rankings = [
    Ranking((answer(3), answer(1), answer(2)), (1, 3, 2)),
    Ranking((answer(3), answer(1)), (2, 1)),
    Ranking((answer(3), answer(1)), (1, 0)),  # what was left unranked is below
    Ranking((answer(3), answer(1)), (0, 0)),
  ]
  found, calibration = reported("reward_from_rankings", rankings=rankings, pairs=PAIRS)
  assert found["reward_model/top_one"] == 2 / 3
  np.testing.assert_allclose(found["reward_model/kendall"], (1 - 1 + 1) / 3)
  assert found["reward_model/pair_accuracy"] == 2.5 / 4 and calibration is not None


def test_ratings_are_told_by_scale():
  rows = [(answer(v), (float(v), 5.0)) for v in (1, 2, 3, 4, 6)]
  records = [Labelled(a, labels) for a, labels in rows] + [Labelled(answer(9), (NAN, NAN))]
  found, calibration = reported("reward_from_ratings", ratings=records)
  assert found["reward_model/wit_spearman"] == 1.0
  np.testing.assert_allclose(found["reward_model/wit_pearson"], 1.0)
  assert found["reward_model/cheer_spearman"] == 0.0  # a constant label orders nothing
  assert calibration is None


def test_classes_are_predicted_by_the_cutpoints_before_gain_and_bias():
  link = {"first": jnp.float32(1.5 * np.log(3.0)), "log_gaps": jnp.log(jnp.asarray([np.log(3.0)]))}
  records = [Labelled(answer(v), (label,)) for v, label in ((1, 0.0), (2, 1.0), (3, 2.0), (3, 0.0))]
  found, _ = reported("reward_from_classes", {**PARAMS, "link": link}, classes=records)
  assert found["reward_model/class_accuracy"] == 0.75
  assert 0 < found["reward_model/class_kappa"] < 1


def test_marks_and_tokens():
  marks = [Labelled(answer(v), (label,)) for v, label in ((1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0))]
  found, _ = reported("reward_from_marks", marks=[*marks, Labelled(answer(5), (NAN,))])
  assert found["reward_model/mark_auc"] == 1.0
  tokens = [TokenLabelled(answer(v, 2, seed=7), [NAN, 1.0, 0.0]) for v in (1, 2, 3)]
  found, _ = reported("reward_from_tokens", tokens=tokens)
  assert found["reward_model/token_auc"] == 1.0


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(batch_size):
  found, _ = reported("reward_model", pairs=PAIRS, batch_size=batch_size)
  assert found["reward_model/pair_accuracy"] == 2.5 / 4


def test_what_the_data_do_not_hold_is_not_reported():
  assert reported("reward_from_rankings") == ({}, None)
  tie = [Pair(answer(1), answer(2), preference=0.5)]
  assert reported("reward_model", pairs=tie) == ({}, None)


def test_a_run_reports_them(tiny_run):
  import json

  _, workdir = tiny_run
  results = json.loads((Path(workdir) / "results.json").read_text())
  assert 0.3 < results["reward_model/pair_accuracy"] < 1
  curve = json.loads((Path(workdir) / "calibration.json").read_text())
  assert curve["error"] == results["reward_model/pair_calibration_error"]
  assert len(curve["stated"]) == len(curve["observed"]) == len(curve["count"])
