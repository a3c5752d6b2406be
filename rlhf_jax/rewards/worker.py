"""The program of the process that a custom reward function runs in.

It reads a JSON object a line and answers each with one: first `{"function", "path"}` with `{}`, then
`{"prompts", "responses", "seed"}` with `{"scores"}`; or any of them with `{"error"}`. What the function prints goes to
standard error.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import random
import sys
import threading
import time
import traceback


def load(spec: str):
  """The function that `PATH.py:NAME` or `package.module:NAME` names. Raises with the remedy."""
  source, _, name = spec.rpartition(":")
  if source.endswith(".py"):
    if not os.path.isfile(source):
      raise FileNotFoundError(f"{source!r} is not a file; give the path of a Python file.")
    found = importlib.util.spec_from_file_location("custom_reward", source)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # which dataclasses and pickle look up
    found.loader.exec_module(module)
  else:
    module = importlib.import_module(source)
  if not hasattr(module, name):
    raise AttributeError(f"{source} defines no {name!r}.")
  function = getattr(module, name)
  if not callable(function):
    raise TypeError(f"{name} is a {type(function).__name__}, not a function.")
  signature = inspect.signature(function)
  try:
    signature.bind([], [])
  except TypeError:
    raise TypeError(
      f"{name}{signature} cannot be called with two arguments; it takes (prompts, responses), a list "
      "of texts each."
    ) from None
  return function


def score(function, request: dict) -> dict:
  """What `function` makes of a batch; the same for the same batch, also where it draws from a global generator."""
  random.seed(request["seed"])
  if "numpy" in sys.modules:
    sys.modules["numpy"].random.seed(request["seed"])
  scores = function(request["prompts"], request["responses"])
  return {"scores": [float(value) for value in scores]}


def describe(error: BaseException) -> str:
  """Its type, text and the innermost line that is not of this file."""
  frames = traceback.extract_tb(error.__traceback__)
  theirs = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
  places = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in theirs]
  where = f" ({places[-1]})" if places else ""
  return f"{type(error).__name__}: {error}{where}"


def main() -> None:
  requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the function's own reads and prints
  os.dup2(2, 1)
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
  function = None
  for line in requests:
    request = json.loads(line)
    try:
      if function is None:
        sys.path[:] = request["path"]
        function, reply = load(request["function"]), {}
      else:
        reply = score(function, request)
    except BaseException as error:  # SystemExit too
      reply = {"error": describe(error)}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _end_with(parent: int) -> None:
  """Ends this process, whatever it computes, when `parent` is gone."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


if __name__ == "__main__":
  main()
