"""Names of weights, both ways: Hugging Face's state dict and the canonical parameter tree.

Each family has one table, a list of `Entry`, made from its config: it gives the tensor's name and shape in a Hugging
Face checkpoint and the path of the same numbers in our tree. Reading, writing and checking all go through it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
  """One tensor of a Hugging Face checkpoint and its place in the tree."""

  name: str
  shape: tuple[int, ...]  # in the checkpoint
  path: str  # `layers_0/attention/q/kernel`; a fused tensor has several, joined along its last axis
  more_paths: tuple[str, ...] = ()
  transposed: bool = False  # torch's Linear keeps [out, in], our kernels are [in, out]


def from_hf(config: Any, tensors: Mapping[str, np.ndarray], *, where: str = "checkpoint") -> dict:
  """The canonical tree, float32, from the tensors of a Hugging Face checkpoint.

  Raises ValueError naming the tensors that are missing, that have another shape, or that have no place in the tree.
  """
  family = _family(config)
  entries = family.table(config)
  tensors = {
    family.canonical_name(name): array
    for name, array in tensors.items()
    if not family.buffers.search(name)
  }
  _check_tied_head(config, tensors, family, where)
  _check(tensors, entries, where)
  tree: dict = {}
  for entry in entries:
    array = np.asarray(tensors[entry.name], np.float32)
    array = array.T if entry.transposed else array
    paths = (entry.path, *entry.more_paths)
    for path, part in zip(paths, np.split(array, len(paths), axis=-1), strict=True):
      _put(tree, path, np.ascontiguousarray(part))
  return tree


def to_hf(config: Any, params: Mapping) -> dict[str, np.ndarray]:
  """Tensors under Hugging Face's names and in its layout, from a canonical tree.

  Raises ValueError naming the leaves that are missing, have another shape, or have no place in a checkpoint.
  """
  leaves = dict(_leaves(params))
  out = {}
  for entry in _family(config).table(config):
    parts = []
    for path in (entry.path, *entry.more_paths):
      if path not in leaves:
        raise ValueError(f"params have no {path}, which {entry.name} is written from.")
      parts.append(np.asarray(leaves.pop(path)))
    array = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    array = np.ascontiguousarray(array.T if entry.transposed else array)
    if array.shape != entry.shape:
      raise ValueError(
        f"params at {entry.path} make {entry.name} of shape {array.shape}, expected {entry.shape}."
      )
    out[entry.name] = array
  if any(path.startswith("q_heads/") for path in leaves):
    raise ValueError(
      "Q heads move what this policy writes, and a Hugging Face model has no place for them; write what it "
      "was trained from instead (--stage=sft), or generate, evaluate and chat from its workdir."
    )
  if leaves:
    raise ValueError(
      f"params hold {_some(leaves)}, which have no place in a checkpoint of a {config.model_type} model;"
      " merge adapters and drop heads before writing."
    )
  return out


def llama_table(config: Any) -> list[Entry]:
  D, F, V, C = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
  q, kv = config.num_heads * C, config.num_kv_heads * C

  def linear(name: str, path: str, inputs: int, outputs: int, bias: bool = False) -> list[Entry]:
    kernel = Entry(f"{name}.weight", (outputs, inputs), f"{path}/kernel", transposed=True)
    return [kernel, Entry(f"{name}.bias", (outputs,), f"{path}/bias")] if bias else [kernel]

  def layer(i: int) -> list[Entry]:
    theirs, ours = f"model.layers.{i}", f"layers_{i}"
    attention = f"{ours}/attention"
    entries = [
      Entry(f"{theirs}.input_layernorm.weight", (D,), f"{ours}/attention_norm/scale"),
      *linear(f"{theirs}.self_attn.q_proj", f"{attention}/q", D, q, config.qkv_bias),
      *linear(f"{theirs}.self_attn.k_proj", f"{attention}/k", D, kv, config.qkv_bias),
      *linear(f"{theirs}.self_attn.v_proj", f"{attention}/v", D, kv, config.qkv_bias),
      *linear(f"{theirs}.self_attn.o_proj", f"{attention}/o", q, D, config.o_bias),
      Entry(f"{theirs}.post_attention_layernorm.weight", (D,), f"{ours}/mlp_norm/scale"),
      *linear(f"{theirs}.mlp.gate_proj", f"{ours}/mlp/gate", D, F),
      *linear(f"{theirs}.mlp.up_proj", f"{ours}/mlp/up", D, F),
      *linear(f"{theirs}.mlp.down_proj", f"{ours}/mlp/down", F, D),
    ]
    if config.qk_norm:
      entries += [
        Entry(f"{theirs}.self_attn.q_norm.weight", (C,), f"{attention}/q_norm/scale"),
        Entry(f"{theirs}.self_attn.k_norm.weight", (C,), f"{attention}/k_norm/scale"),
      ]
    return entries

  table = [
    Entry("model.embed_tokens.weight", (V, D), "embed/embedding"),
    *(entry for i in range(config.num_layers) for entry in layer(i)),
    Entry("model.norm.weight", (D,), "final_norm/scale"),
  ]
  return table if config.tied else table + linear("lm_head", "unembed", D, V)


def gpt2_table(config: Any) -> list[Entry]:
  D, F, V, P = (
    config.hidden_size,
    config.intermediate_size,
    config.vocab_size,
    config.max_positions,
  )

  def norm(name: str, path: str) -> list[Entry]:
    return [
      Entry(f"{name}.weight", (D,), f"{path}/scale"),
      Entry(f"{name}.bias", (D,), f"{path}/bias"),
    ]

  def conv1d(name: str, inputs: int, outputs: int, *paths: str) -> list[Entry]:
    """OpenAI's Conv1D: a linear layer that keeps [in, out]."""
    kernels, biases = [f"{p}/kernel" for p in paths], [f"{p}/bias" for p in paths]
    return [
      Entry(f"{name}.weight", (inputs, outputs), kernels[0], tuple(kernels[1:])),
      Entry(f"{name}.bias", (outputs,), biases[0], tuple(biases[1:])),
    ]

  def layer(i: int) -> list[Entry]:
    theirs, ours = f"transformer.h.{i}", f"layers_{i}"
    attention = f"{ours}/attention"
    return [
      *norm(f"{theirs}.ln_1", f"{ours}/attention_norm"),
      *conv1d(f"{theirs}.attn.c_attn", D, 3 * D, *(f"{attention}/{x}" for x in "qkv")),
      *conv1d(f"{theirs}.attn.c_proj", D, D, f"{attention}/o"),
      *norm(f"{theirs}.ln_2", f"{ours}/mlp_norm"),
      *conv1d(f"{theirs}.mlp.c_fc", D, F, f"{ours}/mlp/up"),
      *conv1d(f"{theirs}.mlp.c_proj", F, D, f"{ours}/mlp/down"),
    ]

  table = [
    Entry("transformer.wte.weight", (V, D), "embed/embedding"),
    Entry("transformer.wpe.weight", (P, D), "position_embed/embedding"),
    *(entry for i in range(config.num_layers) for entry in layer(i)),
    *norm("transformer.ln_f", "final_norm"),
  ]
  if config.tied:
    return table
  return [*table, Entry("lm_head.weight", (V, D), "unembed/kernel", transposed=True)]


