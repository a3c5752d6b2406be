"""Reward models trained together are those trained alone, and what is made of them is what it says."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import types
from rlhf_jax.algorithms import reward_model, reward_odin
from rlhf_jax.config import from_dict
from rlhf_jax.models import heads, llama, lora, policy, registry
from rlhf_jax.training import ensemble, setup, stages, step

M, B, T, V, D = 3, 4, 6, 11, 8
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_positions=16,
    initializer_range=0.3,
  )
)
BASE = MODEL.init(jax.random.key(0))
FROZEN = {"base": BASE}
SCORER = policy.make_scorer(MODEL, lora_scale=2.0)
ALGORITHM = reward_model.make(SCORER)
CONFIG = reward_model.Config(learning_rate=0.1)
TX = optax.trace(
  decay=0.9
)  # Adam makes a step of a gradient that is rounding alone, as the head's bias has


def answers(seed: int) -> types.Sequences:
  rng = np.random.default_rng(seed)
  mask = np.arange(T)[None] < rng.integers(2, T + 1, B)[:, None]
  return types.Sequences.from_mask(rng.integers(0, V, (B, T)), mask, mask)


def batch(seed: int) -> types.PreferenceBatch:
  return types.PreferenceBatch(answers(seed), answers(seed + 100), jnp.ones(B), jnp.zeros(B))


def adapter(seed: int):
  fresh = lora.init(jax.random.key(seed), BASE, rank=2, targets=("q", "v"))
  draw = lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed + 50), x.shape)
  return jax.tree.map(draw, fresh)


MEMBERS = [
  {"model": adapter(m), "reward_head": heads.init_head(jax.random.key(m), D, 0.5)} for m in range(M)
]


def together(own_batches: bool):
  tx, train_step = ensemble.at_once(TX, step.make_train_step(ALGORITHM, TX), own_batches)
  state = step.init_state(jax.random.key(5), ensemble.stacked(MEMBERS), ALGORITHM, tx, CONFIG)
  return state, jax.jit(train_step)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.parametrize("own_batches", [False, True])
def test_members_trained_together_are_those_trained_alone(own_batches):
  seeds = lambda t: [10 * t + (m if own_batches else 0) for m in range(M)]
  state, train_step = together(own_batches)
  alone = [step.init_state(jax.random.key(5), p, ALGORITHM, TX, CONFIG) for p in MEMBERS]
  one_step = jax.jit(step.make_train_step(ALGORITHM, TX))
  for t in range(3):
    batches = [batch(seed) for seed in seeds(t)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *batches)
    state, metrics = train_step(state, FROZEN, stacked if own_batches else batches[0], CONFIG)
    results = [one_step(s, FROZEN, b, CONFIG) for s, b in zip(alone, batches, strict=True)]
    alone = [s for s, _ in results]
    means = {name: np.mean([m[name].value for _, m in results]) for name in metrics}
    close({name: metric.value for name, metric in metrics.items()}, means)
  assert state.step == 3
  close(state.params, ensemble.stacked([s.params for s in alone]))
  moved = state.params["reward_head"]["kernel"][0] - MEMBERS[0]["reward_head"]["kernel"]
  assert np.abs(moved).max() > 0.01


def test_heads_on_one_trunk_learn_the_mean_of_their_losses():
  own = [{"reward_head": member["reward_head"]} for member in MEMBERS]
  params = {"model": MEMBERS[0]["model"], "members": ensemble.stacked(own)}
  algorithm = ensemble.on_one_trunk(ALGORITHM, "reward_model")

  def loss(algorithm, params):
    terms, _ = algorithm.loss(params, FROZEN, batch(3), CONFIG, {})
    return terms["bradley_terry"].value

  value, slope = jax.jit(jax.value_and_grad(lambda p: loss(algorithm, p)))(params)
  single = jax.jit(jax.value_and_grad(lambda p: loss(ALGORITHM, p)))
  singles = [single({"model": params["model"], **one}) for one in own]
  np.testing.assert_allclose(value, np.mean([v for v, _ in singles]), rtol=1e-5)
  close(
    slope["model"],
    jax.tree.map(lambda *x: sum(x) / M, *(gradient["model"] for _, gradient in singles)),
  )
  close(
    jax.tree.map(lambda x: M * x, slope["members"]["reward_head"]),
    ensemble.stacked([gradient["reward_head"] for _, gradient in singles]),
  )


def test_heads_on_one_trunk_pass_it_once():
  own = [{"reward_head": member["reward_head"]} for member in MEMBERS]
  cost = {}
  for name, params, algorithm in (
    ("one", MEMBERS[0], ALGORITHM),
    (
      "many",
      {"model": MEMBERS[0]["model"], "members": ensemble.stacked(own)},
      ensemble.on_one_trunk(ALGORITHM, "reward_model"),
    ),
  ):
    loss = lambda p, a=algorithm: a.loss(p, FROZEN, batch(3), CONFIG, {})[0]["bradley_terry"].value
    cost[name] = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
  assert cost["many"] < 1.2 * cost["one"]


def test_an_algorithm_that_looks_at_whole_batches_needs_members_of_their_own():
  with pytest.raises(ValueError, match="set reward_odin.share='adapters'"):
    ensemble.on_one_trunk(reward_odin.make(SCORER), "reward_odin")


@pytest.mark.parametrize("whole", [False, True])
def test_averaged_weights_are_the_mean_of_what_the_members_add(whole):
  trees = [lora.merge(BASE, member["model"], 2.0) for member in MEMBERS]
  mean = jax.tree.map(lambda *x: sum(x) / M, *trees)
  members = trees if whole else [member["model"] for member in MEMBERS]
  averaged = ensemble.average(ensemble.stacked(members))
  close(averaged if whole else lora.merge(BASE, averaged, 2.0), mean)


@pytest.mark.parametrize(
  ("combine", "expected"),
  [
    ("mean", lambda s: s.mean(0)),
    ("min", lambda s: s.min(0)),
    ("penalized", lambda s: s.mean(0) - 0.5 * s.std(0)),
    ("penalized_variance", lambda s: s.mean(0) - 0.5 * s.var(0)),
  ],
)
@pytest.mark.parametrize("share", ["adapters", "trunk"])
def test_normalized_scores_are_combined_and_normalized(combine, expected, share):
  settings = ensemble.Settings(members=M, share=share, combine=combine, disagreement_coef=0.5)
  scorer = policy.make_scorer(MODEL, lora_scale=2.0, combine=combine)
  rows = jax.tree.map(lambda *x: jnp.concatenate(x), *(answers(s) for s in range(4)))
  jitted = jax.jit(scorer.score)
  score = lambda params: jitted(params, FROZEN, rows)
  members = MEMBERS
  trained = ensemble.stacked(MEMBERS)
  if share == "trunk":
    members = [{**member, "model": MEMBERS[0]["model"]} for member in MEMBERS]
    trained = {
      "model": MEMBERS[0]["model"],
      "members": {"reward_head": ensemble.stacked([m["reward_head"] for m in MEMBERS])},
    }
  fixed = ensemble.normalize(settings, trained, score)
  got = score(ensemble.scoring(settings, trained, fixed))

  standard = lambda x: (x - x.mean()) / x.std()
  alone = np.stack([standard(np.asarray(score(member))) for member in members])
  np.testing.assert_allclose(got, standard(expected(alone)), rtol=1e-3, atol=1e-4)
  each = [score(one) for one in ensemble.each(ensemble.scoring(settings, trained, fixed))]
  np.testing.assert_allclose(each, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(bootstrap=True), "set reward_model.members"),
    (dict(members=2, bootstrap=True), "bootstrap=True needs members of their own"),
    (dict(members=2, combine="average"), "combine='average' needs members of their own"),
  ],
)
def test_what_members_cannot_do_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    from_dict(ensemble.Settings, settings, where="reward_model")


# Through the stage, on a model of a few thousand parameters.

TINY = Path(__file__).parents[2] / "experiments" / "tiny.py"


def trained(workdir, rank=2, name="reward_model", **options):
  """The stage's parameters, and the setup that they score with."""
  spec = importlib.util.spec_from_file_location("tiny", TINY)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config().to_dict()
  config["stages"] = ("reward_model",)
  config["lora"] = {**config["lora"], "rank": rank}
  config["algorithm"]["reward_model"] = name
  config[name] = {**config["reward_model"], "epochs": 0.02, **options}
  made = setup.make_setup(config, workdir)
  with jax.set_mesh(made.mesh):
    params = stages.reward_model(made, made.pretrained)
    again = stages.reward_model(made, made.pretrained)  # restored, with the members' form
  close(again, params)
  return params, made


