"""Values of tokens, exactly on the language of 27 sequences; and what a policy that Q moves writes, keeps and remembers."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_enumeration as enumeration
from test_enumeration import ANSWERS, BETA, SCORES, log_probability, sequences, table

from rlhf_jax import types
from rlhf_jax.algorithms import dqn, ilql, q_learning, sac, sarsa
from rlhf_jax.models import llama, lora, policy, q_heads, registry
from rlhf_jax.rollout.generate import Sampling, generate
from rlhf_jax.training import replay, step, value_heads
from rlhf_jax.training.checkpoint import Checkpoints
from rlhf_jax.weights import names

NO_CHANCE = np.full(27, 1 / 27)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


exactly = pytest.mark.usefixtures("float64")


# A policy by tables, with a row for each of the 13 prefixes: {"logits": [13, 3], "q": [H, 13, 3], "values": [13]}.


def prefixes(batch):
  first, second, _ = batch.tokens[:, 1:].T
  return jnp.stack([jnp.zeros_like(first), 1 + first, 4 + 3 * first + second], axis=1)


def over_vocabulary(function, trees, frozen, batch, temperature=1.0):
  at = prefixes(batch)

  def words(tree):
    return types.Words(
      logits=tree["logits"][at] / temperature,
      q=tree["q"][:, at] if "q" in tree else None,
      values=tree["values"][at] if "values" in tree else None,
    )

  found = function(tuple(words(tree) for tree in trees), batch.tokens[:, 1:])
  return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), found)


POLICY = types.Policy(None, None, over_vocabulary)


def rollout(scores=SCORES):
  nothing = jnp.zeros((27, 4))
  return types.Rollout(
    sequences=sequences(ANSWERS),
    logps=nothing,
    rewards=nothing.at[:, 3].set(scores),
    truncated=jnp.zeros(27, bool),
  )


def targets(module, config, params, target=None):
  """What annotate() draws the Q of every answer's tokens to, [27, 3]; `target` is the target network."""
  return _targets(module)(config, params, params if target is None else target)


@functools.cache
def _targets(module):
  algorithm, frozen = module.make(POLICY), {"reference": {"logits": table(3)}}

  @jax.jit
  def found(config, params, target):
    extra = algorithm.init_extra(target, config)
    return algorithm.annotate(params, frozen, rollout(), config, extra)[0].targets[:, 1:]

  return found


def as_table(answers):
  """[27, 3] of answers that agree wherever their prefixes and tokens do, as [13, 3]."""
  at = prefixes(sequences(ANSWERS)), ANSWERS
  found = jnp.zeros((13, 3)).at[at].set(answers)
  np.testing.assert_allclose(found[at], answers, rtol=1e-9, atol=1e-12)
  return found


def swept(module, config, params, times=3):
  """Q after it was set to its targets so often: three tokens ahead, all there is."""
  for _ in range(times):
    params = {**params, "q": as_table(targets(module, config, params))[None]}
  return params


def best_to_come():
  """The largest score of an answer that begins so, of each prefix and token: [13, 3]."""
  scores = SCORES.reshape(3, 3, 3)
  return np.concatenate([scores.max((1, 2))[None], scores.max(2), scores.reshape(9, 3)])


def mean_to_come(logits):
  """The mean score of an answer that begins so and goes on by `logits`, [13, 3]."""
  p, scores = np.exp(log_probability(logits)).reshape(3, 3, 3), SCORES.reshape(3, 3, 3)
  mean = lambda axes: (p * scores).sum(axes) / p.sum(axes)
  return np.concatenate([mean((1, 2))[None], mean(2), scores.reshape(9, 3)])


def begun(q=None, **more):
  return {"logits": table(3), "q": jnp.zeros((1, 13, 3)) if q is None else q[None], **more}


@exactly
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
  ("module", "options"),
  [(q_learning, {}), (dqn, dict(backup="double")), (dqn, dict(backup="max"))],
)
def test_q_learning_finds_the_best_that_can_come(module, options, temperature):
  config = module.Config(temperature=temperature, **options)
  q = swept(module, config, begun())["q"][0]
  np.testing.assert_allclose(q, best_to_come(), rtol=1e-12)


