"""Bulk work runs in batches that every device has an equal part of."""

from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.training import disk, sampling


@pytest.mark.parametrize(
  "count, batch_size, shards, size", [(7, 3, 1, 3), (3, 128, 4, 4), (7, 3, 2, 4)]
)
def test_batches_of_any_count_divide_over_the_devices(count, batch_size, shards, size):
  setup, seen = SimpleNamespace(mesh=sharding.make_mesh(data=shards)), []

  def square(rows):
    seen.append(len(rows))
    return rows**2

  squares = sampling.in_batches(setup, square, count, batch_size, "squares")
  np.testing.assert_array_equal(squares, np.arange(count) ** 2)
  assert set(seen) == {size}


def test_rows_with_any_line_separator_are_read_back_as_they_were_written(tmp_path):
  rows = [{"response": "a\u2028b\x85c\nd\r\x0be"}, {"response": "é"}]
  disk.replace_rows(tmp_path / "rows.jsonl", rows)
  assert disk.rows(tmp_path / "rows.jsonl") == rows
