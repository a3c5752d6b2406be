import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf_jax import cli
from rlhf_jax.cli import config, environment, main
from rlhf_jax.training import restore

TINY = f"--config={Path(__file__).parent.parent / 'experiments' / 'tiny.py'}"
CHAT_TEMPLATE = (
  "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)


def snapshot(folder: Path) -> dict:
  return {
    str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def said(capsys, *arguments) -> str:
  """What a verb that succeeds prints."""
  code = main(list(arguments))
  captured = capsys.readouterr()
  assert code == 0, captured.err
  return captured.out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_has_an_example(verb, capsys):
  text = said(capsys, verb, "--help")
  assert f"\n  rlhf-jax {verb} --" in text
  assert "--debug" in text


def test_help_lists_every_verb(capsys):
  text = said(capsys, "--help")
  assert all(f"\n  {verb} " in text for verb in cli.VERBS)
  assert said(capsys) == text


def test_help_and_usage_errors_come_before_jax():
  program = (
    "import sys; from rlhf_jax.cli import VERBS, main\n"
    "assert all(main([verb, '--help']) == 0 for verb in VERBS) and main(['--help']) == 0\n"
    "assert not {'jax', 'numpy', 'transformers'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_overrides_have_the_declared_type():
  overrides = {
    "ppo.kl_coef": ("1", 1.0),
    "ppo.gamma": ("0.9", 0.9),  # not in the file
    "sft.clip_norm": ("None", None),
    "sft.schedule": ("cosine", "cosine"),
    "answers.source": ("human", "human"),
    "seed": ("7", 7),
    "stages": ("('sft',)", ("sft",)),
    "lora.targets": ("('q', 'v')", ("q", "v")),
    "model.remat": ("true", True),
    "model.random.hidden_size": ("32", 32),
    "start.sft": ("runs/a", "runs/a"),  # a section that the file lacks
  }
  loaded = config.load(
    [TINY, *(f"--config.{name}={text}" for name, (text, _) in overrides.items())]
  )
  for name, (_, value) in overrides.items():
    found = loaded
    for part in name.split("."):
      found = found[part]
    assert found == value and type(found) is type(value), name


def test_a_value_may_follow_its_option():
  apart = config.load(["--config=" + TINY.removeprefix("--config="), "--config.seed=3"])
  parser = cli.Parser("train", "")
  parser.add_config()
  args = parser.parse_args(["--config", TINY.removeprefix("--config="), "--config.seed", "3"])
  assert config.load(args.config) == apart


USAGE = {  # the command: what the error names
  "trian": "'trian' is not a verb; did you mean train or rank?",
  "train": "--workdir is needed",
  "train --wrkdir=x": "--wrkdir is not an option; did you mean --workdir?",
  "train --workdir": "--workdir: expected one argument",
  "train --workdir=x more": "'more' was not expected",
  "train --workdir=x": "--config=FILE is needed",
  "train --workdir=x TINY --config.sed=1": "--config.sed is not an option; did you mean seed?",
  "train --workdir=x TINY --config.pppo.steps=1": "--config.pppo is not an option; did you mean ppo",
  "train --workdir=x TINY --config.ppo.kl_coeff=1": "did you mean kl_coef",
  "train --workdir=x TINY --config.model.random.hidden_sze=1": "did you mean hidden_size",
  "train --workdir=x TINY --config.ppo.steps=few": "--config.ppo.steps=few",
  "train --workdir=x TINY --config.model.remat=maybe": "--config.model.remat=maybe",
  "generate --prompt=a": "one of --workdir=DIR, with --stage=NAME, and --model=SOURCE",
  "generate --model=a --workdir=b --prompt=a": "one of --workdir=DIR",
  "generate --model=a": "give --prompt=TEXT or --prompts=FILE.jsonl",
  "generate --model=a --prompt=a --best-of=4": "--best-of=4 asks a reward model; give --workdir",
  "generate --workdir=a --prompt=a --best-of=4 --greedy": "nothing to choose from with --greedy",
  "generate --model=a --prompt=a --top-k=few": "argument --top-k: invalid int value",
  "generate --model=a --prompt=a --temprature=1": "did you mean --temperature",
  "convert --model=a": "--to is needed",
}


@pytest.mark.parametrize("command", USAGE)
def test_usage_errors_name_the_option_and_exit_with_2(command, capsys):
  assert main(command.replace("TINY", TINY).split()) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and USAGE[command] in error
  assert "Traceback" not in error


ERRORS = {
  "train --workdir=TMP/x --config=experiments/tinny.py": "does not exist; did you mean experiments/tiny.py",
  "train --workdir=TMP/x --config=TMP/broken.py": "broken.py fails: SyntaxError",
  "train --workdir=TMP/x --config=TMP/raises.py": "raises.py fails in line 2: NameError",
  "train --workdir=TMP/x --config=TMP/empty.py": "should define get_config()",
  "train --workdir=TMP/x TINY --config.ppo.gamma=2": "ppo.gamma=2.0 should be at most 1",
  "train --workdir=TMP/x TINY --config.algorithm.name=pppo": "did you mean ppo",
  "train --workdir=TMP/x TINY --config.algorithm.name=sft": "does not train a policy",
  "evaluate --workdir=TMP/x": "x/config.json does not exist; give the --workdir of a run",
  "generate --workdir=TMP/x --prompt=a": "x/config.json does not exist",
  "generate --workdir=RUN --stage=dpo --prompt=a": "no finished stage 'dpo'; train it there first. Finished: sft, ppo",
  "generate --workdir=RUN --stage=pppo --prompt=a": "no finished stage 'pppo'; did you mean ppo",
  "generate --workdir=RUN --stage=reward_model --prompt=a": "scores texts and writes none",
  "generate --workdir=RUN --prompt=": "prompt 1 is empty",
  "generate --workdir=RUN --prompt=a --max-new-tokens=128": "exceed the model's 128 positions",
  "generate --workdir=RUN --prompt=a --temperature=0": "sampling.temperature=0.0 should be greater than 0",
  "generate --workdir=RUN --prompt=a --samples=0": "--samples=0 should be at least 1",
  "generate --workdir=RUN --prompt=a --best-of=0": "--best-of=0 should be at least 1",
  "generate --workdir=RUN --prompts=TMP/none.jsonl": "none.jsonl is not a file",
  "generate --model=TMP/none --prompt=a": "models are not downloaded",
  "chat --workdir=RUN": "no chat template",
  "report --workdir=TMP/x": "is not a folder",
}


@pytest.mark.parametrize("command", ERRORS)
def test_errors_are_one_message_and_exit_with_1(command, capsys, tmp_path, tiny_run):
  (tmp_path / "broken.py").write_text("def get_config(:\n")
  (tmp_path / "raises.py").write_text("def get_config():\n  return nothing\n")
  (tmp_path / "empty.py").write_text("")
  parts = command.replace("TINY", TINY).replace("TMP", str(tmp_path)).split()
  parts = [part.replace("RUN", str(tiny_run[1])) for part in parts]
  assert main(parts) == 1
  error = capsys.readouterr().err
  assert "error: " in error and ERRORS[command] in error
  assert "Traceback" not in error


def test_debug_raises_the_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    main(["report", f"--workdir={tmp_path / 'none'}", "--debug"])


def test_a_finished_run_says_so_and_has_its_report_rewritten(tiny_run, capsys):
  arguments, workdir = tiny_run
  (workdir / "report.html").unlink()
  text = said(capsys, *arguments)
  assert "finished; nothing is left to do" in text
  assert all(f"\n{policy} " in text for policy in ("sft", "best_of_4", "ppo"))
  assert (workdir / "report.html").exists()


def test_a_stage_that_ran_is_not_run_with_another_config(tiny_run, capsys):
  arguments, workdir = tiny_run
  assert main([*arguments, "--config.sft.learning_rate=0.5"]) == 1
  assert "ran stage" in capsys.readouterr().err


def test_generate_continues_every_prompt_and_leaves_the_run_alone(tiny_run, capsys, tmp_path):
  _, workdir = tiny_run
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text('{"prompt": "The tea"}\n{"text": "no prompt"}\n')
  before = snapshot(workdir)
  options = [f"--workdir={workdir}", "--prompt=I ate", f"--prompts={prompts}", "--samples=2"]
  assert main(["generate", *options, "--json", "--max-new-tokens=5"]) == 0
  captured = capsys.readouterr()
  rows = [json.loads(line) for line in captured.out.splitlines() if line.startswith("{")]
  assert [row["prompt"] for row in rows] == ["I ate", "I ate", "The tea", "The tea"]
  assert all(row["logp"] < 0 and isinstance(row["truncated"], bool) for row in rows)
  assert rows[0]["response"] != rows[1]["response"]
  assert "skipped 1 of 2 rows" in captured.err
  assert snapshot(workdir) == before


def test_the_best_of_several_answers_is_the_one_of_highest_reward(tiny_run, capsys):
  _, workdir = tiny_run
  options = [f"--workdir={workdir}", "--stage=sft", "--prompt=The tea", "--max-new-tokens=9"]

  def rows(*more):
    lines = said(capsys, "generate", *options, "--json", *more).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]

  before = snapshot(workdir)
  halves, whole = rows("--samples=2", "--best-of=6"), rows("--best-of=12")
  assert len(halves) == 2 and len({row["reward"] for row in halves}) == 2
  best = max(halves, key=lambda row: row["reward"])  # of the same twelve answers
  assert whole == [{**best, "reward": pytest.approx(best["reward"], rel=1e-5)}]
  assert snapshot(workdir) == before


def test_a_run_without_a_reward_model_has_no_best_answer(tiny_run, tmp_path):
  shutil.copy(tiny_run[1] / "config.json", tmp_path)
  with pytest.raises(ValueError, match="has no finished reward model; add reward_model to"):
    restore.reward_model(tmp_path)


def answers(capsys, *options) -> list[str]:
  text = said(capsys, "generate", "--prompt=The tea", "--json", "--max-new-tokens=9", *options)
  return [json.loads(line)["response"] for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def converted(tiny_run, tmp_path_factory):
  """The trained policy as a Hugging Face folder."""
  folder = tmp_path_factory.mktemp("converted") / "model"
  assert main(["convert", f"--workdir={tiny_run[1]}", "--stage=ppo", f"--to={folder}"]) == 0
  return folder


def test_the_seed_decides_the_text_unless_greedy(converted, capsys):
  where = f"--model={converted}"
  again = [answers(capsys, where, f"--seed={seed}") for seed in (0, 0, 1)]
  assert again[0] == again[1] != again[2]
  assert answers(capsys, where, "--greedy") == answers(capsys, where, "--greedy", "--seed=1")


def test_a_converted_model_writes_what_the_trained_one_does(tiny_run, converted, capsys):
  _, workdir = tiny_run
  trained = answers(capsys, f"--workdir={workdir}", "--stage=ppo", "--samples=3")
  assert answers(capsys, f"--model={converted}", "--samples=3") == trained
  assert answers(capsys, f"--workdir={workdir}", "--stage=sft", "--samples=3") != trained


def test_chat_answers_every_line_of_a_pipe(converted, capsys, tmp_path, monkeypatch):
  folder = tmp_path / "model"
  text = said(capsys, "convert", f"--model={converted}", f"--to={folder}")
  assert "model.safetensors" in text and "tokenizer.json" in text
  tokenizer = AutoTokenizer.from_pretrained(folder)
  tokenizer.chat_template = CHAT_TEMPLATE
  tokenizer.save_pretrained(folder)

  def talk(lines: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    options = ("--greedy", "--max-new-tokens=4", "--min-new-tokens=4")
    return said(capsys, "chat", f"--model={folder}", *options).splitlines()

  first = talk("Hi\n")
  longer = talk("Hi\nAnd tea?\n/quit\nnever read\n")
  assert longer[: len(first)] == first and len(longer) > len(first)
  assert talk("Hi\n/reset\nHi\n") == [*first, *first]
  monkeypatch.setattr(sys, "stdin", io.StringIO("Hi" * 70 + "\nHi\n"))
  assert main(["chat", f"--model={folder}", "--greedy", "--max-new-tokens=4"]) == 0
  captured = capsys.readouterr()
  assert "positions" in captured.err and captured.out.strip()


def test_evaluate_again_keeps_the_old_answers_and_finds_the_same(tiny_run, capsys, tmp_path):
  workdir = shutil.copytree(tiny_run[1], tmp_path / "copy")
  before = json.loads((workdir / "results.json").read_text())
  text = said(capsys, "evaluate", f"--workdir={workdir}", "--again")
  assert "\nppo " in text
  after = json.loads((workdir / "results.json").read_text())
  drop = lambda results: {
    n: v for n, v in results.items() if not n.startswith(("memory/", "seconds/"))
  }
  assert drop(after) == drop(before)
  for name in ("sft.jsonl", "ppo.jsonl"):
    kept = (workdir / "evaluation.1" / name).read_text()
    assert kept == (workdir / "evaluation" / name).read_text()
  assert (workdir / "calibration.json").exists()  # the reward model's, which is not measured again


def test_report_draws_a_picture(tiny_run, capsys, tmp_path):
  picture = tmp_path / "run.png"
  said(capsys, "report", f"--workdir={tiny_run[1]}", f"--picture={picture}")
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_console_entry_starts_anew_with_its_allocator_once(monkeypatch):
  started = []
  monkeypatch.setattr(environment.os, "environ", {})
  monkeypatch.setattr(environment.os, "execve", lambda *arguments: started.append(arguments))
  monkeypatch.setattr(environment, "ACCELERATORS", ())
  monkeypatch.setattr(environment.sys, "platform", "linux")
  monkeypatch.setattr(environment.os, "cpu_count", lambda: 6)
  environment.prepare(["train", "--help"])
  assert started == []
  environment.prepare(["train"])
  (_, arguments, environ), = started  # fmt: skip
  assert arguments[1:] == sys.orig_argv[1:]
  assert environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=12"
  assert environ["JAX_COMPILATION_CACHE_DIR"].endswith("rlhf_jax/jax")
  monkeypatch.setattr(environment.os, "environ", environ)
  environment.prepare(["train"])
  assert len(started) == 1


@pytest.mark.parametrize(
  "environ", [{"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, {"JAX_PLATFORMS": "cuda"}]
)
def test_the_allocator_is_left_to_the_user_and_to_accelerators(environ, monkeypatch):
  monkeypatch.setattr(environment, "ACCELERATORS", ())
  assert environment.allocator(environ) is None
  monkeypatch.setattr(environment, "ACCELERATORS", ("/",))
  assert environment.allocator({}) is None