@exactly
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("module", [q_learning, dqn])
def test_with_soft_values_the_policy_is_the_regularised_optimum(module, temperature):
  # Logits and Q stand over the temperature, so that a nat costs α · temperature.
  alpha = BETA / temperature
  config = module.Config(backup="soft", alpha=alpha, temperature=temperature)
  params = swept(module, config, begun())
  acting = params["logits"] + config.scale * params["q"][0]
  got = jnp.exp(log_probability(acting, temperature))
  expected = enumeration.regularised_optimum(table(3), temperature)
  np.testing.assert_allclose(got, expected, rtol=1e-9)
  # There, every answer's own target is its Q, however far it looks ahead.
  for td_lambda in (0.3, 1.0):
    further = module.Config(
      backup="soft", alpha=alpha, temperature=temperature, td_lambda=td_lambda
    )
    np.testing.assert_allclose(
      as_table(targets(module, further, params)), params["q"][0], rtol=1e-9
    )


@exactly
def test_the_target_network_values_what_the_policy_prefers():
  mine, target = table(5), table(6)
  at = np.concatenate([[0], 1 + ANSWERS[::9, 0], 4 + np.arange(9)])  # all prefixes, in order
  np.testing.assert_array_equal(at, np.arange(13))
  params, other = begun(mine), begun(target)
  preferred = target[np.arange(13), np.argmax(mine, axis=1)]
  got = targets(dqn, dqn.Config(), params, other)[:, :2]
  np.testing.assert_array_equal(got, preferred[prefixes(sequences(ANSWERS))[:, 1:]])
  got = targets(dqn, dqn.Config(backup="max"), params, other)[:, :2]
  np.testing.assert_array_equal(got, target.max(1)[prefixes(sequences(ANSWERS))[:, 1:]])


@exactly
def test_sarsa_finds_the_value_of_the_policy_that_wrote():
  # So dear that the policy is π_LM.
  config = sarsa.Config(backup="expected", alpha=1e12)
  params = swept(sarsa, config, begun())
  np.testing.assert_allclose(params["q"][0], mean_to_come(table(3)), rtol=1e-9)
  # The next token's Q is that on average, at any λ.
  for td_lambda in (0.0, 0.6):
    sampled = sarsa.Config(alpha=1e12, td_lambda=td_lambda)
    got = targets(sarsa, sampled, params)
    p = jnp.exp(log_probability(table(3)))[:, None]
    at = prefixes(sequences(ANSWERS)), ANSWERS
    weight = jnp.zeros((13, 3)).at[at].add(jnp.broadcast_to(p, got.shape))
    mean = jnp.zeros((13, 3)).at[at].add(p * got) / weight
    np.testing.assert_allclose(mean, mean_to_come(table(3)), rtol=1e-9)


def actor_gradient(config, params, weights=NO_CHANCE):
  """−∇ of every answer's loss for the logits, weighted; and the largest |∇| for Q."""
  algorithm, frozen = sac.make(POLICY), {"reference": {"logits": table(3)}}
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, frozen, rollout(), config, extra)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  @jax.grad
  def gradients(params, row):
    one = jax.tree.map(lambda x: x[row][None], batch)
    terms, _ = algorithm.loss(params, frozen, one, config, extra)
    return sum(term.value for term in terms.values())

  found = gradients(params, jnp.arange(27))
  return -jnp.tensordot(weights, found["logits"], 1), jnp.abs(found["q"]).max()


def soft_q(logits, prior_logits):
  """Q of the soft value of the policy `logits`, by three sweeps of SAC's own targets, [2, 13, 3]."""
  prior = "entropy" if prior_logits is None else "reference"
  config = sac.Config(alpha=BETA, prior=prior)
  params = {"logits": logits, "q": jnp.zeros((2, 13, 3))}
  for _ in range(3):
    params["q"] = jnp.stack([as_table(targets(sac, config, params))] * 2)
  return config, params


