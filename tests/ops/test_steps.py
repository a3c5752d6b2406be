import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import steps

TEXTS = ["a", " b", "\n", " \n ", ".\n", "\n\nc", "", " "]  # "" is an end mark
A, B, NEW, BLANK, STOP, NEXT, END, SPACE = range(len(TEXTS))
LINES = steps.lines(TEXTS)


@pytest.mark.parametrize(
  ("row", "mask", "expected"),
  [
    ([A, B, NEW, A, END], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]),
    ([A, NEW, NEW, BLANK, B], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]),  # empty lines are no steps
    ([A, STOP, B, NEW, END], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]),  # a token may end its own line
    ([A, NEXT, SPACE, NEW, A], [1, 1, 1, 1, 1], [1, 1, 0, 0, 1]),  # or begin the next
    ([A, B, A, NEW, B], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]),  # the response alone counts
    ([A, B, A, B, NEW], [1, 0, 1, 1, 0], [1, 0, 0, 1, 0]),  # what interrupts it ends a step
    ([NEW, END, SPACE, END, NEW], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
    ([A, A, A, A, A], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
  ],
)
def test_a_step_ends_at_the_last_visible_token_of_its_line(row, mask, expected):
  got = steps.ends(LINES, jnp.asarray([row]), jnp.asarray([mask], jnp.float32))
  np.testing.assert_array_equal(got, [expected])
