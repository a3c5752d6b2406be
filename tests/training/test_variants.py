"""Variants of an experiment share what they can, differ where they say, and are compared in one table."""

import json
from pathlib import Path

import pytest

from rlhf_jax.cli import main
from rlhf_jax.report import comparison
from rlhf_jax.training import variants

TINY = Path(__file__).parent.parent.parent / "experiments" / "tiny.py"
CONFIG = f"""
import runpy

def get_config():
  config = runpy.run_path({str(TINY)!r})["get_config"]()
  config.dpo.epochs = 0.5
  config.kto = dict(epochs=0.25, batch_size=16, learning_rate=1e-3)
  config.variants = {{
    "dpo": {{"algorithm": {{"name": "dpo"}}}},
    "ipo": {{"algorithm": {{"name": "dpo"}}, "dpo": {{"loss_type": "ipo"}}}},
    "kto": {{"algorithm": {{"name": "kto"}}}},
  }}
  return config
"""
SHORT = (
  "--config.sft.epochs=0.03",
  "--config.reward_model.epochs=0.05",
  "--config.data.test_prompts=16",
  "--config.answers.prompts=32",
  "--config.evaluation.batch_size=32",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """A finished comparison: its arguments, its folder, and what it printed is in the folder's files."""
  folder = tmp_path_factory.mktemp("compare")
  (folder / "config.py").write_text(CONFIG)
  arguments = ["compare", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}", *SHORT]
  assert main([*arguments, "--only=dpo,kto"]) == 0
  assert main([*arguments, "--only=ipo"]) == 0
  return arguments, folder / "run"


def times(folder: Path) -> dict:
  return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}


def test_every_variant_is_in_the_table_beside_sft(compared):
  _, run = compared
  found = json.loads((run / "comparison.json").read_text())
  assert set(found) == {"sft", "dpo", "ipo", "kto"}
  assert found["dpo"]["win_rate_low"] <= found["dpo"]["win_rate"] <= found["dpo"]["win_rate_high"]
  lines = (run / "comparison.md").read_text().splitlines()
  assert len(lines) == 6 and lines[2].startswith("| sft |")
  assert (run / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_variants_share_is_made_once_and_in_one_place(compared):
  _, run = compared
  assert sorted(p.name for p in (run / "variants").iterdir()) == ["dpo", "ipo", "kto"]
  for name in ("answers.jsonl", "evaluation/sft.jsonl", "evaluation/best_of_4.jsonl", "reference"):
    assert (run / name).exists()
    assert not list((run / "variants").glob(f"*/{name}"))
  assert len(list((run / "reference").glob("*.npz"))) == 1
  assert not list((run / "variants").glob("*/checkpoints/sft"))


def test_variants_differ_by_what_they_say(compared):
  _, run = compared
  config = lambda name: json.loads((run / "variants" / name / "config.json").read_text())
  assert config("ipo")["dpo"]["loss_type"] == "ipo"
  assert "loss_type" not in config("dpo")["dpo"]
  metrics = lambda name: (run / "variants" / name / "metrics.jsonl").read_text()
  assert metrics("ipo") != metrics("dpo")


def test_the_same_command_again_trains_nothing(compared, capsys):
  arguments, run = compared
  before = times(run)
  assert main(arguments) == 0
  assert times(run) == before
  assert (
    capsys.readouterr().out.count("nothing is left to do") == 4
  )  # the shared run and three variants


def test_a_variant_that_changes_what_is_shared_is_refused_before_anything_is_trained(tmp_path):
  base = {"stages": ["sft", "policy"], "variants": {"long": {"data": {"max_tokens": 256}}}}
  with pytest.raises(ValueError, match="config.variants.long changes data"):
    variants.compare(base, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_variants_without_a_reward_model_share_sft_alone(tmp_path):
  base = {"stages": ["sft", "policy", "evaluation"], "start": {"sft": "elsewhere", "answers": ""}}
  own = {"stages": ["sft", "reward_model", "policy", "evaluation"]}
  named = {"variants": {"dpo": {"algorithm": {"name": "dpo"}}}}
  shared, found = variants.parse({**base, **named}, tmp_path)
  assert shared["stages"] == ["sft"]
  assert found["dpo"]["start"] == {"sft": str(tmp_path), "answers": str(tmp_path)}
  shared, found = variants.parse({**own, **named}, tmp_path)
  assert shared["stages"] == ["sft", "reward_model", "evaluation"]
  assert set(found["dpo"]["start"].values()) == {str(tmp_path)} and len(found["dpo"]["start"]) == 3


def test_a_variant_that_is_not_there_is_named(compared, capsys):
  arguments, _ = compared
  assert main([*arguments, "--only=dop"]) == 1
  assert "'dop' is not a variant; did you mean dpo" in capsys.readouterr().err


def test_a_config_without_variants_says_how_to_name_some(tmp_path, capsys):
  assert main(["compare", f"--config={TINY}", f"--workdir={tmp_path}"]) == 1
  assert "config.variants names no variant; give it a dict such as" in capsys.readouterr().err


def test_training_a_table_of_runs_says_which_verb_does(compared, capsys):
  arguments, run = compared
  assert main(["train", arguments[1], f"--workdir={run}-train"]) == 1
  assert "train them with rlhf-jax compare" in capsys.readouterr().err


def test_several_runs_are_shown_as_mean_and_range():
  one = {"dpo": {"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7, "reward": 1.0}}
  other = {"dpo": {"win_rate": 0.7, "win_rate_low": 0.6, "win_rate_high": 0.8, "reward": 2.0}}
  row = comparison.table([one, other]).splitlines()[2]
  assert "65.0\u00a0% (60.0–70.0)" in row and "1.50" in row
  assert "60.0\u00a0% (50.0–70.0)" in comparison.table([one])