@exactly
def test_soft_actor_critic_climbs_the_exact_gradient_of_reward_less_kl():
  config, params = soft_q(table(2), table(3))
  p = jnp.exp(log_probability(table(2)))
  got, _ = actor_gradient(config, params, p)
  expected = jax.grad(enumeration.objective)(table(2), table(3), 1.0)
  np.testing.assert_allclose(3 * got, expected, rtol=1e-9, atol=1e-13)


@exactly
@pytest.mark.parametrize("td_lambda", [0.0, 0.7])
@pytest.mark.parametrize("prior", ["reference", "entropy"])
def test_soft_actor_critic_rests_at_the_regularised_optimum_whoever_wrote(prior, td_lambda):
  reference = table(3) if prior == "reference" else jnp.zeros((13, 3))
  optimum = enumeration.logits_of(enumeration.regularised_optimum(reference))
  _, params = soft_q(optimum, reference if prior == "reference" else None)
  config = sac.Config(alpha=BETA, prior=prior, td_lambda=td_lambda)
  got, of_q = actor_gradient(config, params)
  np.testing.assert_allclose(got, np.zeros((13, 3)), atol=1e-12)
  np.testing.assert_allclose(of_q, 0.0, atol=1e-12)


@exactly
def test_the_smaller_of_two_target_heads_counts():
  config = sac.Config(alpha=BETA)
  params = {"logits": table(2), "q": jnp.stack([table(5), table(6)])}
  least = jnp.stack([jnp.minimum(table(5), table(6))] * 2)
  np.testing.assert_allclose(
    targets(sac, config, params), targets(sac, config, {**params, "q": least}), rtol=1e-12
  )


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.1 * 1.02), (2.0, 0.1 * 0.98), (4.2, 0.1005)])
def test_alpha_follows_the_kl_that_is_wanted(kl, expected):
  config = sac.Config(kl_target=4.0, kl_horizon=100.0)
  algorithm = sac.make(POLICY)
  extra = algorithm.init_extra({"q": jnp.zeros(())}, config)
  metrics = {"policy/kl_exact": jnp.asarray(kl), "rollout/episodes": jnp.asarray(10.0)}
  extra = algorithm.update_extra(extra, {"q": jnp.zeros(())}, metrics, config)
  np.testing.assert_allclose(extra["alpha"], expected, rtol=1e-6)


def test_a_kl_target_without_a_reference_is_refused():
  with pytest.raises(ValueError, match=r"sac.kl_target=2.0 .* leave one of them out"):
    sac.Config(kl_target=2.0, prior="entropy").assert_sound("sac")


@jax.jit
def ilql_gradient(config, params):
  """The largest |∇| of the terms q and v for Q and V, where all 27 answers were rated once."""
  algorithm = ilql.make(POLICY)
  rated = types.LabelledBatch(sequences(ANSWERS), jnp.asarray(SCORES)[:, None])
  extra = algorithm.init_extra(params, config)
  batch, _ = algorithm.annotate(params, {}, rated, config, extra)

  def loss(params):
    terms, _ = algorithm.loss(params, {}, batch, config, extra)
    return terms["q"].value + terms["v"].value

  gradients = jax.grad(loss)(params)
  return jnp.maximum(*(jnp.abs(gradients[name]).max() for name in ("q", "values")))


@exactly
@pytest.mark.parametrize(
  ("tau", "of", "tolerance"), [(0.5, "mean", 1e-12), (1 - 1e-9, "best", 1e-8)]
)
def test_ilql_rests_at_the_datas_mean_and_near_its_best_as_tau_grows(tau, of, tolerance):
  q = jnp.asarray(best_to_come() if of == "best" else mean_to_come(jnp.zeros((13, 3))))
  values = q.max(axis=1) if of == "best" else q.mean(axis=1)
  params = {"logits": table(3), "q": jnp.stack([q, q]), "values": values}
  config = ilql.Config(tau=tau, gamma=1.0)
  assert ilql_gradient(config, params) < tolerance
  assert ilql_gradient(config, {**params, "values": values + 0.1}) > 1e-3


