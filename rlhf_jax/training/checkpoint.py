"""Checkpoints of a whole training state, by Orbax: written in the background, found whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from rlhf_jax.training import disk

KEEP = 2  # of the newest


class Checkpoints:
  """The checkpoints of one stage, in `folder/<step>/`; the newest `keep` stay."""

  def __init__(self, folder: str | os.PathLike, *, keep: int = KEEP):
    import orbax.checkpoint as ocp  # 24 MB, and no others need it

    self.folder = Path(folder).absolute()
    self._ocp = ocp
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint, None where there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state) -> None:
    """Starts writing `state`; it is copied first, so training may go on at once.

    Raises OSError with the space needed when the disk is too full for it.
    """
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_plain(state)))
    disk.assert_room(self.folder, needed, f"checkpoint {step}")
    self._manager.save(step, args=self._ocp.args.StandardSave(_plain(state)))

  def restore(self, like, step: int | None = None, *, donate: bool = False):
    """The state of `step` (the newest unless said), with the shapes, dtypes and shardings of `like`.

    With `donate` the arrays of `like` are given up first, so that memory never holds both.

    Raises FileNotFoundError where there is none, ValueError where it holds another model's state.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise FileNotFoundError(f"{self.folder} holds no checkpoint.")
    self._assert_fits(step, like)
    abstract = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, _plain(like))
    if donate:
      for leaf in jax.tree.leaves(like):
        if not _is_key(leaf):
          leaf.delete()
    restored = self._manager.restore(step, args=self._ocp.args.StandardRestore(abstract))
    return jax.tree.map(_like, restored, like)

  def _assert_fits(self, step: int, like) -> None:
    saved = self._manager.item_metadata(step)
    found = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(saved)}
    wanted = {_name(path): tuple(leaf.shape) for path, leaf in _leaves(_plain(like))}
    for name in sorted(set(found) | set(wanted)):
      if found.get(name) != wanted.get(name):
        raise ValueError(
          f"{self.folder / str(step)} is a checkpoint of another model: {name} is "
          f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; use the "
          "config it was made with, or another workdir."
        )

  def wait(self) -> None:
    """Until everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes what is being written and lets go of the folder."""
    self.wait()
    self._manager.close()


def _plain(state):
  """Typed PRNG keys as their data, which is what Orbax stores."""
  return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _like(x, like):
  return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x


def _is_key(x) -> bool:
  return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _leaves(tree):
  return jax.tree_util.tree_leaves_with_path(tree)


def _name(path) -> str:
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
