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
import test_rl_parity  # noqa: E402

# kind of case -> what it is, where its equation stands, and our function
KINDS = {
  "gae": ("Advantage estimation", "arXiv:1506.02438, eq. 16", "ops.returns.gae"),
  "clipped_surrogate": ("PPO, policy loss", "arXiv:1707.06347, eq. 7", "algorithms.ppo"),
  "clipped_value_loss": ("PPO, value loss", "arXiv:1707.06347, eq. 9, clipped", "algorithms.ppo"),
  "ppo_policy": ("PPO, policy loss", "arXiv:1707.06347, eq. 7", "algorithms.ppo"),
  "ppo_value": ("PPO, value loss", "arXiv:1707.06347, eq. 9, clipped", "algorithms.ppo"),
  "ppo_loss": ("PPO, both losses", "arXiv:1707.06347, eq. 9", "algorithms.ppo"),
  "ppo_rewards": ("PPO, reward of a token", "arXiv:1909.08593, eq. 2", "algorithms.ppo"),
  "ppo_advantages": ("PPO, from scores to advantages", "arXiv:2009.01325", "algorithms.ppo"),
  "aggregate": ("Losses of tokens to one", "–", "ops.policy_gradients.AGGREGATIONS"),
  "shaped_reward": ("PPO, reward of a token", "arXiv:1909.08593, eq. 2", "algorithms.ppo"),
  "adaptive_kl": (
    "KL controller",
    "arXiv:1909.08593, section 2.2",
    "ops.kl.adaptive_coefficient",
  ),
  "group_advantages": (
    "Group advantages",
    "arXiv:2402.03300, section 4.1",
    "algorithms.grpo",
  ),
  "grpo": ("GRPO, policy loss", "arXiv:2402.03300, eq. 3", "algorithms.grpo"),
  "xpo": ("XPO", "arXiv:2405.21046, algorithm 1", "algorithms.xpo.xpo_loss"),
  "nash_md": ("Nash-MD", "arXiv:2312.00886", "algorithms.nash_md"),
  "ilql": ("ILQL", "arXiv:2206.11871, section 4", "algorithms.ilql"),
  "q_learning": ("Q-learning, double Q", "Watkins 1989; arXiv:1509.06461", "ops.q_learning"),
  "sarsa": ("SARSA", "Sutton & Barto 2018, section 6.4", "ops.q_learning"),
  "expected_sarsa": (
    "Expected SARSA, soft targets",
    "Sutton & Barto 2018, section 6.6; arXiv:1910.07207",
    "ops.q_learning",
  ),
  "expectile": ("Expectile", "arXiv:2110.06169, eq. 5", "ops.q_learning"),
  "kl": ("KL estimator", "Schulman, Approximating KL Divergence", "ops.kl"),
  "kl_penalty": ("KL estimator", "Schulman, Approximating KL Divergence", "ops.kl.penalty"),
  "dpo": ("DPO", "arXiv:2305.18290, eq. 7", "algorithms.dpo.dpo_loss"),
  "dpo_tokens": ("DPO, from tokens", "arXiv:2305.18290, eq. 7", "algorithms.dpo"),
  "kto": ("KTO", "arXiv:2402.01306, eq. 7", "algorithms.kto"),
  "bco": ("BCO", "arXiv:2404.04656", "algorithms.bco"),
  "cpo": ("CPO", "arXiv:2401.08417", "algorithms.cpo"),
  "orpo": ("ORPO, odds ratio", "arXiv:2403.07691, eq. 7", "algorithms.orpo"),
  "bradley_terry": ("Reward model", "arXiv:1909.08593, eq. 1", "algorithms.reward_model"),
  "log_exp": ("Reward model, LogExp", "arXiv:2204.05862", "algorithms.reward_model"),
  "bradley_terry_pairs": (
    "Bradley-Terry",
    "Bradley & Terry 1952",
    "ops.reward.logistic_loss",
  ),
  "plackett_luce": (
    "Plackett-Luce, full and partial rankings",
    "Plackett 1975; Luce 1959",
    "algorithms.reward_from_rankings",
  ),
  "plackett_luce_top_k": (
    "Plackett-Luce, the best few of k",
    "Plackett 1975; Luce 1959",
    "algorithms.reward_from_rankings",
  ),
  "top_one": ("Best of k", "arXiv:1909.08593, eq. 1", "algorithms.reward_from_rankings"),
  "abilities": (
    "Maximum-likelihood abilities",
    "Bradley & Terry 1952; Hunter 2004",
    "evaluation.ranking.bradley_terry",
  ),
  "cumulative_link": (
    "Ordered classes",
    "McCullagh 1980",
    "ops.reward.cumulative_link_loss",
  ),
  "process_labels": (
    "Labels of tokens and steps",
    "arXiv:2305.20050, section 2.5",
    "algorithms.reward_from_tokens",
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

# A loss_type or divergence -> where its equation stands, and our function where it is another.
EQUATIONS = {
  "robust": "arXiv:2403.00409",
  "hinge": "arXiv:2305.10425, eq. 4",
  "ipo": "arXiv:2310.12036, eq. 17",
  "exo_pair": "arXiv:2402.00856, eq. 16",
  "nca_pair": "arXiv:2402.05369",
  "bco_pair": "arXiv:2404.04656",
  "sppo_hard": "arXiv:2405.00675, eq. 4.7",
  "aot": "arXiv:2406.05882, paired",
  "aot_unpaired": "arXiv:2406.05882, unpaired",
  "apo_zero": "arXiv:2408.06266, eq. 7",
  "apo_down": "arXiv:2408.06266, eq. 8",
  "apo_zero_unpaired": "arXiv:2408.06266",
  "discopop": "arXiv:2406.08414, eq. 5",
  "forward_kl": "arXiv:2309.16240",
  "jensen_shannon": "arXiv:2309.16240",
  "alpha": "arXiv:2309.16240",
  "simpo": "arXiv:2405.14734, eq. 6",
  "alphapo": "arXiv:2501.03884",
  "wpo": "arXiv:2406.11827, eq. 2",
  "length_decay": "arXiv:2409.06411",
  "nll_coef": "arXiv:2404.19733",
  "label_smoothing": "https://ericmitchell.ai/cdpo.pdf, eq. 3",
  "rloo": "arXiv:2402.14740",
  "sequence_sum": "arXiv:2402.14740",
  "dr_grpo": "arXiv:2503.20783",
  "fixed_length": "arXiv:2503.20783",
  "sequence ratio": "arXiv:2507.18071",
  "cispo": "arXiv:2506.13585",
  "clip higher": "arXiv:2503.14476",
  "dual_clip": "arXiv:1912.09729, eq. 5",
}
FUNCTIONS = {
  "simpo": "algorithms.simpo",
  "alphapo": "algorithms.alphapo",
  "rloo": "algorithms.rloo",
  "sequence_sum": "algorithms.rloo",
}

# Settings that change the formula and not only its numbers, and the value at which they do not.
NEUTRAL = {
  "loss_type": None,
  "divergence": "reverse_kl",
  "estimator": None,
  "label_smoothing": 0.0,
  "average_logps": False,
  "length_decay": 1.0,
  "wpo": False,
  "nll_coef": None,
  "margin": False,
  "centering": None,
  "desirable_weight": 1.0,
  "shift_mean": True,
  "method": "grpo",
  "scale": None,
  "aggregation": None,
  "dual_clip": None,
  "clamp": None,
  "reward_at": None,
  "whiten": False,
  "whiten_rewards": False,
  "kl_importance": False,
  "normalize": False,
  "top_k": None,
  "top_p": None,
  "min_p": None,
}


def options(case) -> str:
  """The settings of a case that name another formula: "ipo, average_logps" say."""
  named = []
  for name, neutral in NEUTRAL.items():
    value = case["settings"].get(name, neutral)
    if value != neutral:
      named.append(value if isinstance(value, str) else f"no {name}" if value is False else name)
  s = case["settings"]
  if s.get("ratio", "token") != "token":
    named.append("sequence ratio" if s["ratio"] == "sequence" else s["ratio"])
  if s.get("clip_eps_high", s.get("clip_eps_low")) != s.get("clip_eps_low"):
    named.append("clip higher")
  if s.get("kl_coef"):
    named.append(s.get("kl_estimator", "k1 in the reward"))
  return ", ".join(named)


def equation(case) -> str:
  """Where the equation of the case's last special option stands, or that of its kind."""
  named = [name for name in options(case).split(", ") if name in EQUATIONS]
  if (
    len(named) > 1 and "label_smoothing" in named
  ):  # its own in robust and exo_pair, plain elsewhere
    named.remove("label_smoothing")
  return "; ".join(EQUATIONS[name] for name in named) or KINDS[case["kind"]][1]


HEADER = """# Parity

Written by `python tests/parity/report.py` from the numbers in `tests/golden/`, which the scripts in
`tests/parity/` recorded once with the reference libraries; `tests/algorithms/test_parity.py` checks the same
comparison at 1e-6 on every run, without those libraries; `test_rl_parity.py` beside it that of groups and GRPO at 2e-6.

Ours is float32, the references float64 where they allow it. An error is the largest difference of an array over its
largest entry, the worst over all cases of the row; a gradient is that of the mean loss with respect to
log-probabilities, values or scores, and "–" stands where nothing is differentiated. A row is a loss with its options
against one function of one release; cases with other numbers are counted in it. This table was measured with jax
{version} on a CPU.

| What | Options | Equation | Ours | Reference | Function | Cases | Worst value | Worst gradient |
|---|---|---|---|---|---|---|---|---|
"""

FOOTER = """
## Where conventions differ, the comparison converts

TRL and Tunix whiten with the unbiased variance and we with the biased one, as OpenAI did; rlax knows no masks, so it
is called on the unmasked tokens of each row; TRL averages log-probabilities over the response before its losses ipo and
simpo are called, and what was passed is what is recorded; Tunix's losses ask a model for log-probabilities, so that
call is patched to return ours; choix has the sum over observations, which is divided by their number. A token whose ratio
or value lies exactly on a clip's edge is avoided: there JAX and PyTorch choose different subgradients.

## Where libraries differ from each other or from the paper

| Loss | Who | What |
|---|---|---|
| IPO | TRL against OpenRLHF and the paper | TRL divides log-probabilities by the response's length; the paper and OpenRLHF sum. Ours sums, and `average_logps` divides. |
| cDPO | TRL 1.16.0 | has dropped label smoothing from the sigmoid loss; 0.28.0, OpenRLHF, Tunix and open-instruct have it, and so have we. |
| EXO | TRL 0.28.0 | puts 1e-3 where `label_smoothing` is 0, whose logarithm it needs; TRL 1.16.0 and we refuse 0. |
| BCO | TRL against the paper | δ is the mean reward of all rows of all batches so far; the paper takes half the sum of the two classes' means, the same where both are equally many. Ours is TRL's. TRL 1.16.0's bco_pair has no δ. |
| APO | TRL against the paper | adds the constant 1, which no gradient sees. So do we, and no loss is negative. |
| SPPO | TRL | β is 1/η of the paper. So is ours. |
| α-divergence | TRL 1.16.0 | is written with α' = 1 − α of the paper and of TRL 0.28.0; ours is the paper's. |
| Forward KL | TRL 1.16.0 | f'(u) = 1 − 1/u where the paper has −1/u; a pair's difference loses the constant. |
| LD-DPO | TRL 0.28.0 | counts tokens beyond the shorter response less under the policy alone; TRL 1.16.0, the paper and we under both models. |
| WPO | TRL 0.28.0 | cuts the product of a pair's weights at 1; TRL 1.16.0, the paper and we do not. |
| WPO | open-instruct | adds sums over responses to masks of tokens, lets gradients through the weights and aligns nothing; no number could be recorded. |
| RPO | TRL | averages the NLL over all chosen tokens of the batch; OpenRLHF and we over each response, then over pairs. Recorded with equally long responses. |
| ORPO | Tunix | passes summed log-probabilities to the odds, where TRL, the paper and we average. Recorded on averages. |
| KTO | OpenRLHF 0.8.11, `VanillaKTOLoss` | takes the other class's mean for the baseline, and lets gradients through it; not recorded. `KTOLoss` agrees with TRL and us. |
| LogExp | OpenRLHF | ignores a margin, and overflows where exp does; otherwise it is the Bradley-Terry loss. |

Losses without a reference here (ties of Rao and Kupper and of Davidson, tied rankings, Huber and several scales, the
length-disentangled head, DPO on rankings, TR-DPO's moving reference, DPO with a margin) are held to a hand-computed case
and a float64 oracle written from the equation: `tests/algorithms/test_reward_models.py` and
`tests/algorithms/test_preference_losses.py`.
"""


def rows():
  """(what, options, equation, ours, library, version, function) -> cases, value errors, gradient errors."""
  table = {}
  tested = [
    (module, *found) for module in (test_parity, test_rl_parity) for found in module.cases()
  ]
  for module, golden, case in tested:
    values, gradients = module.errors(case)
    what, _, ours = KINDS[case["kind"]]
    for setting in ("loss_type", "method", "ratio"):
      ours = FUNCTIONS.get(case["settings"].get(setting), ours)
    reference = f"{golden['library']} {golden['version'][:12]}"
    key = (what, options(case), equation(case), ours, reference, case["function"])
    row = table.setdefault(key, {"cases": 0, "value": [], "gradient": []})
    row["cases"] += 1
    row["value"] += values.values()
    row["gradient"] += gradients.values()
  kinds = [what for what, *_ in KINDS.values()]
  return dict(sorted(table.items(), key=lambda item: (kinds.index(item[0][0]), item[0][1:])))


def main():
  lines = []
  for (what, named, where, ours, reference, function), row in rows().items():
    worst = lambda errors: f"{max(errors):.1e}" if errors else "–"
    cells = (what, named, where, f"`{ours}`", reference, f"`{function}`", row["cases"])
    numbers = (worst(row["value"]), worst(row["gradient"]))
    lines.append("| " + " | ".join(str(cell) for cell in (*cells, *numbers)) + " |")
  text = HEADER.format(version=jax.__version__) + "\n".join(lines) + "\n" + FOOTER
  (ROOT / "docs").mkdir(exist_ok=True)
  (ROOT / "docs" / "parity.md").write_text(text)
  print(f"docs/parity.md: {len(lines)} rows")


if __name__ == "__main__":
  main()