@exactly
def test_answers_that_nobody_rated_teach_nothing():
  algorithm, config = ilql.make(POLICY), ilql.Config(awac_beta=1.0)
  params = {"logits": table(3), "q": jnp.stack([table(5), table(6)]), "values": table(7)[:, 0]}

  @jax.jit
  def terms(rows, labels):
    rated = types.LabelledBatch(sequences(rows), labels[:, None])
    extra = algorithm.init_extra(params, config)
    batch, metrics = algorithm.annotate(params, {}, rated, config, extra)
    terms, _ = algorithm.loss(params, {}, batch, config, extra)
    return {**terms, **metrics}

  labels = jnp.asarray([1.0, np.nan, -2.0])
  one, other = (terms(ANSWERS[[3, row, 20]], labels) for row in (5, 9))
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert one["q"].count == 6 and np.isfinite(one["awac"].sum)
  assert terms(ANSWERS[[3, 5, 20]], jnp.nan_to_num(labels))["q"].sum != one["q"].sum


# A policy of a small model.

V, D = 11, 8
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=12,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_positions=32,
    initializer_range=0.5,
  )
)
SETUP = SimpleNamespace(model=MODEL, key=lambda purpose: jax.random.key(3))


def disturbed(tree, seed=1):
  """Heads that say something."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(structure, noisy)


@pytest.fixture(scope="module")
def small():
  """(frozen, params) of ILQL's form, adapters over a base, all heads disturbed."""
  base = MODEL.init(jax.random.key(0))
  adapter = lora.init(jax.random.key(1), base, rank=2, targets=("q", "down"))
  config = ilql.Config(beta=2.0)
  params = value_heads.added(SETUP, ilql, config, {"model": disturbed(adapter)})
  heads = params["model"][q_heads.NAME]
  moving = {**disturbed(heads), "scale": heads["scale"]}
  params["model"] = {**params["model"], q_heads.NAME: moving}
  params["value_head"] = disturbed(params["value_head"])
  return {"base": base}, params


def answers(B=3, P=3, T=9):
  tokens = jax.random.randint(jax.random.key(7), (B, T), 0, V)
  chosen = np.broadcast_to(np.arange(T) >= P, (B, T))
  return types.Sequences.from_mask(tokens, jnp.ones((B, T)), chosen)


def dense(frozen, params, rows):
  """Logits without Q, Q and V of each token's place, [B, T − 1, ...], all at once."""
  weights = lora.attach(frozen["base"], params["model"], 1.0)
  plain = {name: x for name, x in weights.items() if name != q_heads.NAME}
  hidden = MODEL.hidden(weights, rows.tokens, rows.positions, rows.segments)[:, :-1]
  values = hidden @ params["value_head"]["kernel"] + params["value_head"]["bias"]
  return MODEL.unembed(plain, hidden), MODEL.q_values(weights[q_heads.NAME], hidden), values


def test_fresh_heads_move_nothing_and_two_of_them_would_learn_differently(small):
  frozen, _ = small
  params = value_heads.added(SETUP, ilql, ilql.Config(beta=2.0), {"model": frozen["base"]})
  evaluate, rows = jax.jit(policy.make_policy(MODEL).evaluate), answers()
  got = evaluate(params, {"base": {}}, rows)
  expected = evaluate({"model": frozen["base"]}, {"base": {}}, rows)
  np.testing.assert_array_equal(got.logps, expected.logps)
  loss = lambda params: jnp.sum(jnp.square(dense({"base": {}}, params, rows)[1] - 1))
  gradient = jax.jit(jax.grad(loss))(params)
  one, other = (gradient["model"][q_heads.NAME][f"q_{i}"]["out"]["kernel"] for i in range(2))
  assert np.abs(one - other).max() > 0.1 * np.abs(one).max()


