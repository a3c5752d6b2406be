import json

import numpy as np
import pytest

from rlhf_jax.cli import main
from rlhf_jax.evaluation import judges, ranking

PROMPTS = ["The tea", "The jam", "The cake", "The bread", "The milk", "The rice"]
GOOD, BAD, PLAIN = " is wonderful.", " is horrible.", " is there."


def said(capsys, *arguments) -> str:
  """What a verb that succeeds prints."""
  code = main(["rank", *map(str, arguments)])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  return captured.out


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def answers(path, responses, rewards=None, prompts=PROMPTS):
  """A policy's file as an evaluation writes it."""
  rewards = rewards or [0.0] * len(prompts)
  rows = zip(prompts, responses, rewards, strict=True)
  write(path, [{"prompt": p, "response": text, "reward": reward} for p, text, reward in rows])


def make_run(workdir):
  """A run of three policies that beat one another; rewards say the opposite of the texts for ppo and sft."""
  folder = workdir / "evaluation"
  answers(folder / "sft.jsonl", [GOOD, BAD, PLAIN, BAD, GOOD, BAD], [3, 3, 3, 0, 3, 1])
  answers(folder / "ppo.jsonl", [PLAIN, GOOD, GOOD, PLAIN, GOOD, GOOD], [1, 2, 0, 1, 2, 1])
  answers(folder / "dpo.jsonl", [GOOD, PLAIN, BAD, GOOD, BAD, PLAIN], [2, 0, 1, 2, 0, 2])
  return workdir


ROWS = [("ppo", "sft", 3, 1, 2), ("dpo", "sft", 2, 2, 0), ("ppo", "dpo", 1, 1, 1)]  # a, b, tie


def comparisons():
  return [
    (a, b, outcome)
    for a, b, *counts in ROWS
    for outcome, count in zip(("a", "b", "tie"), counts, strict=True)
    for _ in range(count)
  ]


def test_a_file_is_ranked_as_its_table_is(capsys, tmp_path):
  file, out = tmp_path / "ratings.jsonl", tmp_path / "ranking.json"
  write(file, [{"a": a, "b": b, "outcome": outcome} for a, b, outcome in comparisons()])
  text = said(capsys, f"--comparisons={file}", f"--out={out}", "--baseline=sft")
  wins, ties = np.zeros((2, 3, 3))  # ppo, sft, dpo
  wins[0, 1], wins[1, 0], wins[2, 1], wins[1, 2], wins[0, 2], wins[2, 0] = 3, 1, 2, 2, 1, 1
  ties[0, 1] = ties[1, 0] = 2
  ties[0, 2] = ties[2, 0] = 1
  found = ranking.bradley_terry(wins, ties, names=["ppo", "sft", "dpo"])
  written = json.loads(out.read_text())
  assert written["nu"] == found.nu and written["baseline"] == "sft" and written["prior"] == 0.0
  assert written["comparisons"] == str(file)
  players = {player["name"]: player for player in written["players"]}
  assert [players[name]["ability"] for name in found.names] == found.abilities.tolist()
  assert [player["rank"] for player in written["players"]] == [1, 2, 3]
  low = ranking.differences(found, "sft")[0].low
  assert players["ppo"]["difference_low"] == low
  assert [players["ppo"][what] for what in ("wins", "ties", "losses")] == [4, 3, 2]

  lines = text.splitlines()
  assert lines[0] == "13 comparisons of 3 players; 95 % intervals"
  assert lines[1].split() == "rank name ability Elo wins ties losses less sft".split()
  assert lines[2].split()[:2] == ["1", "ppo"] and f"{low:+.2f}" in lines[2]
  assert lines[2].split()[5:9] == [f"{ranking.ELO * found.abilities[0]:+.0f}", "4", "3", "2"]
  equal = found._replace(abilities=np.zeros(3))
  tie = ranking.chances(equal, "ppo", "sft").tie
  assert lines[5] == f"nu {found.nu:.3f}: two of equal ability tie in {tie:.1%}"
  assert f"written: {out}" in lines[6]


