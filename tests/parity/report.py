"""Writes docs/parity.md: how far every recorded reference number is from ours.

  python tests/parity/report.py

Needs the project alone: the references are the files in tests/golden/, the comparison is that of
tests/algorithms/test_parity.py.
"""

from __future__ import annotations

import pathlib
import sys

import jax

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "algorithms"))

import test_parity  # noqa: E402

# kind of case -> what it is, where its equation stands, and our function
KINDS = {
  "gae": ("Advantage estimation", "arXiv:1506.02438, eq. 16", "ops.returns.gae"),
  "clipped_surrogate": ("PPO, policy loss", "arXiv:1707.06347, eq. 7", "algorithms.ppo"),
  "clipped_value_loss": ("PPO, value loss", "arXiv:1707.06347, eq. 9, clipped", "algorithms.ppo"),
  "shaped_reward": ("PPO, reward of a token", "arXiv:1909.08593, eq. 2", "algorithms.ppo"),
  "adaptive_kl": (
    "KL controller",
    "arXiv:1909.08593, section 2.2",
    "ops.kl.adaptive_coefficient",
  ),
  "kl": ("KL estimators k1, k2, k3", "Schulman, Approximating KL Divergence", "ops.kl"),
  "dpo": (
    "DPO, cDPO, IPO, hinge",
    "arXiv:2305.18290, eq. 7; arXiv:2310.12036, eq. 17; arXiv:2305.10425",
    "algorithms.dpo",
  ),
  "bradley_terry": (
    "Reward model",
    "arXiv:1909.08593, eq. 1",
    "ops.preference.bradley_terry_loss",
  ),
  "sft": ("SFT", "token mean of −log π", "algorithms.sft"),
  "token_logps": ("Token log-probability, entropy", "log-softmax", "ops.logprobs.token_stats"),
  "masked_statistics": ("Masked mean and variance", "–", "ops.stats"),
  "whiten": ("Whitening", "–", "ops.stats.whiten"),
  "truncate": (
    "Top-k, top-p, min-p",
    "arXiv:1904.09751; arXiv:2407.01082",
    "ops.sampling.truncate",
  ),
}

HEADER = """# Parity

Written by `python tests/parity/report.py` from the numbers in `tests/golden/`, which the scripts in
`tests/parity/` recorded once with the reference libraries; `tests/algorithms/test_parity.py` checks the same
comparison at 1e-6 on every run, without those libraries.

Ours is float32, the references float64 where they allow it (OpenRLHF's and Tunix's KL estimators and Tunix's
log-softmax cast to float32). An error is the largest difference of an array over its largest entry, the worst
over all cases of the row; a gradient is that of the mean loss with respect to log-probabilities, values or
scores, and "–" stands where nothing is differentiated. This table was measured with jax {version} on a CPU.

| What | Equation | Ours | Reference | Function | Cases | Worst value | Worst gradient |
|---|---|---|---|---|---|---|---|
"""

FOOTER = """
Where conventions differ, the comparison converts: TRL and Tunix whiten with the unbiased variance and we with
the biased one, as OpenAI did; rlax knows no masks, so it is called on the unmasked tokens of each row; TRL
averages log-probabilities over the response for IPO before its loss is called (ours does with
`average_logps`), and what was passed is what is recorded; Tunix's losses ask a model for log-probabilities, so
that call is patched to return ours. A token whose ratio or value lies exactly on a clip's edge is avoided:
there JAX and PyTorch choose different subgradients.
"""


def rows():
  """(kind, library, version, function) -> number of cases, worst value error, worst gradient error."""
  table = {}
  for golden, case in test_parity.cases():
    values, gradients = test_parity.errors(case)
    key = (case["kind"], golden["library"], golden["version"], case["function"])
    row = table.setdefault(key, {"cases": 0, "value": [], "gradient": []})
    row["cases"] += 1
    row["value"] += values.values()
    row["gradient"] += gradients.values()
  return dict(sorted(table.items(), key=lambda item: list(KINDS).index(item[0][0])))


def main():
  lines = []
  for (kind, library, version, function), row in rows().items():
    what, equation, ours = KINDS[kind]
    worst = lambda errors: f"{max(errors):.1e}" if errors else "–"
    cells = (what, equation, f"`{ours}`", f"{library} {version}", f"`{function}`", row["cases"])
    numbers = (worst(row["value"]), worst(row["gradient"]))
    lines.append("| " + " | ".join(str(cell) for cell in (*cells, *numbers)) + " |")
  text = HEADER.format(version=jax.__version__) + "\n".join(lines) + "\n" + FOOTER
  (ROOT / "docs").mkdir(exist_ok=True)
  (ROOT / "docs" / "parity.md").write_text(text)
  print(f"docs/parity.md: {len(lines)} rows")


if __name__ == "__main__":
  main()