def test_what_is_written_is_the_models_distribution_times_exp_of_beta_q(small):
  frozen, params = small
  rows = answers()
  logits, q, _ = jax.jit(dense)(frozen, params, rows)
  logp = jax.nn.log_softmax((logits + 2.0 * q.min(axis=0)) / 0.7)
  expected = np.take_along_axis(np.asarray(logp), np.asarray(rows.tokens)[:, 1:, None], axis=2)
  got = jax.jit(policy.make_policy(MODEL).evaluate)(params, frozen, rows, 0.7).logps[:, 1:]
  np.testing.assert_allclose(got, expected[..., 0], rtol=1e-5, atol=1e-5)
  assert np.abs(q).max() > 0.1


def test_the_sampler_and_the_learner_agree_on_a_policy_that_q_moves(small):
  frozen, params = small
  weights = lora.attach(frozen["base"], params["model"], 1.0)
  keys = jax.random.split(jax.random.key(2), 3)
  prompts, sampling = answers().tokens[:, :3], Sampling(max_new_tokens=5, temperature=0.7)
  write = jax.jit(functools.partial(generate, MODEL))
  written = write(weights, prompts, jnp.ones((3, 3)), keys, sampling)
  learned = jax.jit(policy.make_policy(MODEL).evaluate)(params, frozen, written.sequences, 0.7)
  mask = written.sequences.response_mask
  np.testing.assert_allclose(written.logps * mask, learned.logps * mask, atol=1e-5)


def test_a_slice_of_time_after_the_other_gives_what_all_at_once_would(small):
  frozen, params = small
  rows = answers()
  model = policy.make_policy(MODEL, chunk=6)  # two columns of three rows

  def chunked(params):
    look = lambda words, tokens: ilql.said_of(words[0], tokens)
    return model.over_vocabulary(look, (params,), frozen, rows)

  def at_once(params):
    said = ilql.said_of(types.Words(*dense(frozen, params, rows)), rows.tokens[:, 1:])
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), said)

  def with_gradient(function):
    total = lambda params: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(params)))
    return jax.jit(lambda params: (function(params), jax.grad(total)(params)))(params)

  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(same, with_gradient(chunked), with_gradient(at_once))


def test_a_policy_that_q_moves_has_no_form_as_a_hugging_face_model(small):
  frozen, params = small
  weights = lora.merge(frozen["base"], params["model"], 1.0)
  with pytest.raises(ValueError, match=r"Q heads move what this policy writes.*--stage=sft"):
    names.to_hf(MODEL.config, jax.device_get(weights))


# Replay.


def numbered(batch: int) -> types.Rollout:
  """Rollouts whose scores say which batch they are of and which row."""
  return rollout(100.0 * batch + np.arange(27))


@exactly
def test_the_memory_keeps_the_last_batches_and_draws_from_all_of_them():
  memory = replay.empty(jax.eval_shape(lambda: numbered(0)), 3)
  draw = jax.jit(jax.vmap(replay.drawn, (None, 0)))
  for batch in range(1, 6):
    memory = jax.jit(replay.written)(memory, numbered(batch))
    kept = {100 * b + row for b in range(max(1, batch - 2), batch + 1) for row in range(27)}
    drawn = draw(memory, jax.random.split(jax.random.key(batch), 100))
    assert set(np.asarray(drawn.rewards[:, :, 3]).ravel().astype(int)) == kept


@exactly
def test_a_run_with_replay_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
  config = dqn.Config(learning_rate=0.05, replay=2, target_every=2)
  algorithm, tx = dqn.make(POLICY), optax.scale_by_adam()
  rollouts = [rollout(batch * SCORES) for batch in range(4)]
  algorithm, function = replay.remembering(
    algorithm, step.make_train_step(algorithm, tx), rollouts[0], config.replay
  )
  params, frozen = begun(), {"reference": {"logits": table(3)}}
  fresh = step.init_state(jax.random.key(5), params, algorithm, tx, config)
  train_step = jax.jit(function)

  def go(state, batches):
    for rollout in batches:
      state, _ = train_step(state, frozen, rollout, config)
    return state

  straight = go(fresh, rollouts)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, go(fresh, rollouts[:2]))
  checkpoints.wait()
  resumed = go(checkpoints.restore(fresh), rollouts[2:])
  data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), resumed, straight)
  assert int(resumed.extra["replay"]["written"]) == 4
  checkpoints.close()
