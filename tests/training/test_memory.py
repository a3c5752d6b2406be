"""What compiling leaves behind is returned once it is done."""

import jax

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
