"""Sampled answers become feedback of every form, and the reference's log-probabilities of them are computed once."""

import jax
import numpy as np
import pytest

from rlhf_jax.cli import config as config_files
from rlhf_jax.data import examples
from rlhf_jax.data.examples import Example
from rlhf_jax.training import answers, disk, experiment, reference, stages
from rlhf_jax.training.setup import make_setup

PROMPT = Example.prompt("p", [1, 2])
REWARDS = (0.5, 2.0, -1.0, 0.5)
GROUP = [(PROMPT.continued(f"a{i}", [3 + i]), reward) for i, reward in enumerate(REWARDS)]


def test_a_pair_is_the_best_answer_against_the_worst():
  (pair,) = answers.pairs([GROUP])
  assert pair.chosen.id == "a1" and pair.rejected.id == "a2" and pair.preference == 1.0


def test_marks_are_the_answers_of_the_pair():
  right, wrong = answers.marks([GROUP])
  assert (right.answer.id, right.labels) == ("a1", (1.0,))
  assert (wrong.answer.id, wrong.labels) == ("a2", (0.0,))


def test_a_ranking_goes_by_reward_and_equal_rewards_tie():
  (ranking,) = answers.rankings([GROUP])
  assert ranking.ranks == (2, 1, 4, 2)


def test_ratings_are_the_rewards():
  assert [record.labels for record in answers.ratings([GROUP])] == [(r,) for r in REWARDS]


@pytest.fixture(scope="module")
def sampled(tiny_run):
  """The setup of a finished run, and what its reference and reward model are."""
  arguments, workdir = tiny_run
  config = config_files.load([a for a in arguments if a.startswith("--config")])
  config["answers"] = {"prompts": 6, "count": 3}
  setup = make_setup(config, workdir)
  with jax.set_mesh(setup.mesh):
    weights = experiment.starting_weights(setup)
    reward_params = stages.reward_model(setup, weights)
    base, policy = setup.base(weights), setup.reference(weights)
  return setup, {"base": base, "reference": policy, "reward_model": reward_params}


def test_answers_are_sampled_once_and_then_read(sampled, tmp_path, monkeypatch):
  setup, frozen = sampled
  setup = setup._replace(workdir=tmp_path)
  settings = answers.Settings(prompts=6, count=3)
  with jax.set_mesh(setup.mesh):
    groups = answers.load_or_sample(settings, setup, frozen)
    monkeypatch.setattr(answers, "_sample", None)
    assert answers.load_or_sample(settings, setup, frozen) == groups
  assert len(groups) == 6 and all(len(group) == 3 for group in groups)
  for group in groups:
    rewards = [reward for _, reward in group]
    assert max(rewards) > min(rewards)
    assert len({tuple(np.asarray(a.tokens)[: setup.data.prompt_tokens]) for a, _ in group}) == 1


def test_a_run_can_take_the_answers_of_another(sampled, tmp_path):
  setup, frozen = sampled
  row = {"id": "x", "prompt": [1], "answers": [{"tokens": [2], "reward": 0.0}]}
  disk.replace_rows(tmp_path / "answers.jsonl", [row])
  elsewhere = setup._replace(config={**setup.config, "start": {"answers": str(tmp_path)}})
  ((answer, reward),) = answers.load_or_sample(answers.Settings(), elsewhere, frozen)[0]
  assert (answer.tokens, reward) == ([1, 2], 0.0)


def test_cached_log_probabilities_are_those_of_the_reference(sampled, tmp_path):
  setup, frozen = sampled
  setup = setup._replace(workdir=tmp_path)
  texts = setup.task.sft[:5]
  with jax.set_mesh(setup.mesh):
    cached = reference.reference_logps(setup, frozen, texts)
    width = examples.width_of(texts)
    batch = setup.place_batch(examples.collate_records(texts, width))
    direct = jax.device_get(setup.policy.evaluate(frozen["reference"], frozen, batch, 1.0).logps)
  for row, text in zip(direct, texts, strict=True):
    np.testing.assert_allclose(cached(text), row[: len(text.tokens)], atol=1e-5)
    assert cached(text).dtype == np.float32


def test_only_what_is_new_is_computed_and_only_for_this_model(sampled, tmp_path, monkeypatch):
  setup, frozen = sampled
  setup = setup._replace(workdir=tmp_path)
  computed, compute = [], reference._compute

  def counting(setup, frozen, missing):
    computed.append(len(missing))
    return compute(setup, frozen, missing)

  monkeypatch.setattr(reference, "_compute", counting)
  other = {**frozen, "reference": jax.tree.map(lambda x: 1.5 * x, frozen["reference"])}
  texts = setup.task.sft[:4]
  with jax.set_mesh(setup.mesh):
    first = reference.reference_logps(setup, frozen, texts[:3])
    again = reference.reference_logps(setup, frozen, [*texts, texts[0]])
    moved = reference.reference_logps(setup, other, texts[:2])
    reference.reference_logps(setup, frozen, texts)
  assert computed == [3, 1, 2]
  np.testing.assert_array_equal(first(texts[0]), again(texts[0]))
  assert np.abs(first(texts[0]) - moved(texts[0])).max() > 1e-3


def test_a_damaged_cache_says_what_to_do(sampled, tmp_path):
  setup, frozen = sampled
  setup = setup._replace(workdir=tmp_path)
  with jax.set_mesh(setup.mesh):
    reference.reference_logps(setup, frozen, setup.task.sft[:1])
    (path,) = (tmp_path / "reference").glob("*.npz")
    path.write_bytes(b"not a cache")
    with pytest.raises(ValueError, match="is damaged .* delete it, and it is computed again"):
      reference.reference_logps(setup, frozen, setup.task.sft[:1])
