"""The arena: a balanced design, blind pages, and standings that recover who is better."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from rlhf_jax.cli import main
from rlhf_jax.feedback import arena, judge
from rlhf_jax.feedback.app import make_app
from rlhf_jax.feedback.project import create, read
from rlhf_jax.feedback.store import Store

WORDS = {"sft": "There is {}.", "dpo": "I like {}.", "ppo": "Wonderful, excellent, I love {}!"}


def make_run(workdir: Path, names=("sft", "dpo"), prompts=range(40), words=None) -> Path:
  folder = workdir / "evaluation"
  folder.mkdir(parents=True)
  for name in names:
    rows = [
      {"prompt": f"Prompt {i}:", "response": (words or WORDS[name]).format(f"thing {i}")}
      for i in prompts
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return workdir


@pytest.fixture
def runs(tmp_path) -> str:
  a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", names=("ppo",))
  return f"{a},{b}"


def opened(workdir: Path) -> Store:
  return Store(f"sqlite:///{workdir / 'labels.sqlite'}", read(workdir))


def players(count, prompts=12):
  name = lambda k: f"policy {k}"
  return [
    arena.Player(name(k), "run", {f"p{i}": f"{k} on {i}" for i in range(prompts)})
    for k in range(count)
  ]


# The design.


def test_pairs_and_prompts_are_compared_equally_often():
  """Four players make six pairs: of 36 comparisons each pair has 6, and each of 12 prompts 3."""
  items = arena.matches(players(4), 36)
  pairs = Counter(frozenset(a["model"] for a in item.answers) for item in items)
  assert len(pairs) == 6 and set(pairs.values()) == {6}
  assert set(Counter(item.prompt for item in items).values()) == {3}


def test_no_comparison_is_made_twice():
  items = arena.matches(players(3), 1000)
  said = {(item.prompt, frozenset(a["model"] for a in item.answers)) for item in items}
  assert len(items) == len(said) == 3 * 12


def test_every_player_stands_first_about_half_the_time():
  items = arena.matches(players(2, prompts=400), 400)
  first = sum(item.answers[0]["model"] == "policy 0" for item in items)
  assert abs(first - 200) < 4 * np.sqrt(100)


def test_more_comparisons_begin_with_the_same_ones():
  few, more = (arena.matches(players(4), count, seed=3) for count in (10, 50))
  assert more[:10] == few and len(more) == 50
  assert arena.matches(players(4), 10, seed=4) != few


def test_answers_that_are_the_same_are_not_compared():
  a, b = players(2)
  b.responses["p3"] = a.responses["p3"]
  items = arena.matches([a, b], 100)
  assert len(items) == 11 and "p3" not in {item.prompt for item in items}


def test_only_prompts_that_all_have_answered_are_asked():
  a, b = players(2)
  del b.responses["p5"]
  assert {item.prompt for item in arena.matches([a, b], 100)} == set(a.responses) - {"p5"}


# What is refused.


def test_policies_on_other_prompts_are_refused(tmp_path, capsys):
  a = make_run(tmp_path / "a", names=("sft",))
  b = make_run(tmp_path / "b", names=("ppo",), prompts=range(40, 80))
  assert main(["arena", f"--runs={a},{b}", f"--workdir={tmp_path / 'arena'}"]) == 1
  assert "no held-out prompt was answered by all of a/sft, b/ppo" in capsys.readouterr().err
  assert not (tmp_path / "arena").exists()


@pytest.mark.parametrize(
  "given, code, says",
  [
    (["--policies=a/pp"], 1, "'a/pp' is not a policy of these runs"),
    (["--policies=a/sft"], 1, "1 policies; an arena needs two"),
    (["--comparisons=0"], 2, "at least 1"),
    (["--judge=another"], 2, "--judge goes with --labels=judge"),
    (["standing"], 2, "did you mean standings"),
  ],
)
def test_what_makes_no_arena_is_refused(runs, tmp_path, capsys, given, code, says):
  assert main(["arena", f"--runs={runs}", f"--workdir={tmp_path / 'arena'}", *given]) == code
  assert says in capsys.readouterr().err


def test_a_folder_that_is_no_arena_yet_is_refused(tmp_path, capsys):
  assert main(["arena", "standings", f"--workdir={tmp_path}"]) == 1
  assert "give --runs=" in capsys.readouterr().err


def test_policies_that_wrote_the_same_are_refused():
  a, b = players(2)
  with pytest.raises(ValueError, match="wrote the same answers"):
    arena.matches([a, b._replace(responses=a.responses)], 10)


# Who judges, and what comes out.


def test_simulated_annotators_recover_who_is_better(runs, tmp_path, capsys):
  """VADER gives the three texts 0, 0.36 and 0.94 or so: best, middle, old."""
  workdir = tmp_path / "arena"
  simulated = [f"--workdir={workdir}", "--labels=simulated", "--overlap=2"]
  assert main(["arena", f"--runs={runs}", "--comparisons=120", *simulated]) == 0
  assert "120 new comparisons" in capsys.readouterr().out
  assert main(["arena", "standings", f"--workdir={workdir}", "--baseline=a/sft"]) == 0
  printed = capsys.readouterr().out
  assert "240 judgements of 3 players on 40 prompts" in printed and "less a/sft" in printed
  found = json.loads((workdir / "standings.json").read_text())
  assert [player["name"] for player in found["players"]] == ["b/ppo", "a/dpo", "a/sft"]
  best, middle, _ = found["players"]
  assert best["difference_low"] > middle["difference_high"] > middle["difference_low"] > 0
  assert [p["rank"] for p in found["players"]] == [1, 2, 3]


def test_an_arena_goes_on_with_more_comparisons(runs, tmp_path, capsys):
  workdir = tmp_path / "arena"
  arguments = ["arena", f"--runs={runs}", f"--workdir={workdir}", "--labels=simulated"]
  assert main([*arguments, "--comparisons=40"]) == 0
  assert main([*arguments, "--comparisons=60"]) == 0
  assert "20 new comparisons of 60\n20 new judgements" in capsys.readouterr().out
  assert main([*arguments, "--overlap=3"]) == 1
  assert "project.toml has overlap=1" in capsys.readouterr().err


def test_a_judge_is_asked_in_both_orders(runs, tmp_path, capsys, monkeypatch):
  """One that likes what is wonderful, or else what stands first; "by place alone" is a tie."""

  def wonderful(form):
    first, second = form.split("Answer B:")
    return "B" if "Wonderful" in second and "Wonderful" not in first else "A"

  ask = lambda forms: [wonderful(form) for form in forms]
  monkeypatch.setattr(judge, "model", lambda source, batch_size: ask)
  workdir = tmp_path / "arena"
  arguments = ["arena", f"--runs={runs}", f"--workdir={workdir}", "--labels=judge", "--prior=0.5"]
  assert main([*arguments, "--comparisons=30"]) == 0
  printed = capsys.readouterr().out
  assert "decided 20 of 30 questions; 10 by place alone, 0 replies of 60 were not read" in printed
  found = json.loads((workdir / "standings.json").read_text())["players"]
  assert found[0]["name"] == "b/ppo" and found[0]["wins"] == 20 and found[1]["ties"] == 10


def test_the_page_never_says_who_wrote_what(runs, tmp_path, monkeypatch):
  workdir = tmp_path / "arena"
  monkeypatch.setattr("rlhf_jax.cli.label.serve", lambda args, store: None)
  assert main(["arena", f"--runs={runs}", f"--workdir={workdir}", "--comparisons=12"]) == 0
  store = opened(workdir)
  client = TestClient(make_app(store))
  token = {"authorization": f"Bearer {store.invite('ann')}"}
  seen = [client.get("/api/project", headers=token).text]
  item = client.post("/api/next", headers=token, json={}).json()
  places = Counter()
  while item["item"] is not None:
    seen.append(json.dumps(item))
    id = item["item"]["id"]
    first = store.item(id).answers[item["item"]["shown"][0]]["model"]
    places[first] += 1
    said = {"better": {"choice": "tie"}}
    body = {"item": id, "key": f"key-{id}", "said": said}
    item = client.post("/api/judge", headers=token, json=body).json()
  assert len(seen) == 13 and len(places) > 1
  for name in ("a/sft", "a/dpo", "b/ppo", "sft", "dpo", "ppo", str(tmp_path)):
    assert not any(name in text for text in seen)
  store.close()


def test_the_administrators_word_stands_in_place_of_judgements(tmp_path):
  create(tmp_path, "pairs")
  store = opened(tmp_path)
  store.add_items(arena.matches(players(2, prompts=4), 4))
  store.invite("ann")
  for item in store.items():
    store.next_item("ann")
    first = item.answers[0]["model"] == "policy 0"
    choice = "first" if first else "second"
    store.judge("ann", item.id, {"better": {"choice": choice}}, key=f"key-{item.id}")
  with pytest.raises(ValueError, match="prior"):  # nobody ever lost
    arena.standings(store)
  last = store.items()[-1]
  other = "second" if last.answers[0]["model"] == "policy 0" else "first"
  store.adjudicate("admin", last.id, {"better": {"choice": other}}, key="decided-1")
  rows = arena.standings(store).rows
  assert [(row.name, row.wins, row.losses) for row in rows] == [
    ("policy 0", 3, 1),
    ("policy 1", 1, 3),
  ]
  assert rows[0].ability.value - rows[1].ability.value == pytest.approx(np.log(3))
  store.close()
