"""Several seeds make a table, and each is a run of its own."""

import importlib.util
import json

from rlhf_jax.training import seeds


def test_the_table_has_mean_smallest_and_largest_of_the_headline_results():
  results = {
    "ppo/win_rate": [0.6, 0.8, 0.7],
    "ppo/words": [1.0, 2.0, 3.0],
    "seconds/ppo": [1, 2, 3],
  }
  assert seeds.table(results).splitlines()[2:] == ["| ppo/win_rate | 0.700 | 0.600 | 0.800 |"]


def test_every_seed_is_trained_in_a_folder_of_its_own(tmp_path):
  spec = importlib.util.spec_from_file_location("tiny", "experiments/tiny.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.stages = ("sft",)
  config.sft.epochs = 0.02
  results = seeds.train_seeds(config.to_dict(), tmp_path, [3, 4])
  assert len(results["seconds/sft"]) == 2
  losses = [
    json.loads((tmp_path / f"seed_{n}" / "metrics.jsonl").read_text().splitlines()[0])["loss/total"]
    for n in (3, 4)
  ]
  assert losses[0] != losses[1]
  assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == [3, 4]
