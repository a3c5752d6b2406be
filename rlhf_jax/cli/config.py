"""`--config=FILE` with `--config.x.y=value` overrides: a plain dict, each value of its declared type."""

from __future__ import annotations

import difflib
import runpy
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from rlhf_jax.cli.parser import UsageError
from rlhf_jax.config import suggest
from rlhf_jax.training import options

HINT = "An experiment's file shows its options; `rlhf-jax train --help` shows how to set them."


def load(arguments: list[str]) -> dict[str, Any]:
  """The config of `arguments`, such as `["--config=experiments/tiny.py", "--config.seed=1"]`.

  Raises UsageError for an option that does not exist or a value of another type, and ValueError or
  FileNotFoundError for a file that holds no `get_config()`.
  """
  files = [a.partition("=")[2] for a in arguments if a.split("=")[0] == "--config"]
  if len(files) != 1 or not files[0]:
    raise UsageError("--config=FILE is needed once, with an experiment's file.", HINT)
  overrides = [a for a in arguments if a.startswith("--config.")]
  config = read(files[0])
  for name in dict.fromkeys(a.split("=")[0] for a in overrides):
    _declare(config, name.removeprefix("--config."))
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, lock_config=False, sys_argv=["rlhf-jax", *overrides]
    )
    values(["rlhf-jax", *overrides])
  except flags.Error as error:
    raise UsageError(str(error).removeprefix("flag "), HINT) from error
  return values.config.to_dict()


def read(path: str) -> ConfigDict:
  """What `get_config()` of the file at `path` returns, or `get_config("x")` of `path:x`."""
  file, argument = Path(path), ()
  if not file.is_file() and ":" in file.name:
    before, _, after = path.rpartition(":")
    file, argument = Path(before), (after,)
  if not file.is_file():
    others = [str(other) for other in file.parent.glob("*.py")]
    near = difflib.get_close_matches(str(file), others, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; give an experiment's file."
    raise FileNotFoundError(f"--config={path} does not exist{hint}")
  try:
    get_config = runpy.run_path(str(file)).get("get_config")
    config = get_config and get_config(*argument)
  except Exception as error:  # whatever the code in that file does
    line = traceback.extract_tb(error.__traceback__)[-1].lineno
    where = "" if isinstance(error, SyntaxError) else f" in line {line}"  # which names it itself
    raise ValueError(f"--config={path} fails{where}: {type(error).__name__}: {error}") from error
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f"--config={path} should define get_config(), returning a ConfigDict; copy experiments/tiny.py."
    )
  return config


def _declare(config: ConfigDict, name: str) -> None:
  """Makes `name`, "section.field" say, a field of `config` with its declared type and its default.

  Raises UsageError where neither the file nor the package knows it.
  """
  section, _, field = name.partition(".")
  sections = {*config, *options.sections()}
  if section not in sections:
    raise UsageError(f"--config.{section} is not an option{suggest(section, sections)}", HINT)
  declared = options.fields(section) if section in options.sections() else {}
  if field in declared:
    if section not in config:
      config[section] = ConfigDict()
    kind, default = declared[field]
    value = config[section].get(field, default)
    if field in config[section]:
      del config[section][field]
    config[section][field] = FieldReference(value, field_type=_flag_type(kind))
  elif not _holds(config, name):
    where, _, last = name.rpartition(".")
    known = config[where] if where != section and _holds(config, where) else declared
    raise UsageError(f"--config.{name} is not an option{suggest(last, known)}", HINT)


def _flag_type(kind) -> type:
  """The type by which config_flags parses a field declared as `kind`; `object` is any literal."""
  kind = typing.get_origin(kind) or kind
  return kind if kind in (int, float, bool, str, tuple) else object


def _holds(config: ConfigDict, name: str) -> bool:
  """Whether `config` has the field "section.field.field"."""
  for part in name.split("."):
    if not isinstance(config, Mapping | ConfigDict) or part not in config:
      return False
    config = config[part]
  return True
