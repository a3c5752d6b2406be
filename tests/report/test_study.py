"""A loop's variants over seeds: means, and differences seed by seed."""

from rlhf_jax.report import study


def row(round, wins, labels=100):
  return {"round": round, "labels": labels * round, "ppo/win_rate": wins}


FOUND = {
  "policy": "ppo",
  "variants": {
    "once": {"0": [row(1, 0.50, 300)], "1": [row(1, 0.60, 300)], "2": [row(1, 0.55, 300)]},
    "thrice": {
      "0": [row(1, 0.4), row(2, 0.5), row(3, 0.61)],
      "1": [row(1, 0.4), row(2, 0.5), row(3, 0.69)],
      "2": [row(1, 0.4), row(2, 0.5), row(3, 0.65)],
    },
  },
}


def test_the_last_round_counts_and_differences_go_seed_by_seed():
  """0.11, 0.09 and 0.10: mean 0.10, standard error 0.01 / √3, t 4.303 of two degrees of freedom."""
  lines = study.table(FOUND).splitlines()
  assert lines[2] == "| once | 3 | 300 | 0.55 (0.43 to 0.67) |"
  assert lines[3] == "| thrice | 3 | 300 | 0.65 (0.55 to 0.75) |"
  assert lines[-1] == "| thrice less once | 3 | **0.10 (0.08 to 0.12)** |"


def test_a_difference_needs_two_seeds_that_both_have():
  half = {**FOUND, "variants": {**FOUND["variants"], "thrice": {"2": [row(1, 0.4)]}}}
  assert study.table(half).splitlines()[-1] == "| thrice less once | 1 | – |"


def test_a_study_is_drawn(tmp_path):
  text, picture = study.write_study(tmp_path, FOUND)
  assert text.read_text().startswith("| | seeds | labels | wins against SFT (judge) |")
  assert picture.read_bytes().startswith(b"\x89PNG")
