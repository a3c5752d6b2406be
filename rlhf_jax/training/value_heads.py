"""The heads that an algorithm learns values of tokens with, as its module's `HEADS` asks for them."""

from __future__ import annotations

from rlhf_jax.models import heads, q_heads
from rlhf_jax.training.setup import Setup
from rlhf_jax.types import Params, ValueHeads


def added(setup: Setup, module, config, params: Params) -> Params:
  """`params` with fresh heads that say 0; as they are where `module` asks for none.

  Q heads that act are laid beside the model's own weights, or adapters, and so go wherever the policy goes.
  """
  wanted: ValueHeads | None = getattr(module, "HEADS", None)
  if wanted is None:
    return params
  family = setup.model.config
  fresh = q_heads.init_q_heads(
    setup.key("q heads"), family.hidden_size, family.vocab_size, wanted.q
  )
  if wanted.acts:
    acting = q_heads.acting(fresh, config.scale)
    params = {**params, "model": {**params["model"], q_heads.NAME: acting}}
  else:
    params = {**params, q_heads.NAME: fresh}
  if wanted.v:
    value_head = heads.init_head(setup.key("value head"), family.hidden_size, std=0.0)
    params = {**params, "value_head": value_head}
  return params
