"""Times a bare JAX loop, no library around it, and prints one JSON line.

  python -m benchmarks.peers.bare ppo S --dtype=bfloat16

It does less than a library: a batch that never changes, no loader, clipping, metrics or log, and logits of completions only. A
Llama as a list of layers, tuned by hand, `--dtype` being that of the inputs of products: it says what plain JAX can reach
here. `--loss=chunked` never holds all logits, and `--weight-gradient=plain` leaves the layout of gradients to XLA. Fixed set
only, and no GRPO.
"""

from __future__ import annotations

import functools
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from benchmarks.peers import measure
from benchmarks.peers.measure import Case, Clock

Array = jax.Array

CHUNKS = 8  # of the rows of a batch in the chunked loss
KL_COEF, GAE_LAMBDA, CLIP_EPS, VALUE_COEF = 0.05, 0.95, 0.2, 0.1


def main() -> None:
  case = measure.parse(
    __doc__, tuple(TASKS), ("float32", "bfloat16"), loss="full", weight_gradient="layout"
  )
  if case.ragged or case.cached_reference:
    sys.exit("error: the bare loop has neither the ragged set nor a cached reference.")
  clock = Clock(case)
  step = TASKS[case.task](case, Llama(case))
  clock.tick()
  for _ in range(case.warmup + case.steps):
    jax.block_until_ready(step())
    clock.tick()
  measure.report(case, "bare jax", f"jax {jax.__version__}", clock)


def sft(case: Case, model: Llama):
  tokens = _ids(case, case.shape["batch"], case.shape["seq"])

  def loss(params: dict, tokens: Array) -> Array:
    logps = model.logps(params, model.hidden(params, tokens), jnp.roll(tokens, -1, axis=1))
    return -jnp.mean(logps[:, :-1])

  return _training(loss, model.params(), tokens)


def rm(case: Case, model: Llama):
  pairs = case.shape["pairs"]
  tokens = _ids(case, 2 * pairs, case.shape["seq"])

  def loss(params: dict, tokens: Array) -> Array:
    scores = model.scores(params, tokens)[:, -1]
    return -jnp.mean(jax.nn.log_sigmoid(scores[:pairs] - scores[pairs:]))

  return _training(loss, _with_score(model.params()), tokens)


def dpo(case: Case, model: Llama):
  """The reference is computed in the step."""
  shape = case.shape
  pairs, prompt = shape["pairs"], shape["prompt"]
  tokens = _ids(case, 2 * pairs, prompt + shape["completion"])
  params = model.params()
  reference = _copy(params)

  def loss(params: dict, tokens: Array, reference: dict) -> Array:
    log_ratio = model.completion_logps(params, tokens, prompt).sum(1)
    log_ratio -= model.completion_logps(reference, tokens, prompt).sum(1)
    return -jnp.mean(jax.nn.log_sigmoid(0.1 * (log_ratio[:pairs] - log_ratio[pairs:])))

  return _training(loss, params, tokens, reference)


def gen(case: Case, model: Llama):
  prompts, params = _ids(case, case.shape["batch"], case.shape["prompt"]), model.params()
  generate, keys = jax.jit(model.generate, static_argnums=3), _keys()
  return lambda: generate(params, prompts, next(keys), case.shape["new"])