def rewards(params, made):
  rows = made.task.held_out_feedback("pairs")[:16]
  from rlhf_jax.data import examples
  from rlhf_jax.training import sampling

  sequences = examples.collate([[pair.chosen] for pair in rows], 64)
  base = made.frozen(made.pretrained()) if made.lora.rank else {}
  return sampling.score(made, params, {"base": base}, sequences, batch_size=16)


def test_the_first_of_several_members_is_the_only_one(tmp_path):
  plain = dict(optimizer="sgd", learning_rate=0.1)
  one, _ = trained(tmp_path / "one", **plain)
  three, made = trained(tmp_path / "three", members=3, share="adapters", **plain)
  first = jax.tree.map(lambda x: x[0], three["members"])
  close(first["reward_head"], one["reward_head"])
  close(first["model"], one["model"])
  close(first["normalization"], one["normalization"])
  kernels = three["members"]["reward_head"]["kernel"]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.05
  scores = rewards(three, made)
  assert np.isfinite(scores).all() and scores.std() > 0.1


@pytest.mark.parametrize(
  "options",
  [
    dict(members=2, share="adapters", bootstrap=True, combine="average"),
    dict(
      members=2, share="adapters", bootstrap=True, combine="penalized", name="reward_from_rankings"
    ),
    dict(members=2, name="reward_from_classes"),
    dict(name="reward_odin"),
  ],
  ids=str,
)
def test_a_stage_trains_any_ensemble(tmp_path, options):
  params, made = trained(tmp_path, **options)
  scores = rewards(params, made)
  assert np.isfinite(scores).all() and scores.std() > 0.1
