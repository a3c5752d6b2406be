"""Rounds of asking and learning, on the tiny experiment: what is repeated, resumed, refused, and who answers."""

import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_jax.cli import config as configs
from rlhf_jax.cli import main
from rlhf_jax.feedback import export, judge, loop, simulate
from rlhf_jax.feedback.project import read
from rlhf_jax.feedback.store import Store
from rlhf_jax.training import options

TINY = Path(__file__).parent.parent.parent / "experiments" / "tiny.py"
ARGUMENTS = (
  f"--config={TINY}",
  "--config.sft.epochs=0.03",
  "--config.reward_model.members=2",
  "--config.reward_model.epochs=2.0",
  "--config.reward_model.batch_size=8",
  "--config.ppo.steps=1",
  "--config.ppo.prompts=16",
  "--config.data.test_prompts=16",
  "--config.evaluation.batch_size=64",
  "--config.loop.rounds=2",
  "--config.loop.questions=12",
  "--config.loop.candidates=24",
  "--config.loop.strategy=information",
  "--config.loop.held_out_feedback=False",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a loop of two rounds, run once."""
  workdir = tmp_path_factory.mktemp("loops") / "loop"
  assert main(["loop", *ARGUMENTS, f"--workdir={workdir}"]) == 0
  return workdir


def times(workdir: Path) -> dict:
  kept = [*workdir.glob("round_*/questions.jsonl"), *workdir.glob("round_*/evaluation/*.jsonl")]
  kept += workdir.glob("round_*/checkpoints/*/*")
  return {path: path.stat().st_mtime_ns for path in kept}


def test_rounds_add_labels_and_are_measured(finished):
  rounds = json.loads((finished / "rounds.json").read_text())
  assert [(r["round"], r["labels"]) for r in rounds] == [(1, 12), (2, 24)]
  for r in rounds:
    assert r["ppo/win_rate_low"] <= r["ppo/win_rate"] <= r["ppo/win_rate_high"]
  lines = (finished / "rounds.md").read_text().splitlines()
  assert len(lines) == 4 and lines[2].startswith("| 1 | 12 |")
  assert (finished / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_questions_differ_between_rounds_and_hold_two_different_answers(finished):
  for number in (1, 2):
    rows = [json.loads(l) for l in (finished / f"round_{number}/questions.jsonl").open()]
    assert len({row["id"] for row in rows}) == 12
    assert all(row["id"].startswith(f"round_{number}:") for row in rows)
    assert all(row["answers"][0] != row["answers"][1] for row in rows)


def test_the_labels_of_a_round_are_a_project_that_says_where_answers_come_from(finished):
  folder = finished / "round_2" / "labels"
  store = Store(f"sqlite:///{folder / 'labels.sqlite'}", read(folder))
  rows = export.rows(store)
  store.close()
  assert len(rows) == 12
  sampling = {"max_new_tokens": 24, "temperature": 1.0}
  origin = {"model": "loop", "checkpoint": "round_1", "sampling": sampling}
  assert rows[0]["answers_from"] == [origin] * 2


def test_the_same_command_again_repeats_nothing(finished, capsys):
  before, rounds = times(finished), (finished / "rounds.json").read_bytes()
  assert len(before) > 8
  assert main(["loop", *ARGUMENTS, f"--workdir={finished}"]) == 0
  assert times(finished) == before
  assert (finished / "rounds.json").read_bytes() == rounds


class Stopped(Exception):
  pass


def test_a_loop_that_was_interrupted_goes_on_bit_for_bit(finished, tmp_path):
  """Stopped after the first round, and again with half of the second round's questions judged."""
  workdir = tmp_path / "loop"
  shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("round*", "*.json"))

  def stop(workdir, rounds):
    raise Stopped

  with pytest.raises(Stopped):
    loop.run(configs.load(list(ARGUMENTS)), workdir, after_each=stop)
  assert not (workdir / "round_2").exists()
  label_all = simulate.label_all

  def stop_halfway(*given, **named):
    label_all(*given, **named, limit=5)
    raise Stopped

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
    patch.setattr(simulate, "label_all", stop_halfway)
    loop.run(configs.load(list(ARGUMENTS)), workdir)
  loop.run(configs.load(list(ARGUMENTS)), workdir)
  assert (workdir / "rounds.json").read_bytes() == (finished / "rounds.json").read_bytes()


@pytest.mark.parametrize(
  "wrong, says",
  [
    ("loop.strategy=disagreement", "reward_model.members to 3"),
    ("loop.questions=500", "exceeds loop.candidates"),
    ("loop.strategy=clever", "clever"),
    ("loop.labels=people", "loop.noise"),
    ("loop.utility=verifier", "verifier"),
    ("algorithm.reward_model=reward_from_marks", "reward_from_marks"),
    ("reward_model.batch_size=64", "reward_model.batch_size=64 exceeds the 12 pairs"),
    ("stages=('sft','reward_model')", "needs reward_model and policy"),
  ],
)
def test_a_loop_that_could_not_run_is_refused_at_once(wrong, says, tmp_path, capsys):
  given = [a for a in ARGUMENTS if "members" not in a and "strategy" not in a]
  given += ["--config.loop.noise=0.1", f"--config.{wrong}"]
  if "batch_size" in wrong:
    given.remove("--config.reward_model.batch_size=8")
  assert main(["loop", *given, f"--workdir={tmp_path / 'loop'}"]) == 1
  assert says in capsys.readouterr().err
  assert not (tmp_path / "loop" / "checkpoints").exists()


