"""Options of a verb, with the nearest names for one that does not exist."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


class UsageError(Exception):
  """The command line is not one we understand; `hint` says where to read on."""

  def __init__(self, message: str, hint: str):
    super().__init__(message)
    self.hint = hint


class Parser(argparse.ArgumentParser):
  """argparse for one verb: help from the module's docstring, `--config.x.y=value` gathered apart."""

  def __init__(self, verb: str, text: str):
    self.names: list[str] = []
    self.required: list[str] = []
    super().__init__(
      prog=f"rlhf-jax {verb}",
      usage=f"rlhf-jax {verb} [options]",
      description=text,
      formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
      allow_abbrev=False,
      add_help=False,
    )
    self.takes_config = False
    self.add_argument("--help", "-h", action="store_true", help="show this text")
    self.add_argument("--debug", action="store_true", help="show the traceback of an error")

  def add_argument(self, *names, required: bool = False, **options):
    """As in argparse, but that an option that does not exist is named before one that is missing."""
    action = super().add_argument(*names, **options)
    self.required += [action.dest] if required else []
    self.names += [name for name in action.option_strings if name.startswith("--")]
    return action

  def add_config(self) -> None:
    """`--config=FILE` and its overrides, as a list of arguments in `config`."""
    self.takes_config = True
    self.add_argument("--config", metavar="FILE", help="an experiment: Python with get_config()")
    self.add_argument("--config.x.y", metavar="VALUE", help="sets option y of its section x")
    self.names.remove("--config.x.y")  # stands for many

  def parse_args(self, argv: list[str]) -> argparse.Namespace | None:
    """The options, or None after printing the help. Raises UsageError, which names the option."""
    if {"-h", "--help"} & set(argv):
      self.print_help()
      return None
    config, rest = _split(argv) if self.takes_config else ([], argv)
    args, unknown = self.parse_known_args(rest)
    if unknown:
      name = unknown[0].split("=")[0]
      if name.startswith("-"):
        self.error(f"{name} is not an option{nearest(name, self.names)}")
      self.error(f"{name!r} was not expected; options look like --name=value")
    for name in self.required:
      if getattr(args, name) is None:
        self.error(f"--{name} is needed")
    if self.takes_config:
      args.config = config
    return args

  def error(self, message: str):
    raise UsageError(message, f"`{self.prog} --help` lists all options.")


def nearest(name: str, known: Iterable[str]) -> str:
  """`config.suggest`, imported only where there is something to suggest: it brings JAX with it."""
  from rlhf_jax.config import suggest

  return suggest(name, known)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
  """Arguments of `--config`, each as `--config.x=value`; and the others."""
  config, rest = [], []
  remaining = list(argv)
  while remaining:
    argument = remaining.pop(0)
    if not (argument == "--config" or argument.startswith(("--config=", "--config."))):
      rest.append(argument)
    elif "=" in argument or not remaining or remaining[0].startswith("--"):
      config.append(argument)
    else:
      config.append(f"{argument}={remaining.pop(0)}")
  return config, rest
