"""A reference whose log-probabilities are kept stays on no device while the policy learns from them."""

import gc
from unittest import mock

import jax
import numpy as np
import pytest
from small_runs import write_data
from test_progress import MODEL

from rlhf_jax.training import setup as setups
from rlhf_jax.training import stages
from rlhf_jax.training.setup import Setup, make_setup


def learned(folder, monkeypatch, **dpo):
  """(names of what steps are given, of which matrices on devices then are a frozen model's, what is frozen in the end, setup)."""
  (folder / "run").mkdir()
  earlier = jax.live_arrays()
  data = dict(option[len("--config.data.") :].split("=") for option in write_data(folder))
  setup = make_setup(
    dict(
      seed=0,
      model=dict(
        source="random", random=MODEL | dict(max_position_embeddings=64), dtype="bfloat16"
      ),
      lora=dict(rank=0),
      data=data | dict(max_tokens=24, prompt_tokens=8),
      rollout=dict(max_new_tokens=8),
      algorithm=dict(name="dpo"),
      answers=dict(source="human"),
      dpo=dict(batch_size=8, epochs=0.5, widths=1) | dpo,
    ),
    folder / "run",
  )
  seen = {}

  def offline(*args, frozen, **others):
    kinds = {"device", "unpinned_host"}  # a CPU's own memory has two names
    seen["names"] = set(frozen)
    gc.collect()
    seen["held"] = [
      x.shape
      for x in jax.live_arrays()
      if x.ndim == 2
      and x.dtype == "bfloat16"
      and x.sharding.memory_kind in kinds
      and all(x is not other for other in earlier)
    ]
    return stages.offline.run(*args, frozen=frozen, **others)

  whole = Setup.at_rest

  def at_rest(self, weights):
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
      return whole(self, weights)

  monkeypatch.setattr(Setup, "at_rest", at_rest)
  with jax.set_mesh(setup.mesh):
    doing = stages.TRAINING._replace(offline=offline)
    _, frozen = stages.policy(setup, setup.pretrained, None, doing=doing)
  return seen, frozen, setup


@pytest.mark.parametrize("sync", [{}, dict(sync_every=2, sync_mix=0.5)], ids=["dpo", "moving"])
def test_it_rests_in_the_hosts_memory_and_comes_back(tmp_path, monkeypatch, sync):
  seen, frozen, setup = learned(tmp_path, monkeypatch, **sync)
  assert "reference" not in seen["names"] and not seen["held"]
  expected = setup.frozen(setup.pretrained())
  for ours, theirs in zip(
    jax.tree.leaves(frozen["reference"]["model"]), jax.tree.leaves(expected), strict=True
  ):
    assert ours.sharding.memory_kind == theirs.sharding.memory_kind
    np.testing.assert_array_equal(ours, theirs)


def test_where_devices_do_not_reach_that_memory_it_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(setups, "kinds_of_memory", lambda: ["device"])
  seen, frozen, _ = learned(tmp_path, monkeypatch)
  assert seen["held"] and "reference" in frozen