def test_outcomes_may_be_words_or_numbers_and_files_csv_or_json(capsys, tmp_path):
  words, numbers, table = (tmp_path / name for name in ("w.jsonl", "n.jsonl", "t.csv"))
  number = {"a": 1, "b": 0, "tie": 0.5}
  rows = comparisons()
  write(words, [{"a": a, "b": b, "outcome": outcome, "note": "x"} for a, b, outcome in rows])
  write(numbers, [{"a": a, "b": b, "outcome": number[outcome]} for a, b, outcome in rows])
  cells = [f"{o if k % 2 else float(number[o])},{b}, {a} " for k, (a, b, o) in enumerate(rows)]
  table.write_text("\ufeffoutcome,b,a\r\n" + "\r\n".join(cells) + "\r\n\r\n")
  texts = [said(capsys, f"--comparisons={file}") for file in (words, numbers, table)]
  assert texts[0] == texts[1] == texts[2]


def test_without_ties_there_is_no_nu(capsys, tmp_path):
  file = tmp_path / "r.csv"
  file.write_text("a,b,outcome\n" + "x,y,a\n" * 3 + "x,y,b\n")
  text = said(capsys, f"--comparisons={file}")
  assert "nu" not in text
  assert "+0.55 [-0.58, +1.68]" in text and "+95" in text  # log(3) / 2, as in the ranking's test


def test_a_prior_ranks_what_could_not_be_ranked(capsys, tmp_path):
  file = tmp_path / "r.csv"
  file.write_text("a,b,outcome\nx,y,a\ny,z,a\n")
  assert main(["rank", f"--comparisons={file}"]) == 1
  assert "x never lost against the rest, z never won" in capsys.readouterr().err
  lines = said(capsys, f"--comparisons={file}", "--prior=0.5").splitlines()
  assert [line.split()[1] for line in lines[2:]] == ["x", "y", "z"]


def test_policies_of_a_run_meet_on_every_prompt_by_vader_or_reward(capsys, tmp_path):
  workdir = make_run(tmp_path / "run")
  names = ["dpo", "ppo", "sft"]
  rows = {
    name: [json.loads(line) for line in (workdir / "evaluation" / f"{name}.jsonl").open()]
    for name in names
  }
  scorers = {
    "vader": lambda rows: judges.vader([row["response"] for row in rows]),
    "reward": lambda rows: [row["reward"] for row in rows],
  }
  winners = {}
  for by, score in scorers.items():
    out = tmp_path / f"{by}.json"
    options = () if by == "vader" else ("--by=reward",)
    text = said(capsys, f"--workdir={workdir}", f"--out={out}", *options)
    heading = f"18 comparisons of 3 players on 6 prompts by {by}; 95 % intervals"
    assert text.splitlines()[0] == heading
    scores = np.asarray([score(rows[name]) for name in names]).T
    found = ranking.bradley_terry(*ranking.compare_scores(scores), names=names)
    players = json.loads(out.read_text())["players"]
    by_name = {player["name"]: player for player in players}
    for name, estimate in zip(names, ranking.intervals(found), strict=True):
      bounds = [by_name[name][f"ability{end}"] for end in ("", "_low", "_high")]
      np.testing.assert_allclose(bounds, estimate, atol=1e-12)
    winners[by] = players[0]["name"]
  assert winners == {"vader": "ppo", "reward": "sft"}


def ranked(path):
  return {player["name"] for player in json.loads(path.read_text())["players"]}


