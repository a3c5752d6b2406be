"""What models see in parts is what they see at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sharding
from rlhf_jax.algorithms import ppo
from rlhf_jax.models import heads, llama, policy, registry
from rlhf_jax.training import parts, step
from rlhf_jax.types import Rollout, Sequences

V, D, B, P, R = 64, 32, 8, 24, 40
T = P + R
MODEL = registry.language_model(
  llama.LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=128,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=T,
    initializer_range=0.3,
  )
)
POLICY = policy.make_policy(MODEL, critic="shared", chunk=64)
SCORER = policy.make_scorer(MODEL)
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
  "model": MODEL.init(KEYS[0]),
  "value_head": heads.init_head(KEYS[1], D, 0.5),
  "reward_head": heads.init_head(KEYS[2], D, 0.5),
}
FROZEN = {"base": {}, "reference": {"model": MODEL.init(jax.random.key(9))}}


def written() -> Sequences:
  """Prompts that two adjacent rows have in common, and answers of 1 to 40 tokens."""
  rng = np.random.default_rng(1)
  prompts = np.repeat(rng.integers(0, V, (B // 2, P)), 2, axis=0)
  tokens = np.concatenate([prompts, rng.integers(0, V, (B, R))], axis=1)
  response = np.arange(T)[None] - P < np.asarray([1, 40, 7, 13, 22, 5, 31, 40])[:, None]
  response &= np.arange(T)[None] >= P
  mask = response | (np.arange(T)[None] < P)
  rows = Sequences.from_mask(tokens, mask, response)
  return rows.replace(asked=jnp.broadcast_to(jnp.arange(P, T)[None], (B, R)))


def entropy_and_word(words, tokens):
  logps = jax.nn.log_softmax(words[0].logits)
  of_token = jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
  return -jnp.sum(jnp.exp(logps) * logps, axis=-1), of_token


LOOKS = {
  "evaluate": lambda of: lambda rows: of(POLICY).evaluate(PARAMS, FROZEN, rows, 0.7),
  "compare": lambda of: (
    lambda rows: of(POLICY).compare(PARAMS, FROZEN["reference"], FROZEN, rows, 0.7)
  ),
  "score": lambda of: lambda rows: of(SCORER).score(PARAMS, FROZEN, rows),
  "outputs": lambda of: lambda rows: of(SCORER).outputs(PARAMS, FROZEN, rows),
  "tokens": lambda of: lambda rows: of(SCORER).tokens(PARAMS, FROZEN, rows),
  "over_vocabulary": lambda of: (
    lambda rows: of(POLICY).over_vocabulary(entropy_and_word, (PARAMS,), FROZEN, rows)
  ),
}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_in_parts_says_the_same_of_every_row(name, together, devices):
  rows = written()
  if together == 2:
    rows = rows.in_groups(2)
  whole = jax.jit(LOOKS[name](lambda model: model))(rows)
  mesh = sharding.make_mesh(data=devices)
  placed = jax.device_put(rows, sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    apart = jax.jit(LOOKS[name](lambda model: parts.in_parts(model, 4)))
    found = apart(placed)
    turns = 4 if together * devices < 4 else 2  # two prompts a device are two parts
    assert f"length={turns}" in str(jax.make_jaxpr(apart)(placed))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, whole)


def test_rows_that_do_not_divide_over_the_devices_are_seen_at_once():
  rows = jax.tree.map(lambda x: x[:6], written())
  with jax.set_mesh(sharding.make_mesh(data=4)):
    apart = LOOKS["score"](lambda model: parts.in_parts(model, 2))
    assert "scan" not in str(jax.make_jaxpr(apart)(rows))


def test_joined_is_what_was_split():
  batch = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
  jax.tree.map(np.testing.assert_array_equal, parts.joined(parts.split(batch, 3)), batch)


def test_a_batch_that_is_learned_from_in_parts_is_looked_at_in_parts():
  """Else the look takes the memory that accumulation saves."""
  rollout = Rollout(
    sequences=jax.tree.map(lambda x: jnp.concatenate([x] * 8), written()),
    logps=jnp.zeros((8 * B, T)),
    rewards=jnp.zeros((8 * B, T)),
    truncated=jnp.zeros(8 * B, bool),
  )
  config = ppo.Config(epochs=1, minibatches=1)
  tx = optax.identity()

  def temporaries(looked_at: int) -> int:
    algorithm = parts.algorithm(ppo, POLICY, looked_at)
    state = step.init_state(jax.random.key(0), PARAMS, algorithm, tx, config)
    run = jax.jit(step.make_train_step(algorithm, tx, accumulate=8))
    compiled = run.lower(state, FROZEN, rollout, config).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(8) < 0.5 * temporaries(1)
