"""Two models with one vocabulary as one: a geometric mixture of their next-token distributions (arXiv:2312.00886).

    μ(v | x) ∝ π(v | x)^(1 − c) π_ref(v | x)^c

It is mixed anew at every token, so that a whole answer's probability is not the mixture of theirs. A temperature of the sampler is then
one of both.
"""

from __future__ import annotations

import jax.numpy as jnp

from rlhf_jax.types import LanguageModel

MODELS = ("policy", "reference")


def mixture(model: LanguageModel, coef) -> LanguageModel:
  """μ with `coef` c, for parameters {"policy": ..., "reference": ...}, both of `model`; each runs beside the other.

  A hidden state is both models' side by side, [..., 2D]. Logits are (1 − c) those of π and c those of π_ref: what either lacks to
  its log-probabilities is one number at each place, which the softmax of the mixture takes away.
  """

  def both(function):
    """`function(name)` of both models: their hidden states as one, and their caches."""
    hidden, caches = zip(*(function(name) for name in MODELS), strict=True)
    return jnp.concatenate(hidden, axis=-1), dict(zip(MODELS, caches, strict=True))

  def hidden(params, tokens, positions, segments):
    return both(lambda n: (model.hidden(params[n], tokens, positions, segments), None))[0]

  def unembed(params, hidden):
    own, other = jnp.split(hidden, 2, axis=-1)
    logits = model.unembed(params["policy"], own), model.unembed(params["reference"], other)
    return (1.0 - coef) * logits[0] + coef * logits[1]

  def init_cache(batch, length):
    return {name: model.init_cache(batch, length) for name in MODELS}

  def prefill(params, tokens, positions, segments, cache):
    return both(lambda n: model.prefill(params[n], tokens, positions, segments, cache[n]))

  def decode_step(params, token, cache):
    return both(lambda n: model.decode_step(params[n], token, cache[n]))

  def prefill_rows(params, tokens, positions, segments, cache, rows):
    return both(
      lambda n: model.prefill_rows(params[n], tokens, positions, segments, cache[n], rows)
    )

  return model._replace(
    init=lambda key: dict.fromkeys(MODELS, model.init(key)),
    hidden=hidden,
    unembed=unembed,
    init_cache=init_cache,
    prefill=prefill,
    decode_step=decode_step,
    prefill_rows=prefill_rows,
  )