class Family(NamedTuple):
  """How one family's checkpoints are named."""

  table: Callable[[Any], list[Entry]]
  prefix: str  # of all but the head; checkpoints of the bare trunk lack it
  embedding: str
  buffers: re.Pattern  # constants that old checkpoints saved among the weights

  def canonical_name(self, name: str) -> str:
    return name if name.startswith((self.prefix, "lm_head.")) else self.prefix + name


LLAMA = Family(
  llama_table, "model.", "model.embed_tokens.weight", re.compile(r"\.rotary_emb\.inv_freq$")
)
GPT2 = Family(
  gpt2_table, "transformer.", "transformer.wte.weight", re.compile(r"\.attn\.(masked_)?bias$")
)
FAMILIES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt2": GPT2}


def _family(config: Any) -> Family:
  if config.model_type not in FAMILIES:
    raise ValueError(
      f"model_type={config.model_type!r} has no table of weight names; known are {', '.join(FAMILIES)}."
    )
  return FAMILIES[config.model_type]


def _check_tied_head(config, tensors: dict[str, np.ndarray], family: Family, where: str) -> None:
  """Drops a saved copy of a tied head, once it is seen to be one."""
  if not config.tied or "lm_head.weight" not in tensors:
    return
  head = tensors.pop("lm_head.weight")
  if not np.array_equal(head, tensors.get(family.embedding)):
    raise ValueError(
      f"{where}: lm_head.weight differs from {family.embedding} though the config ties them;"
      " set tie_word_embeddings to false in config.json if the head is its own."
    )


def _check(tensors: Mapping[str, np.ndarray], entries: list[Entry], where: str) -> None:
  missing = [f"{e.name} {e.shape}" for e in entries if e.name not in tensors]
  if missing:
    raise ValueError(f"{where} lacks {_some(missing)}; is it a checkpoint of this config?")
  wrong = [
    f"{e.name}: found shape {tuple(tensors[e.name].shape)}, expected {e.shape}"
    for e in entries
    if tuple(tensors[e.name].shape) != e.shape
  ]
  if wrong:
    raise ValueError(f"{where} does not fit its config: {_some(wrong)}.")
  extra = sorted(set(tensors) - {e.name for e in entries})
  if extra:
    raise ValueError(
      f"{where} holds {_some([f'{n} {tuple(tensors[n].shape)}' for n in extra])}, which the config has no place for."
    )


def _some(names, most: int = 5) -> str:
  names = list(names)
  rest = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + rest


def _put(tree: dict, path: str, leaf: np.ndarray) -> None:
  *parents, last = path.split("/")
  for name in parents:
    tree = tree.setdefault(name, {})
  tree[last] = leaf


def _leaves(tree: Mapping, prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{name}/")
    else:
      yield f"{prefix}{name}", value
