"""Golden logits from Transformers: a tiny random model of every family, and SmolLM2-135M on sentences.

pip install torch==2.13.0 transformers==5.23.0 gguf accelerate
python tests/parity/transformers_logits.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

Tiny models carry no weights in the file: each tensor is drawn from a seed that is the checksum of its name,
and the tests draw the same. Rows are one full, one padded on the left, one padded on the right.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import zlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

LLAMA = dict(
  vocab_size=19,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  rope_theta=100.0,
  tie_word_embeddings=False,
)
LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
GPT2 = dict(
  bos_token_id=0, eos_token_id=0, vocab_size=19, n_embd=16, n_layer=2, n_head=4, n_positions=32
)
CASES = {
  "llama, untied": transformers.LlamaConfig(**LLAMA),
  "llama, tied": transformers.LlamaConfig(**{**LLAMA, "tie_word_embeddings": True}),
  "llama, biased attention": transformers.LlamaConfig(**LLAMA, attention_bias=True),
  "llama, wide heads": transformers.LlamaConfig(**LLAMA, head_dim=10),
  "llama, llama3 positions": transformers.LlamaConfig(**LLAMA, rope_scaling=LLAMA3),
  "llama, linear positions": transformers.LlamaConfig(
    **LLAMA, rope_scaling=dict(rope_type="linear", factor=2.5)
  ),
  "mistral": transformers.MistralConfig(**LLAMA, head_dim=4, sliding_window=None),
  "qwen2": transformers.Qwen2Config(**LLAMA),
  "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=6),
  "gpt2": transformers.GPT2Config(**GPT2),
  "gpt2, narrow": transformers.GPT2Config(**GPT2, n_inner=20),
}

SENTENCES = (
  "These cookies arrived fresh and my whole family loved them.",
  "The capital of France is Paris, and",
  "def fibonacci(n):\n    return n if n < 2 else",
)


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The weight called `name`: deviation 0.3 around 1 for norm scales and around 0 for all else."""
  center = 1.0 if name.endswith("weight") and ("norm" in name or "ln_" in name) else 0.0
  random = np.random.RandomState(zlib.crc32(name.encode()))
  return (center + 0.3 * random.standard_normal(shape)).astype(np.float32)


def tiny(config) -> dict:
  """One case: the config as its config.json has it, the names and shapes of tensors, inputs, logits."""
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
  shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(torch.from_numpy(seeded(name, shapes[name])))
  tokens = np.random.RandomState(0).randint(0, 19, (3, 9))
  mask = np.array([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    inputs = dict(input_ids=tokens, attention_mask=mask, position_ids=positions)
    logits = model(**{name: torch.tensor(x) for name, x in inputs.items()}).logits
  logits = np.where(mask[..., None] > 0, logits.float().numpy(), 0.0)
  return dict(
    config={k: v for k, v in config.to_dict().items() if v is not None},
    shapes=shapes,
    tokens=tokens.tolist(),
    mask=mask.tolist(),
    logits=np.round(logits, 6).tolist(),
  )


def smollm2(path: pathlib.Path) -> dict:
  """Each sentence's tokens, log-normaliser and logits of every 768th token, at every position.

  Products are in float64: in float32 Transformers itself is up to 5e-5 from these numbers.
  """
  where = dict(gguf_file=path.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, dtype=torch.float32, attn_implementation="eager", **where
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **where)
  # The file says 1e-5; Transformers' reader of GGUF leaves its own default.
  for module in model.modules():
    if hasattr(module, "variance_epsilon"):
      module.variance_epsilon = 1e-5
  model = model.double()
  rope, channels = model.config.rope_parameters, model.config.head_dim
  exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
  model.model.rotary_emb.inv_freq = rope["rope_theta"] ** -exponents
  vocabulary = list(range(0, model.config.vocab_size, 768))
  sentences = []
  for text in SENTENCES:
    tokens = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
      logits = model(tokens).logits[0]
    sentences.append(
      dict(
        text=text,
        tokens=tokens[0].tolist(),
        normalizer=np.round(torch.logsumexp(logits, -1).numpy(), 6).tolist(),
        logits=np.round(logits[:, vocabulary].numpy(), 6).tolist(),
      )
    )
  return dict(file=path.name, vocabulary=vocabulary, sentences=sentences)


def main():
  versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
  golden = {
    "library": versions,
    "function": "AutoModelForCausalLM, float32, attn_implementation='eager'",
    "cases": {name: tiny(config) for name, config in CASES.items()},
  }
  if len(sys.argv) > 1:
    golden["smollm2"] = smollm2(pathlib.Path(sys.argv[1]).resolve())
  path = GOLDEN / "transformers_logits.json"
  path.write_text(json.dumps(golden) + "\n")
  print(path, path.stat().st_size)


if __name__ == "__main__":
  main()
