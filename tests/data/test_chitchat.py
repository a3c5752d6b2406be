import json
import sys

import chitchat_dataset
import numpy as np
import pytest

from rlhf_jax.config import from_dict
from rlhf_jax.data import chitchat, from_chitchat, tasks
from rlhf_jax.data.bytes import byte_tokenizer
from rlhf_jax.training import experiment

TINY = dict(
  model_type="llama",
  vocab_size=257,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
)


def conversation(*blocks, ratings=(1, 2, 3)):
  """Blocks of (sender, message, ...); None leaves the ratings out."""
  messages = [
    [{"sender": sender, "text": said, "timestamp": ""} for said in block]
    for sender, *block in blocks
  ]
  rated = {} if ratings is None else {"ratings": dict(zip(chitchat.SCALES, ratings, strict=True))}
  return {"messages": messages, "prompt": "Why?", "start": "", **rated}


@pytest.fixture
def small(monkeypatch):
  """Six rated dialogues of two people each, and one of each kind that is dropped."""
  conversations = {
    f"kept{i}": conversation(
      (f"ann{i}", f"hello {i}"), (f"bob{i}", "hi", " there\n"), ratings=(i + 1, 2, 3)
    )
    for i in range(6)
  }
  conversations |= {
    "unrated": conversation(("ann0", "x"), ("bob0", "y"), ratings=None),
    "untouched": conversation(("ann0", "x"), ("bob0", "z"), ratings=(5, 5, 5)),
    "alone": conversation(("ann0", "anybody?", "no"), ratings=(1, 1, 1)),
    "twin1": conversation(("ann0", "Hello?"), ("bob0", "hi")),
    "twin2": conversation(("ann1", "hello?"), ("bob1", "HI")),
  }
  monkeypatch.setattr(chitchat_dataset, "Dataset", lambda: conversations)
  return conversations


@pytest.fixture(scope="module")
def real():
  return chitchat.load_chitchat()


@pytest.fixture
def some(real, monkeypatch):
  """Real conversations, few enough for a tokenizer of bytes."""
  few = real._replace(train=real.train.select(range(160)), test=real.test.select(range(40)))
  monkeypatch.setattr(chitchat, "load_chitchat", lambda seed: few)
  return few


def load(seed=0):
  return chitchat.load_chitchat(seed, test_share=1 / 3)


def settings(**values):
  return from_dict(tasks.Settings, dict(source="chitchat", **values), where="data")


def task(seed=0, **values):
  return tasks.load_task(settings(**values), byte_tokenizer(), rollout_tokens=8, seed=seed)


def test_what_nobody_rated_or_answered_and_copies_are_dropped_and_counted(small):
  splits = load()
  assert sorted([*splits.train["id"], *splits.test["id"]]) == [f"kept{i}" for i in range(6)]
  assert splits.counts == dict(
    unrated=1, untouched=1, alone=1, repeated=2, train=4, test=2, new_people=2
  )
  assert "4 conversations to train, 2 held out" in splits.describe()


def test_a_row_holds_the_speakers_in_order_and_the_ratings_in_the_order_of_the_scales(small):
  rows = {row["id"]: row for split in load()[:2] for row in split}
  assert rows["kept3"] == {
    "id": "kept3",
    "topic": "Why?",
    "messages": [{"speaker": "A", "content": "hello 3"}, {"speaker": "B", "content": "hi there"}],
    "people": ["ann3", "bob3"],
    "ratings": [4, 2, 3],
  }
  assert chitchat.text(rows["kept3"]["messages"]) == "A: hello 3\nB: hi there"


def test_a_five_among_others_is_a_rating(small):
  small["kept0"]["ratings"] = {"witty": 5, "interesting": 5, "upbeat": 6}
  rows = {row["id"]: row for split in load()[:2] for row in split}
  assert rows["kept0"]["ratings"] == [5, 5, 6]


def test_the_real_conversations_split_once_by_seed_and_no_pair_of_people_is_on_both_sides(real):
  again, other = (chitchat.load_chitchat(seed) for seed in (0, 1))
  assert real.train["id"] == again.train["id"] != other.train["id"]
  assert real.counts == dict(
    unrated=1180, untouched=2920, alone=691, repeated=5, train=1783, test=589, new_people=11
  )
  pairs = [{frozenset(people) for people in split["people"]} for split in real[:2]]
  assert not pairs[0] & pairs[1]
  texts = [chitchat.text(m).lower() for split in real[:2] for m in split["messages"]]
  assert len(set(texts)) == len(texts) == 2372


def test_a_split_without_a_test_is_refused(small):
  with pytest.raises(
    ValueError, match="test_share=0.01 splits 6 rated conversations into 6 to train"
  ):
    chitchat.load_chitchat(test_share=0.01)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "chitchat_dataset", None)
  with pytest.raises(ImportError, match="pip install chitchat-dataset"):
    chitchat.load_chitchat()


def test_a_file_that_cannot_be_read_is_named(monkeypatch):
  monkeypatch.setattr(chitchat_dataset, "Dataset", lambda: json.loads("{"))
  with pytest.raises(FileNotFoundError, match="no readable dataset.json; reinstall it"):
    chitchat.load_chitchat()


