"""What compiling leaves behind is returned once it is done, and what a step worked in is kept for the next one."""

import os
import subprocess
import sys
import time

import jax
import pytest

from rlhf_jax.cli import environment
from rlhf_jax.training import memory

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_memory_goes_back_after_every_program_that_took_time_to_compile(monkeypatch):
  returned = []
  monkeypatch.setattr(memory, "give_back", lambda: returned.append(1))
  memory.give_back_after_compiling()
  memory.give_back_after_compiling()  # listens once
  jax.monitoring.record_event_duration_secs(COMPILED, 3.0)
  assert len(returned) == 1
  jax.monitoring.record_event_duration_secs(COMPILED, 0.01)
  jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 3.0)
  assert len(returned) == 1


def test_a_program_that_is_compiled_says_so():
  heard = []
  jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: heard.append(event))
  jax.jit(lambda x: x * 2.5 + len(heard))(1.0)
  assert COMPILED in heard


KEPT = """
import resource, threading, time
import numpy as np
from rlhf_jax.training import memory

freed = memory.Freed()
block = [np.ones(64 << 20, np.uint8)]
def release():
  time.sleep(0.02)
  block.clear()
releasing = threading.Thread(target=release)
releasing.start()
freed.wait()
assert not block, "it did not wait"
releasing.join()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = [np.ones(60 << 20, np.uint8)]
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 100, "the block was not kept"
start = time.perf_counter()
freed.wait()
assert memory.Freed.LONGEST / 2 < time.perf_counter() - start < 1, "what stays is waited for once"
start = time.perf_counter()
freed.wait()
assert time.perf_counter() - start < memory.Freed.LONGEST / 2, "what stays is waited for once"
"""


@pytest.mark.skipif(not memory.psutil.LINUX, reason="glibc's tunables")
def test_the_next_step_waits_for_the_block_of_the_last_one_and_gets_it():
  environ = {**os.environ, "GLIBC_TUNABLES": environment.KEEPS_FREED}
  subprocess.run([sys.executable, "-c", KEPT], env=environ, check=True, timeout=120)


def test_nothing_is_waited_for_where_freed_memory_is_not_kept(monkeypatch):
  monkeypatch.setenv("GLIBC_TUNABLES", environment.HUGE_PAGES)
  monkeypatch.setattr(memory.psutil, "heap_info", lambda: pytest.fail("asked"), raising=False)
  start = time.perf_counter()
  memory.Freed().wait()
  assert time.perf_counter() - start < memory.Freed.LONGEST / 2
