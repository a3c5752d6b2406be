"""Items to compare, and a clock that a test moves."""

from rlhf_jax.feedback.project import Project, Question, parse_item

PAIRS = Project("Which is better?", (Question("better", "pairs"),), overlap=2, lease_seconds=60)


def pairs(count: int, project: Project = PAIRS) -> list:
  """Items to compare, numbered."""
  rows = [
    {"id": f"item {i}", "prompt": f"{i}?", "answers": [f"{i}", f"not {i}"]} for i in range(count)
  ]
  return [parse_item(row, project) for row in rows]


class Clock:
  """A clock that a test moves."""

  now = 1_000_000.0

  def __call__(self) -> float:
    return self.now