def test_another_config_in_the_same_folder_is_refused(finished, capsys):
  given = [a for a in ARGUMENTS if "strategy" not in a]
  assert main(["loop", *given, f"--workdir={finished}"]) == 1
  assert "loop.strategy='information'" in capsys.readouterr().err


# Who answers.

ROWS = [
  {
    "id": f"round_1:{i}",
    "prompt_id": f"{i}",
    "prompt": f"prompt {i}",
    "answers": [f"great {i}", f"terrible {i}"][:: 1 - 2 * (i % 2)],
    "answers_from": {"model": "loop", "checkpoint": "sft"},
  }
  for i in range(6)
]
FIRST_IS_GREAT = [1.0, 0.0] * 3


@pytest.fixture
def here(tmp_path):
  """What `answered` asks of a round's setup."""
  (tmp_path / "loop" / "round_1").mkdir(parents=True)
  return SimpleNamespace(workdir=tmp_path / "loop" / "round_1", seed=3, task=None)


def said(found):
  return [preference for _, preference in found]


def test_careful_annotators_say_what_is_better(here):
  settings = options.Loop(utility_scale=100.0, overlap=2)
  assert said(loop.answered(here, settings, ROWS)) == FIRST_IS_GREAT


def test_annotators_who_disagree_make_a_soft_label(here):
  settings = options.Loop(noise=1.0, overlap=8)
  votes = said(loop.answered(here, settings, ROWS))
  assert any(0 < vote < 1 for vote in votes)
  assert all((8 * vote).is_integer() for vote in votes)


def test_a_loop_waits_for_people(here, monkeypatch):
  """Another connection judges, skips what it must, and the loop goes on when all is said."""
  monkeypatch.setattr(loop, "POLL", 0.05)
  folder = here.workdir / "labels"

  def annotate():
    while not (folder / "labels.sqlite").exists():
      time.sleep(0.02)
    time.sleep(0.2)
    store = Store(f"sqlite:///{folder / 'labels.sqlite'}", read(folder))
    store.invite("ann")
    while (handed := store.next_item("ann")) is not None:
      better = "first" if "great" in handed.item.answers[0]["content"] else "second"
      better = "both_bad" if handed.item.id == "round_1:5" else better
      store.judge("ann", handed.item.id, {"better": {"choice": better}}, key=f"k-{handed.item.id}")
    store.close()

  person = threading.Thread(target=annotate)
  person.start()
  found = loop.answered(here, options.Loop(labels="people"), ROWS)
  person.join()
  assert said(found) == [*FIRST_IS_GREAT[:5], None]


def replying(reply):
  """A judge of which `reply(request, place of "great")` is the reply."""
  place = lambda form: "A" if "great" in form.split("Answer B:")[0] else "B"
  return lambda source, batch_size: lambda forms: [reply(form, place(form)) for form in forms]


def test_a_judge_is_asked_once(here, monkeypatch):
  settings = options.Loop(labels="judge")
  monkeypatch.setattr(judge, "model", replying(lambda form, place: f"Answer {place}."))
  assert said(loop.answered(here, settings, ROWS)) == FIRST_IS_GREAT
  monkeypatch.setattr(judge, "model", None)
  assert said(loop.answered(here, settings, ROWS)) == FIRST_IS_GREAT


def test_questions_that_a_judge_was_not_read_on_say_nothing(here, monkeypatch, capsys):
  silent = lambda form, place: "Well, well." if "prompt 2" in form else place
  monkeypatch.setattr(judge, "model", replying(silent))
  found = said(loop.answered(here, options.Loop(labels="judge"), ROWS))
  assert found == [1.0, 0.0, None, 0.0, 1.0, 0.0]
  unread = [json.loads(line) for line in (here.workdir / "unread.jsonl").open()]
  assert unread == [{"reply": "Well, well."}] * 2
  assert "decided 5 of 6 questions; 0 by place alone, 2 replies of 12" in capsys.readouterr().out


def test_a_judge_that_names_places_prefers_nothing(here, monkeypatch, capsys):
  monkeypatch.setattr(judge, "model", replying(lambda form, place: "A"))
  assert said(loop.answered(here, options.Loop(labels="judge"), ROWS)) == [0.5] * 6
  assert "decided 0 of 6 questions; 6 by place alone" in capsys.readouterr().out


def test_a_judge_that_is_never_read_stops_the_loop(here, monkeypatch):
  monkeypatch.setattr(judge, "model", replying(lambda form, place: "It depends."))
  with pytest.raises(ValueError, match=r"was read on no question.*unread.jsonl"):
    loop.answered(here, options.Loop(labels="judge"), ROWS)
