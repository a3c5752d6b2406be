"""What the C library keeps of freed memory: for the next step to work in, until a program has been compiled.

A step of a CPU works in one large block that it asks for anew every time. Where the system would have to clear its pages again, that
is an eighth of a step of SFT on the benchmark's S model, and a ninth of a GRPO iteration of SmolLM2-135M (two cores of an AMD
EPYC); so `cli.environment` has the C library keep freed memory.
"""

from __future__ import annotations

import functools
import os
import time

import jax
import psutil


def give_back() -> None:
  """Returns it to the system: 430 MB after SmolLM2-135M was read and laid out."""
  if psutil.LINUX and hasattr(psutil, "heap_trim"):
    psutil.heap_trim()


@functools.cache
def give_back_after_compiling() -> None:
  """Returns it from now on whenever a program was compiled: 280 MB after a GRPO iteration of SmolLM2-135M."""

  def note(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration" and seconds > 0.1:
      give_back()

  jax.monitoring.register_event_duration_secs_listener(note)


class Freed:
  """Waits for the block that a program worked in to be free before the next one asks for its own.

  A program's results are there a moment before it gives up its block, and longer before where the processor is busy with other
  things. The next one would then get a second block, and both would be kept.
  """

  LONGEST = 0.05  # seconds; what a step leaves behind for good is not waited for again
  SMALL = 8 << 20  # bytes; a block that does no harm

  def __init__(self):
    self._kept = "malloc.mmap_max=0" in os.environ.get("GLIBC_TUNABLES", "") and hasattr(
      psutil, "heap_info"
    )
    self._before = self._used()

  def wait(self) -> None:
    """Returns once no more is in use than at the last call, and at once where freed memory is not kept."""
    end = time.perf_counter() + self.LONGEST
    while (now := self._used()) > self._before + self.SMALL and time.perf_counter() < end:
      time.sleep(2e-4)
    self._before = now

  def _used(self) -> int:
    return psutil.heap_info().heap_used if self._kept else 0
