"""What models see in parts is what they see at once, in less memory."""

import re

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

V, D, P, R = 67, 32, 24, 37
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
POLICY = policy.make_policy(MODEL, critic="shared", chunk=512)
SCORER = policy.make_scorer(MODEL)
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
  "model": MODEL.init(KEYS[0]),
  "value_head": heads.init_head(KEYS[1], D, 0.5),
  "reward_head": heads.init_head(KEYS[2], D, 0.5),
}
FROZEN = {"base": {}, "reference": {"model": MODEL.init(jax.random.key(9))}}


def written(prompts: int = 4, group: int = 2) -> Sequences:
  """Prompts that `group` adjacent rows have in common, and answers of 1 to 37 tokens."""
  rng, B = np.random.default_rng(1), prompts * group
  asked = np.repeat(rng.integers(0, V, (prompts, P)), group, axis=0)
  tokens = np.concatenate([asked, rng.integers(0, V, (B, R))], axis=1)
  column = np.arange(T)[None]
  response = (column >= P) & (column < P + rng.integers(1, R + 1, (B, 1)))
  rows = Sequences.from_mask(tokens, response | (column < P), response)
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


def turns(function, rows) -> int:
  """Of its loop over parts."""
  lengths = re.findall(r"length=(\d+)\b", str(jax.make_jaxpr(function)(rows)))
  assert len(lengths) <= 1
  return int(lengths[0]) if lengths else 1


def assert_the_same(found, whole):
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found, whole)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
  ("name", "group"),
  [(name, group) for name in LOOKS for group in (1, 2) if (name, group) != ("over_vocabulary", 2)],
)
def test_a_look_in_parts_says_the_same_of_every_row(name, group, devices):
  rows = written() if group == 1 else written().in_groups(group)
  whole = jax.jit(LOOKS[name](lambda model: model))(rows)
  mesh = sharding.make_mesh(data=devices)
  placed = jax.device_put(rows, sharding.batch_sharding(mesh))
  with jax.set_mesh(mesh):
    apart = LOOKS[name](lambda model: parts.in_parts(model, 4))
    # Eight rows, or four prompts, of which a device has two where there are two.
    assert turns(apart, placed) == (2 if group * devices == 4 else 4)
    assert_the_same(jax.jit(apart)(placed), whole)


@pytest.mark.parametrize(
  ("prompts", "group", "devices", "expected"),
  [
    (9, 2, 1, 9),  # not 8 parts, but more
    (3, 4, 1, 3),  # not 8: one prompt at a time
    (3, 4, 2, 6),  # three prompts do not divide over two devices, their twelve answers do
    (3, 3, 2, 1),  # and these do not
  ],
)
def test_prompts_that_do_not_make_the_parts_make_as_small_ones(prompts, group, devices, expected):
  rows = written(prompts, group).in_groups(group)
  whole = jax.jit(LOOKS["score"](lambda model: model))(rows)
  with jax.set_mesh(sharding.make_mesh(data=devices)):
    apart = LOOKS["score"](lambda model: parts.in_parts(model, 8))
    assert turns(apart, rows) == expected
    found = jax.jit(apart)(rows)
  assert found.shape == (prompts, group)
  assert_the_same(found, whole)


def test_joined_is_what_was_split():
  batch = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
  jax.tree.map(np.testing.assert_array_equal, parts.joined(parts.split(batch, 3)), batch)


def test_a_batch_that_is_learned_from_in_parts_is_looked_at_in_parts():
  """Else the look takes the memory that accumulation saves."""
  rollout = Rollout(
    sequences=written(prompts=32),
    logps=jnp.zeros((64, T)),
    rewards=jnp.zeros((64, T)),
    truncated=jnp.zeros(64, bool),
  )
  config = ppo.Config(epochs=1, minibatches=1)
  tx = optax.identity()

  def temporaries(looked_at: int) -> int:
    algorithm = parts.make_algorithm(ppo, POLICY, looked_at)
    state = step.init_state(jax.random.key(0), PARAMS, algorithm, tx, config)
    run = jax.jit(step.make_train_step(algorithm, tx, accumulate=8))
    compiled = run.lower(state, FROZEN, rollout, config).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(8) < 0.5 * temporaries(1)