def test_policies_of_several_runs_and_their_variants_are_named_by_where_they_are(capsys, tmp_path):
  a, b, out = make_run(tmp_path / "a"), tmp_path / "b", tmp_path / "out.json"
  answers(b / "variants" / "warm" / "evaluation" / "ppo.jsonl", [BAD, GOOD, PLAIN] * 2)
  answers(b / "variants" / "cold" / "evaluation" / "ppo.jsonl", [PLAIN, BAD, GOOD] * 2)
  answers(b / "variants" / "cold" / "evaluation" / "sft.jsonl", [GOOD, PLAIN, BAD] * 2)
  said(capsys, f"--workdir={b}", f"--out={out}")
  assert ranked(out) == {"warm", "cold/ppo", "cold/sft"}
  said(capsys, f"--workdir={a}", f"--workdir={b}", f"--out={out}")
  alone = {"a/sft", "a/ppo", "a/dpo"}
  assert ranked(out) == alone | {"b/warm", "b/cold/ppo", "b/cold/sft"}
  answers(a / "variants" / "sft" / "evaluation" / "late.jsonl", [GOOD, BAD, BAD] * 2)
  said(capsys, f"--workdir={a}", f"--workdir={a}/", f"--out={out}")
  assert ranked(out) == {"sft", "ppo", "dpo", "variants/sft"}
  other = make_run(tmp_path / "deep" / "a")
  answers(other / "evaluation" / "ppo.jsonl", [BAD, BAD, GOOD] * 2)
  said(capsys, f"--workdir={a}", f"--workdir={other}", f"--out={out}")
  assert {f"{a}/ppo", f"{other}/ppo"} <= ranked(out)


def test_a_policy_that_wrote_the_same_as_another_counts_once(capsys, tmp_path):
  a, b, out = make_run(tmp_path / "a"), make_run(tmp_path / "b"), tmp_path / "out.json"
  answers(b / "evaluation" / "ppo.jsonl", [BAD, BAD, GOOD] * 2)
  assert main(["rank", f"--workdir={a}", f"--workdir={b}", f"--out={out}"]) == 0
  assert ranked(out) == {"a/sft", "a/ppo", "a/dpo", "b/ppo"}
  assert "note: b/sft wrote exactly what a/sft did, and is left out." in capsys.readouterr().err