def ppo(case: Case, model: Llama):
  """Policy, critic, reward model and reference, each of model size; all epochs on the whole batch."""
  shape = case.shape
  width = shape["prompt"]
  prompts = _ids(case, shape["batch"], width)
  policy = model.params()
  reference, reward_model = _copy(policy), _with_score(_copy(policy))
  params = {"policy": policy, "critic": _with_score(_copy(policy))}
  optimizer = _ADAMW.init(params)
  generate, keys = jax.jit(model.generate, static_argnums=3), _keys()

  @jax.jit
  def experience(params, reference, reward_model, tokens, old_logps):
    """Old values, returns and whitened advantages, each [B, T]."""
    ref_logps = model.completion_logps(reference, tokens, width)
    values = model.scores(params["critic"], tokens)[:, width - 1 : -1]
    rewards = -KL_COEF * (old_logps - ref_logps)
    rewards = rewards.at[:, -1].add(model.scores(reward_model, tokens)[:, -1])
    deltas = rewards + jnp.pad(values[:, 1:], ((0, 0), (0, 1))) - values
    backwards = lambda advantage, delta: (delta + GAE_LAMBDA * advantage,) * 2
    advantages = jax.lax.scan(backwards, jnp.zeros(len(tokens)), deltas.T, reverse=True)[1].T
    whitened = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return values, advantages + values, whitened

  def loss(params, tokens, old_logps, old_values, returns, advantages):
    ratio = jnp.exp(model.completion_logps(params["policy"], tokens, width) - old_logps)
    clipped = jnp.clip(ratio, 1 - CLIP_EPS, 1 + CLIP_EPS)
    policy_loss = jnp.mean(jnp.maximum(-advantages * ratio, -advantages * clipped))
    values = model.scores(params["critic"], tokens)[:, width - 1 : -1]
    near = old_values + jnp.clip(values - old_values, -CLIP_EPS, CLIP_EPS)
    value_loss = jnp.mean(jnp.maximum((values - returns) ** 2, (near - returns) ** 2)) / 2
    return policy_loss + VALUE_COEF * value_loss

  update = _update(loss)

  def step():
    nonlocal params, optimizer
    written, old_logps = generate(params["policy"], prompts, next(keys), shape["new"])
    tokens = jnp.concatenate([prompts, written], axis=1)
    learned_from = experience(params, reference, reward_model, tokens, old_logps)
    for _ in range(shape["epochs"]):
      params, optimizer, value = update(params, optimizer, tokens, old_logps, *learned_from)
    return value

  return step


TASKS = {"sft": sft, "rm": rm, "dpo": dpo, "gen": gen, "ppo": ppo}


