"""Variants of a loop over seeds: each is run once with each seed, from one beginning."""

import json
from pathlib import Path

import pytest

from rlhf_jax.cli import main
from rlhf_jax.feedback import loop, study

LOOP = Path(__file__).parent.parent.parent / "experiments" / "loop.py"
CONFIG = {
  "seed": 7,
  "algorithm": {"name": "ppo"},
  "loop": {"rounds": 3, "questions": 20},
  "variants": {"one": {"loop": {"rounds": 1, "questions": 60}}, "three": {}},
}


def test_variants_change_the_loop_alone():
  base, variants = study.parse(CONFIG)
  assert "variants" not in base
  assert variants["one"] == {**base, "loop": {"rounds": 1, "questions": 60}}
  assert variants["three"] == base
  with pytest.raises(ValueError, match="config.variants.other changes ppo"):
    study.parse({**CONFIG, "variants": {"other": {"ppo": {"steps": 3}}}})


def test_a_config_without_variants_is_one_variant():
  base = {name: value for name, value in CONFIG.items() if name != "variants"}
  assert study.parse(base)[1] == {"loop": base}


def test_every_variant_is_run_with_every_seed_from_one_beginning(tmp_path, monkeypatch):
  ran = []

  def run(config, workdir, *, begun):
    ran.append((workdir.relative_to(tmp_path).as_posix(), config["seed"], config["loop"]["seed"]))
    assert begun == "begun"
    return [{"round": 1, "labels": 20}]

  monkeypatch.setattr(loop, "checked", lambda config: None)
  monkeypatch.setattr(loop, "begin", lambda config, workdir: "begun")
  monkeypatch.setattr(loop, "run", run)
  seen = []
  after = lambda workdir, found: seen.append({n: len(s) for n, s in found["variants"].items()})
  found = study.run(CONFIG, tmp_path, [0, 4], after_each=after)
  assert ran == [
    ("one/seed_0", 7, 0),
    ("three/seed_0", 7, 0),
    ("one/seed_4", 7, 4),
    ("three/seed_4", 7, 4),
  ]
  assert seen == [
    {"one": 1},
    {"one": 1, "three": 1},
    {"one": 2, "three": 1},
    {"one": 2, "three": 2},
  ]
  assert json.loads((tmp_path / "study.json").read_text()) == found


def test_a_variant_that_could_not_run_is_refused_before_any_is(tmp_path, capsys):
  path = tmp_path / "config.py"
  path.write_text(
    "import runpy\n"
    "def get_config():\n"
    f"  config = runpy.run_path({str(LOOP)!r})['get_config']()\n"
    "  config.variants.three_rounds = {'loop': {'questions': 4000}}\n"
    "  return config\n"
  )
  assert main(["loop", f"--config={path}", f"--workdir={tmp_path / 'w'}", "--seeds=0,1"]) == 1
  assert "loop.questions=4000 exceeds loop.candidates" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()
