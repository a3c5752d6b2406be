"""The model families by name: from a Hugging Face config to a language model of pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.models import decoder, gpt2, llama, products, q_heads, quantize
from rlhf_jax.models.remat import POLICIES
from rlhf_jax.types import LanguageModel

CONFIGS = {
  **dict.fromkeys(llama.MODEL_TYPES, llama.LlamaConfig),
  **dict.fromkeys(gpt2.MODEL_TYPES, gpt2.GPT2Config),
}
FAMILIES = {llama.LlamaConfig: llama, gpt2.GPT2Config: gpt2}


def config_from_hf(hf: Mapping[str, Any]):
  """The family's config of a Hugging Face config.json; ValueError for a family that is not here."""
  model_type = hf.get("model_type")
  if model_type not in CONFIGS:
    raise ValueError(
      f"the model config has model_type={model_type!r}; supported: {', '.join(CONFIGS)}."
    )
  return CONFIGS[model_type].from_hf(hf)


def language_model(
  config,
  *,
  dtype: str = "float32",
  remat: bool = False,
  remat_policy: str = "nothing_saveable",
  scan: bool = False,
  sequence: bool = False,
) -> LanguageModel:
  """The model that `config` describes.

  `dtype` is that of the inputs of matrix products, "float32" or "bfloat16"; their outputs and all
  else are float32. `remat` recomputes each block in the backward pass, but for what
  `remat_policy`, a name in `remat.POLICIES`, lets it keep. `scan` runs the layers as a
  loop over stacked weights: it compiles faster, and copies the weights when given a canonical tree.
  `sequence` spreads what is between blocks over the mesh along time, too.
  """
  if dtype not in products.COMPUTE_DTYPES:
    raise ValueError(f"dtype={dtype!r} is not one of {', '.join(products.COMPUTE_DTYPES)}.")
  if remat_policy not in POLICIES:
    raise ValueError(f"remat_policy={remat_policy!r} is not one of {', '.join(POLICIES)}.")
  family = FAMILIES[type(config)].family(config, dtype)
  return decoder.language_model(
    family, dtype=dtype, remat=remat, remat_policy=remat_policy, scan=scan, sequence=sequence
  )


def axes(config) -> tuple:
  """(path pattern, logical axes) of every matrix of the family and its Q heads, for `sharding.tree_shardings`."""
  return (*quantize.axes(FAMILIES[type(config)].AXES), *q_heads.AXES)