class Llama:
  """The model as functions of a dict of weights, `layers` a list of dicts."""

  def __init__(self, case: Case):
    a = case.architecture
    self.case, self.mixed = case, case.dtype == "bfloat16"
    self.heads, self.kv_heads, self.head_dim = a["heads"], a["kv_heads"], a["d"] // a["heads"]
    self.theta, self.chunked = a["rope_theta"], case.options["loss"] == "chunked"
    self.row_major = case.options["weight_gradient"] == "layout"
    self.dtype = jnp.bfloat16 if self.mixed else jnp.float32  # of what products take

  def params(self) -> dict:
    """Random float32 weights, which cost what trained ones do."""
    a, rng = self.case.architecture, np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.02 * rng.standard_normal(shape, np.float32))
    d, kv = a["d"], self.kv_heads * self.head_dim
    layer = lambda: {
      "norm1": jnp.ones(d),
      "norm2": jnp.ones(d),
      "q": draw(d, d),
      "k": draw(d, kv),
      "v": draw(d, kv),
      "o": draw(d, d),
      "gate": draw(d, a["ffn"]),
      "up": draw(d, a["ffn"]),
      "down": draw(a["ffn"], d),
    }
    layers = [layer() for _ in range(a["layers"])]
    return {"embed": draw(a["vocab"], d), "norm": jnp.ones(d), "layers": layers}

  def hidden(self, params: dict, tokens: Array) -> Array:
    """After the final norm, [B, T, D]."""
    T = tokens.shape[1]
    angles, mask = self._angles(jnp.arange(T)), jnp.tril(jnp.ones((T, T), bool))
    x = params["embed"][tokens]
    for layer in params["layers"]:
      x, _ = self._block(layer, x, angles, mask)
    return _norm(x, params["norm"])

  def logps(self, params: dict, hidden: Array, targets: Array) -> Array:
    """log p of `targets`, [B, T]."""

    def of(hidden, targets):
      logits = self._product(hidden, params["embed"].T, embedding=params["embed"])
      return _logps(logits, targets)

    if not self.chunked:
      return of(hidden, targets)
    parts = lambda x: x.reshape(CHUNKS, -1, *x.shape[2:])
    chunk = lambda pair: jax.checkpoint(of)(*pair)
    return jax.lax.map(chunk, (parts(hidden), parts(targets))).reshape(targets.shape)

  def completion_logps(self, params: dict, tokens: Array, prompt: int) -> Array:
    hidden = self.hidden(params, tokens)
    return self.logps(params, hidden[:, prompt - 1 : -1], tokens[:, prompt:])

  def scores(self, params: dict, tokens: Array) -> Array:
    """[B, T], of the head `score`."""
    return self.hidden(params, tokens) @ params["score"]

  def generate(self, params: dict, prompts: Array, key: Array, new: int) -> tuple[Array, Array]:
    """`new` sampled tokens and their log-probs, each [B, new]."""
    B, P = prompts.shape
    if self.mixed:  # one copy, which all steps read
      params = jax.tree.map(lambda w: w.astype(self.dtype) if w.ndim == 2 else w, params)
    grow = lambda x: jnp.pad(x.astype(self.dtype), ((0, 0), (0, new), (0, 0), (0, 0)))
    angles, mask = self._angles(jnp.arange(P)), jnp.tril(jnp.ones((P, P), bool))
    x, cache = params["embed"][prompts].astype(jnp.float32), []
    for layer in params["layers"]:
      x, kv = self._block(layer, x, angles, mask)
      cache.append(jax.tree.map(grow, kv))

    def body(i, carry):
      key, x, cache, tokens, logps = carry
      key, sample_key = jax.random.split(key)
      logits = self._product(_norm(x, params["norm"]), params["embed"].T)
      token = jax.random.categorical(sample_key, logits).astype(jnp.int32)
      tokens, logps = tokens.at[:, i].set(token), logps.at[:, i].set(_logps(logits, token))
      x, cache = self._decode(params, token, P + i, cache)
      return key, x, cache, tokens, logps

    empty = (jnp.zeros((B, new), jnp.int32), jnp.zeros((B, new)))
    return jax.lax.fori_loop(0, new, body, (key, x[:, -1], cache, *empty))[3:]

  def _decode(self, params: dict, token: Array, position: Array, cache: list):
    """One token more: [B, D] before the final norm, and the cache with it."""
    B, S = len(token), cache[0][0].shape[1]
    angles, seen = self._angles(position[None]), jnp.arange(S) <= position
    x, after = params["embed"][token].astype(jnp.float32)[:, None], []
    for layer, (keys, values) in zip(params["layers"], cache, strict=True):
      q, k, v = self._qkv(layer, x, angles)
      put = lambda old, new: jax.lax.dynamic_update_slice(
        old, new.astype(old.dtype), (0, position, 0, 0)
      )
      keys, values = put(keys, k), put(values, v)
      after.append((keys, values))
      q = q.reshape(B, self.kv_heads, -1, self.head_dim).astype(self.dtype) * self.head_dim**-0.5
      logits = _einsum("bkgd,bskd->bkgs", q, keys)
      weights = jax.nn.softmax(jnp.where(seen, logits, -1e30)).astype(self.dtype)
      x = self._after_attention(
        layer, x, _einsum("bkgs,bskd->bkgd", weights, values).reshape(B, 1, -1)
      )
    return x[:, 0], after

  def _block(self, layer: dict, x: Array, angles, mask: Array):
    """[B, T, D] and the layer's keys and values, [B, T, K, C]."""
    B, T, _ = x.shape
    K, C = self.kv_heads, self.head_dim
    q, k, v = self._qkv(layer, x, angles)
    # Heads first, and all queries of a key's group in one matrix.
    to_heads = lambda x: x.astype(self.dtype).swapaxes(1, 2)
    q = to_heads(q * C**-0.5).reshape(B, K, -1, C)  # [B, K, G T, C]
    logits = _einsum("bkqd,bksd->bkqs", q, to_heads(k)).reshape(B, self.heads, T, T)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30)).astype(self.dtype)
    mixed = _einsum("bkqs,bksd->bkqd", weights.reshape(B, K, -1, T), to_heads(v))
    return self._after_attention(
      layer, x, mixed.reshape(B, -1, T, C).swapaxes(1, 2).reshape(x.shape)
    ), (k, v)

  def _qkv(self, layer: dict, x: Array, angles):
    h = _norm(x, layer["norm1"])
    q, k, v = (
      self._product(h, layer[name]).reshape(*x.shape[:2], -1, self.head_dim) for name in "qkv"
    )
    return _rotate(q, angles), _rotate(k, angles), v

  def _after_attention(self, layer: dict, x: Array, mixed: Array) -> Array:
    x = x + self._product(mixed, layer["o"])
    h = _norm(x, layer["norm2"])
    gated = jax.nn.silu(self._product(h, layer["gate"])) * self._product(h, layer["up"])
    return x + self._product(gated, layer["down"])

  def _angles(self, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines, [T, 1, C / 2]."""
    frequencies = self.theta ** (-jnp.arange(0, self.head_dim, 2) / self.head_dim)
    angles = positions[:, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)

  def _product(self, x: Array, w: Array, *, embedding: Array | None = None) -> Array:
    """x w in float32; `embedding` is w's transpose where w is the tied head, whose gradient is then of its layout."""
    if not self.mixed:
      return x @ w
    if embedding is not None:
      return _mixed_head(x, embedding, self.row_major)
    return _mixed(x, w, self.row_major)


# bfloat16 in, float32 out; a transposed operand leaves the fast path of a CPU unless its layout is said.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed(x: Array, w: Array, row_major: bool) -> Array:
  return _einsum("...d,df->...f", _bf16(x), _bf16(w))


def _mixed_forward(x, w, row_major):
  x, w = _bf16(x), _bf16(w)
  return _einsum("...d,df->...f", x, w), (x, w)


def _mixed_backward(row_major, saved, g):
  x, w = saved
  g = _bf16(g)
  return _einsum("...f,df->...d", g, w), _weight_gradient(x, g, row_major)


_mixed.defvjp(_mixed_forward, _mixed_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mixed_head(x: Array, embedding: Array, row_major: bool) -> Array:
  return _einsum("...d,vd->...v", _bf16(x), _bf16(embedding))


def _head_forward(x, embedding, row_major):
  x, embedding = _bf16(x), _bf16(embedding)
  return _einsum("...d,vd->...v", x, embedding), (x, embedding)


def _head_backward(row_major, saved, g):
  x, embedding = saved
  g = _bf16(g)
  return _einsum("...v,vd->...d", g, embedding), _weight_gradient(g, x, row_major)


_mixed_head.defvjp(_head_forward, _head_backward)


def _weight_gradient(x: Array, g: Array, row_major: bool) -> Array:
  """xᵀ g over all rows, float32[D, F]."""
  x = x.reshape(-1, x.shape[-1]).T
  if row_major:
    x = with_layout_constraint(x, Layout(major_to_minor=(0, 1)))
  return _einsum("dn,nf->df", x, g.reshape(-1, g.shape[-1]))


def _einsum(equation: str, a: Array, b: Array) -> Array:
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _bf16(x: Array) -> Array:
  return x.astype(jnp.bfloat16)


def _norm(x: Array, weight: Array) -> Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight


def _rotate(x: Array, angles: tuple[Array, Array]) -> Array:
  cos, sin = angles
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _logps(logits: Array, tokens: Array) -> Array:
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


_ADAMW = optax.adamw(1e-5)


def _update(loss):
  """(params, optimizer, *batch) -> the same after a step, and the loss; donates what it replaces."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, optimizer, *batch):
    value, grads = jax.value_and_grad(loss)(params, *batch)
    updates, optimizer = _ADAMW.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), optimizer, value

  return update


def _training(loss, params: dict, *batch):
  update, optimizer = _update(loss), _ADAMW.init(params)

  def step():
    nonlocal params, optimizer
    params, optimizer, value = update(params, optimizer, *batch)
    return value

  return step


def _with_score(params: dict) -> dict:
  return params | {"score": jnp.zeros(params["norm"].shape)}


def _copy(params: dict) -> dict:
  return jax.tree.map(jnp.copy, params)


def _ids(case: Case, *shape: int) -> Array:
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(measure.FIRST, case.architecture["vocab"], shape), jnp.int32)


def _keys():
  seed = 0
  while True:
    yield jax.random.key(seed)
    seed += 1


if __name__ == "__main__":
  main()