BAD_ROWS = {  # a file's second row: what is said of it
  "x,y,c": "line 3: outcome is 'c', none of a, b and tie (or 1, 0 and 0.5)",
  "x,y,2": "line 3: outcome is '2'",
  "x,y,": "line 3: outcome is ''",
  "x,y": "line 3: no field 'outcome' (it has a, b)",
  ",y,a": "line 3: a is '', not a name",
  "x, ,a": "line 3: b is ' ', not a name",
  "x,x ,a": "line 3: x is compared with itself",
  "x,y,a,b": "line 3: more cells than the 3 headings",
  "{": "line 2: not JSON (Expecting property name",
  "[1]": "line 2: a list, not an object",
  '{"a": "x", "b": "y"}': "line 2: no field 'outcome'",
  '{"a": "x", "b": 1, "outcome": 1}': "line 2: b is 1, not a name",
  '{"a": "x", "b": "y", "outcome": true}': "line 2: outcome is True",
  '{"a": "x", "b": "y", "outcome": 0.4}': "line 2: outcome is 0.4",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_are_named_by_line(row, capsys, tmp_path):
  kind = "jsonl" if row[0] in "{[" else "csv"
  good = '{"a": "x", "b": "y", "outcome": 1}' if kind == "jsonl" else "a,b,outcome\nx,y,b"
  file = tmp_path / f"r.{kind}"
  file.write_text(f"{good}\n{row}\n{'' if kind == 'csv' else good}\n")
  assert main(["rank", f"--comparisons={file}"]) == 1
  error = capsys.readouterr().err
  assert f"error: {file} has 1 bad rows; correct or remove them. {BAD_ROWS[row]}" in error


def test_many_bad_rows_are_counted(capsys, tmp_path):
  file = tmp_path / "r.csv"
  file.write_text("a,b,outcome\n" + "x,y,?\n" * 9)
  assert main(["rank", f"--comparisons={file}"]) == 1
  error = capsys.readouterr().err
  assert "has 9 bad rows" in error and "line 6: " in error and "line 7: " not in error
  assert "; and 4 more" in error


USAGE = {
  "": "give one of --comparisons=FILE and --workdir=DIR",
  "--comparisons=x.csv --workdir=y": "give one of --comparisons=FILE and --workdir=DIR",
  "--comparisons=x.csv --by=vader": "--by goes with --workdir",
  "--workdir=y --by=length": "argument --by: invalid choice: 'length'",
  "--workdir=y --prior=some": "argument --prior: invalid float value",
  "--wrkdir=y": "--wrkdir is not an option; did you mean --workdir",
}


@pytest.mark.parametrize("options", USAGE)
def test_usage_errors_name_the_option(options, capsys):
  assert main(["rank", *options.split()]) == 2
  assert USAGE[options] in capsys.readouterr().err


ERRORS = {
  "--comparisons=TMP/none.csv": "none.csv is not a file",
  "--comparisons=TMP/r.txt": "r.txt should be a .csv or a .jsonl file",
  "--comparisons=TMP/empty.csv": "empty.csv has no comparisons",
  "--comparisons=TMP/latin.csv": "latin.csv is not text in UTF-8",
  "--workdir=TMP/none": "none is not a folder",
  "--workdir=TMP": "has no evaluation/*.jsonl; train there",
  "--workdir=TMP/lone": "has answers of 1 policies; a ranking needs two",
  "--workdir=TMP/run --workdir=TMP/lone": "dpo.jsonl answers 6 prompts and TMP/lone/evaluation/sft.jsonl answers 1; rank",
  "--workdir=TMP/run --workdir=TMP/other": "differ in prompt 4, 'The bread' and 'The beer'",
  "--workdir=TMP/broken": "broken/evaluation/sft.jsonl is not JSON Lines",
  "--workdir=TMP/void": "sft.jsonl is empty",
  "--workdir=TMP/bare --by=reward": "bare/evaluation/sft.jsonl, line 1: no field 'reward'",
  "--workdir=TMP/strange --by=reward": "sft.jsonl, line 6: reward is nan, not a finite number",
  "--workdir=TMP/run --baseline=pop": "'pop' is not a player; there are dpo, ppo, sft",
  "--workdir=TMP/run --prior=-1": "prior=-1.0 should be at least 0",
  "--workdir=TMP/run --out=TMP/none/out.json": "TMP/none is not a folder; make it, or give another --out",
}


@pytest.mark.parametrize("options", ERRORS)
def test_errors_name_the_file_and_the_remedy(options, capsys, tmp_path):
  make_run(tmp_path / "run")
  runs = ("lone", "other", "broken", "void", "bare", "strange")
  files = {run: tmp_path / run / "evaluation" / "sft.jsonl" for run in runs}
  answers(files["lone"], [GOOD], prompts=["The tea"])
  answers(files["other"], [GOOD] * 6, prompts=[*PROMPTS[:3], "The beer", *PROMPTS[4:]])
  answers(files["strange"], [GOOD] * 6, [1, 1, 1, 1, 1, float("nan")])
  write(files["bare"], [{"prompt": "The tea", "response": GOOD}])
  write(files["broken"], [])
  files["broken"].write_text("{\n")
  write(files["void"], [])
  (tmp_path / "r.txt").write_text("a,b,outcome\nx,y,a\n")
  (tmp_path / "empty.csv").write_text("a,b,outcome\n")
  (tmp_path / "latin.csv").write_bytes("a,b,outcome\nJosé,y,a\n".encode("latin-1"))
  assert main(["rank", *options.replace("TMP", str(tmp_path)).split()]) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and ERRORS[options].replace("TMP", str(tmp_path)) in error
  assert "Traceback" not in error
