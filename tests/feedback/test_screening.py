"""Nearness to references."""

import pytest

from rlhf_jax.feedback import formats, screening
from rlhf_jax.feedback.project import Project, Question, parse_item
from rlhf_jax.feedback.store import Store

TEXT = "the cat sat on the mat today"


def test_an_equal_text_is_as_near_as_can_be():
  near = screening.nearness(TEXT, [TEXT])
  assert near["bleu"] == pytest.approx(100) and near["chrf"] == pytest.approx(100)
  assert near["ter"] == 0.0 and near["meteor"] > 0.99


def test_one_word_of_seven_is_one_edit_of_seven():
  assert screening.nearness("the cat sat on the rug today", [TEXT])["ter"] == pytest.approx(100 / 7)


def test_the_nearest_of_several_references_counts():
  far, near = "something else entirely here", TEXT
  assert screening.nearness(TEXT, [far, near])["meteor"] > 0.99
  with pytest.raises(ValueError, match="no reference"):
    screening.nearness(TEXT, [])


def test_meteor_knows_stems():
  stems = screening.nearness("the cats sitting", ["the cat sits"])["meteor"]
  others = screening.nearness("the dogs running", ["the cat sits"])["meteor"]
  assert stems > others


def test_corrections_are_screened_beside_what_they_correct(tmp_path):
  project = Project("t", (Question("fixed", "corrections"),))
  store = Store(f"sqlite:///{tmp_path}/x.sqlite", project)
  rows = [{"id": "a", "prompt": "p", "answers": ["the cat sit"], "references": [TEXT]}]
  store.add_items([parse_item(row, project) for row in rows])
  store.take_in([formats.Said("a", "ann", {"fixed": {"text": TEXT}})], "test")
  assert [row["by"] for row in screening.screen(store)] == ["answer_1", "ann"]
  store.close()
