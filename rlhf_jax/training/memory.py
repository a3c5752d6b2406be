"""What the C library keeps of freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys

import jax


def give_back() -> None:
  """Returns it: 430 MB after SmolLM2-135M was read and laid out."""
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
  if trim is not None:
    trim(0)


@functools.cache
def give_back_after_compiling() -> None:
  """Returns it from now on whenever a program was compiled: 280 MB after a GRPO iteration of SmolLM2-135M."""

  def note(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration" and seconds > 0.1:
      give_back()

  jax.monitoring.register_event_duration_secs_listener(note)