@pytest.mark.parametrize("value", [0, 11, "7", 2.5, None])
def test_a_rating_off_the_scale_is_named_with_its_conversation(small, value):
  small["kept2"]["ratings"]["upbeat"] = value
  with pytest.raises(
    ValueError, match=f"conversation kept2: upbeat={value!r} is not a whole number"
  ):
    load()


def test_a_missing_scale_is_named_with_those_there_are(small):
  small["kept2"]["ratings"] = {"witty": 1, "int": 2, "upbeat": 3}
  with pytest.raises(
    ValueError, match="kept2 has no rating 'interesting'; it has witty, int, upbeat"
  ):
    load()


def test_a_conversation_without_senders_or_of_three_is_named(small):
  small["kept2"] = conversation(("ann", "x"), ("bob", "y"), ("cid", "z"))
  with pytest.raises(ValueError, match="kept2 is between 3 people"):
    load()
  small["kept2"] = {"messages": [[{"text": "x"}]]}
  with pytest.raises(ValueError, match="kept2 has no messages with sender and text"):
    load()


def test_the_task_holds_ratings_in_deviations_of_the_training_ones(some):
  built = task(max_tokens=64)
  records, held_out = built.feedback("ratings", 0), built.held_out_feedback("ratings")
  assert [r.id for r in records] == some.train["id"]
  assert [r.id for r in held_out] == some.test["id"]
  labels = np.asarray([r.labels for r in records])
  np.testing.assert_allclose(labels.mean(axis=0), 0, atol=1e-9)
  np.testing.assert_allclose(labels.std(axis=0), 1)
  ratings = np.asarray(some.train["ratings"])
  tested = np.asarray([r.labels for r in held_out])
  np.testing.assert_allclose(
    tested, (np.asarray(some.test["ratings"]) - ratings.mean(axis=0)) / ratings.std(axis=0)
  )
  assert built.attributes == ("witty", "interesting", "upbeat")
  assert built.feedback("pairs", 0) == built.held_out_feedback("marks") == []
  assert built.notes == (some.describe(),)


def test_a_long_conversation_keeps_its_end_after_the_number_of_words_before(some):
  tokenizer, built = byte_tokenizer(), task(max_tokens=64)
  records = {r.id: r.answer.tokens for r in built.feedback("ratings", 0)}
  cut = 0
  for row in some.train:
    said, tokens = chitchat.text(row["messages"]), records[row["id"]]
    assert tokens[-1] == tokenizer.eos_token_id and len(tokens) <= 64
    read = tokenizer.decode(tokens[:-1])
    if len(said.encode()) < 64:
      assert read == said
      continue
    cut += 1
    mark, end = read.split(" words before]\n", 1)
    assert len(tokens) == 64 and said.encode().endswith(tokenizer.decode(tokens[-10:-1]).encode())
    words = int(mark.removeprefix("[about "))
    left_out = len(said.split()) - len(end.split())
    assert abs(words - left_out) <= 0.4 * left_out + 2
  assert cut > 140


def test_about_keeps_one_digit():
  counts = [0.2, 1, 9.4, 14, 15, 96, 149, 151, 960, 4499]
  assert [from_chitchat.about(n) for n in counts] == [1, 1, 9, 10, 20, 100, 100, 200, 1000, 4000]


def test_prompts_are_openings_and_sft_learns_text_from_the_beginning(small):
  tokenizer = byte_tokenizer()
  built = task(max_tokens=40, prompt_tokens=5, test_prompts=1)
  assert {tokenizer.decode(p.tokens) for p in built.prompts} == {"A: he"}
  assert len(built.prompts) == len(built.sft) > 1 == len(built.test_prompts)
  assert all(tokenizer.decode(e.tokens[:-1]).endswith("B: hi there") for e in built.sft)


def test_too_few_tokens_for_an_end_are_refused_with_how_many_do(small):
  with pytest.raises(ValueError, match="data.max_tokens=20 leaves no room .* use at least 30"):
    task(max_tokens=20)


def test_files_of_ones_own_are_refused_beside_it(small):
  with pytest.raises(ValueError, match="data.feedback is read with data.source='files' alone"):
    task(feedback="mine.jsonl")


def test_a_tiny_model_learns_the_ratings_scale_by_scale(some, tmp_path):
  """Three outputs that begin at the mean rating; the error falls below that of the beginning."""
  config = dict(
    seed=0,
    stages=("reward_model",),
    model=dict(source="random", random=TINY),
    lora=dict(rank=0),
    data=dict(source="chitchat", max_tokens=40, prompt_tokens=8),
    rollout=dict(max_new_tokens=8),
    algorithm=dict(name="ppo", reward_model="reward_from_ratings"),
    reward_from_ratings=dict(
      epochs=2.8, batch_size=32, widths=1, learning_rate=1e-2, checkpoint_every=100
    ),
  )
  experiment.train(config, tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss/squared"] for line in lines]
  assert len(losses) == 14
  assert np.mean(losses[-5:]) < np.mean(losses[:2])
