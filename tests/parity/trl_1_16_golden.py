"""Golden numbers from TRL 1.16: DPO on token log-probabilities, f-divergences, KTO, CPO, SimPO, AlphaPO, ORPO.

  pip install torch==2.13.0 && pip install transformers accelerate datasets numpy && pip install --no-deps trl==1.16.0
  python tests/parity/trl_1_16_golden.py

Recorded with transformers 5.24.0 and written to `trl_1_16.json`, beside 0.28.0's `trl.json`. DPO and KTO are inlined in
their trainers' `_compute_loss`; the models it asks for token log-probabilities are replaced by functions that
return ours.
"""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np  # noqa: E402
import record  # noqa: E402
import torch  # noqa: E402
from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402
from trl.trainer.reward_trainer import RewardTrainer  # noqa: E402

GOLDEN = record.Recorder("trl", "trl", "torch", "transformers", file="trl_1_16")

ACCELERATOR = SimpleNamespace(
  device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
)


def tensor(value, requires_grad: bool = False, dtype=torch.float64):
  return torch.tensor(np.asarray(value), dtype=dtype, requires_grad=requires_grad)


def trainer(reference, **settings):
  """What `_compute_loss` reads of its trainer."""
  return SimpleNamespace(
    accelerator=ACCELERATOR,
    model=SimpleNamespace(training=False, is_gradient_checkpointing=False),
    ref_model=reference,
    args=SimpleNamespace(gradient_checkpointing_kwargs=None, center_rewards_coefficient=None),
    aux_loss_enabled=False,
    precompute_ref_logps=False,
    _metrics=defaultdict(lambda: defaultdict(list)),
    _total_train_tokens=0,
    _tp_size=1,
    **settings,
  )


def model(logps, log_sum_sq=None):
  """Stands in for a language model whose log-probability of each next token is given."""
  zeros = torch.zeros_like(logps)
  outputs = SimpleNamespace(
    log_probs=logps,
    log_sum_sq_probs=log_sum_sq if log_sum_sq is not None else zeros,
    entropy=zeros,
    mean_logits=zeros,
    is_top1=zeros.bool(),
  )
  return lambda **batch: outputs


def batch(mask) -> dict:
  """Responses after a prompt of one token, whose own log-probability does not exist."""
  completion_mask = torch.nn.functional.pad(torch.as_tensor(mask).long(), (1, 0))
  ones = torch.ones_like(completion_mask)
  return dict(input_ids=ones, attention_mask=ones, completion_mask=completion_mask)


# Our name for each of TRL's f-divergences, and TRL's.
DIVERGENCES = {
  "reverse_kl": "reverse_kl",
  "forward_kl": "forward_kl",
  "jensen_shannon": "js_divergence",
  "alpha": "alpha_divergence",
}


def dpo_mean_loss(
  x: dict,
  *,
  loss_type: str,
  beta: float,
  label_smoothing: float = 0.0,
  divergence: str = "reverse_kl",
  divergence_alpha: float = 0.5,
  discopop_tau: float = 0.05,
  delta: float = 0.0,
  average_logps: bool = False,
  length_decay: float | None = None,
  wpo: bool = False,
  nll_coef: float = 0.0,
):
  """The loss of a batch of pairs given by token log-probabilities, [B, T]."""
  assert delta == 0.0  # this version's bco_pair has none
  both = lambda name: torch.cat([x[f"{name}_w"], x[f"{name}_l"]])
  mask = both("mask")
  self = trainer(
    model(both("ref_logps") * mask),
    beta=beta,
    label_smoothing=label_smoothing,
    ld_alpha=length_decay,
    use_weighting=wpo,
    f_divergence_type=DIVERGENCES[divergence],
    f_alpha_divergence_coef=1 - divergence_alpha,
    loss_types=["sigmoid_norm" if average_logps and loss_type == "sigmoid" else loss_type],
    loss_weights=[1.0],
  )
  self.args.discopop_tau = discopop_tau
  if nll_coef:
    self.loss_types, self.loss_weights = [*self.loss_types, "sft"], [1.0, nll_coef]
  log_sum_sq = both("collision") if "collision_w" in x else None
  policy = model(both("logps") * mask, log_sum_sq)
  return DPOTrainer._compute_loss(self, policy, batch(mask), return_outputs=False)


def record_dpo_case(kind, name, inputs, settings, *, separable=True, dtype=torch.float64, **extra):
  """`separable` losses are also recorded pair by pair."""
  x = {key: tensor(value, key in ("logps_w", "logps_l"), dtype) for key, value in inputs.items()}
  # A sequence is as good as one token with its log-probability.
  widen = (lambda a: a[:, None]) if kind == "dpo" else (lambda a: a)
  tokens = {key: widen(value) for key, value in x.items()}
  if kind == "dpo":
    tokens |= {side: torch.ones_like(tokens["logps_w"]) for side in ("mask_w", "mask_l")}
  loss = dpo_mean_loss(tokens, **settings)
  loss.backward()
  outputs = dict(mean_loss=loss.detach())
  if separable:
    pairs = range(len(inputs["logps_w"]))
    one = lambda i: {key: value[i : i + 1].detach() for key, value in tokens.items()}
    outputs["losses"] = np.array([dpo_mean_loss(one(i), **settings).item() for i in pairs])
  GOLDEN.case(
    kind,
    name,
    "trl.DPOTrainer._compute_loss",
    inputs,
    outputs,
    settings=settings,
    gradients={key: x[key].grad for key in ("logps_w", "logps_l")},
    **extra,
  )


def record_dpo():
  smoothing = dict(robust=0.2, exo_pair=1e-3, aot=0.2, aot_unpaired=0.2)
  for loss_type in (
    "sigmoid",
    "robust",
    "exo_pair",
    "hinge",
    "nca_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
  ):
    settings = dict(loss_type=loss_type, beta=0.1, label_smoothing=smoothing.get(loss_type, 0.0))
    if loss_type == "discopop":
      settings["discopop_tau"] = 0.05
    separable = not loss_type.startswith("aot")
    record_dpo_case("dpo", loss_type, record.pairs(), settings, separable=separable)
  record_dpo_case(
    "dpo",
    "bco_pair without a running mean",
    record.pairs(),
    dict(loss_type="bco_pair", beta=0.1, label_smoothing=0.0, delta=0.0),
    note="TRL 1.16.0 leaves out the running mean that 0.28.0 subtracts from rewards",
  )
  f_dpo = "f'(u) of arXiv:2309.16240 up to a constant, which the difference of two answers loses"
  for loss_type in ("sigmoid", "hinge"):
    for divergence, formula in (
      ("forward_kl", "TRL: 1 − 1/u, u = π / π_ref; the paper: −1/u"),
      ("jensen_shannon", "TRL: log 2 + log σ(log u), u = π / π_ref; the paper: log(2u / (1 + u))"),
    ):
      record_dpo_case(
        "dpo",
        f"{loss_type}, {divergence}",
        record.pairs(scale=1.5),
        dict(loss_type=loss_type, beta=0.5, label_smoothing=0.0, divergence=divergence),
        note=f"{formula}; {f_dpo}",
      )
  for alpha in (0.5, 0.25, 0.75):
    record_dpo_case(
      "dpo",
      f"sigmoid, alpha divergence {alpha}",
      record.pairs(scale=1.5),
      dict(
        loss_type="sigmoid",
        beta=0.5,
        label_smoothing=0.0,
        divergence="alpha",
        divergence_alpha=alpha,
      ),
      dtype=torch.float32,
      precision="float32",
      note=(
        f"divergence_alpha is the paper's α, f'(u) = (1 − u^−α) / α, u = π / π_ref, and TRL 0.28.0's; "
        f"1.16.0 has (u^(α' − 1) − 1) / (α' − 1) with α' = 1 − α, here {1 - alpha}: the same function; "
        f"it knows float32 and lower alone"
      ),
    )


def record_dpo_tokens():
  plain = dict(loss_type="sigmoid", beta=0.1)
  inputs = record.token_preferences()

  def case(name, inputs=inputs, note=None, separable=True, **settings):
    extra = dict(note=note) if note else {}
    record_dpo_case("dpo_tokens", name, inputs, plain | settings, separable=separable, **extra)

  case("summed")
  case("averaged over each response", average_logps=True, beta=2.0, note="TRL's sigmoid_norm")
  case(
    "IPO, averaged over each response",
    average_logps=True,
    loss_type="ipo",
    note="TRL averages for IPO always; arXiv:2310.12036, eq. 17, has the whole response's log-probability",
  )
  for decay in (0.5, 0.0):
    case(
      f"length decay {decay}",
      length_decay=decay,
      note=(
        "tokens beyond the shorter response of the pair count length_decay (TRL's ld_alpha), under policy and "
        "reference; TRL 0.28.0 does so under the policy only"
      ),
    )
  case(
    "WPO without alignment",
    wpo=True,
    note=(
      "weight: exp of the mean log-probability of the chosen response plus that of the rejected, no gradient"
    ),
  )
  rng = np.random.default_rng(18)
  aligned, peaked = dict(inputs), dict(inputs)
  for side in ("w", "l"):
    # Σ_v p(v)² is at least the square of the token's own probability, and at most 1.
    at_least = 2 * inputs[f"logps_{side}"]
    drawn = -rng.gamma(2.0, 0.3, at_least.shape)
    aligned[f"collision_{side}"] = record.grid(np.maximum(at_least, drawn))
    peaked[f"collision_{side}"] = np.maximum(at_least, record.grid(8 * drawn))
  collision = (
    "collision is log Σ_v p(v)² at each token, subtracted from its log-probability in the weight"
  )
  case("WPO", aligned, wpo=True, note=f"{collision}; no pair's weight is above 1")
  case(
    "WPO, weights above 1",
    peaked,
    wpo=True,
    note=f"{collision}; 1.16.0 leaves a pair's weight above 1, where 0.28.0 clamps it at 1",
  )
  alike = dict(inputs, mask_w=(np.arange(record.T) < 5) * np.ones((record.B, 1)))
  case(
    "NLL of the chosen response",
    alike,
    nll_coef=0.25,
    separable=False,
    note=(
      "TRL's loss_type ['sigmoid', 'sft'] with loss_weights [1, nll_coef]: its NLL is the mean over the batch's chosen "
      "tokens, where arXiv:2404.19733 and OpenRLHF take the mean over each response first; the chosen responses here "
      "are equally long, so that these agree"
    ),
  )


def in_rows(array):
  """[B] -> [B, 1], a response of one token."""
  return array[:, None]


def record_kto():
  for name, drift, settings in (
    ("KTO", 1.5, dict(loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0)),
    ("KTO, weighted", 1.5, dict(loss_type="kto", desirable_weight=1.25, undesirable_weight=0.75)),
    (
      "KTO, baseline clamped at 0",
      -3.0,
      dict(loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0),
    ),
    (
      "APO-zero, unpaired",
      1.5,
      dict(loss_type="apo_zero_unpaired", desirable_weight=1.0, undesirable_weight=1.25),
    ),
  ):
    settings = dict(beta=0.1, **settings)
    inputs = record.judgements(drift=drift)
    x = {key: tensor(inputs[key], key == "logps") for key in inputs}
    policy, reference = model(in_rows(x["logps"])), model(in_rows(x["ref_logps"]))
    calculate_kl = settings["loss_type"] == "kto"
    self = trainer(reference, calculate_KL=calculate_kl, **settings)
    self._compute_kl_logps = lambda of, batch, x=x, policy=policy: (
      x["kl_logps"] if of is policy else x["kl_ref_logps"]
    )
    rows = batch(torch.ones_like(in_rows(x["logps"]))) | dict(label=torch.tensor(inputs["labels"]))
    loss = KTOTrainer._compute_loss(self, policy, rows, return_outputs=False)
    loss.backward()
    GOLDEN.case(
      "kto",
      name,
      "trl.KTOTrainer._compute_loss",
      inputs,
      dict(mean_loss=loss.detach(), kl=self._metrics["eval"]["kl"][0]),
      settings=settings,
      gradients=dict(logps=x["logps"].grad),
    )


def record_cpo():
  summed = {key: record.pairs()[key] for key in ("logps_w", "logps_l")}
  averaged = record.likelihoods()
  of_lengths = "log-probabilities averaged over the response, as TRL's trainer passes them"
  simpo_note = f"−log σ(β (log π_w − log π_l) − γ), arXiv:2405.14734, eq. 6; {of_lengths}"
  alphapo_note = (
    "SimPO with (1 − p^−α) / α for log p, arXiv:2501.03884; TRL's loss_type is 'simpo' with alpha; "
    + of_lengths
  )
  for name, inputs, settings, note in (
    ("sigmoid", summed, dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.0), None),
    ("label smoothing", summed, dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.2), None),
    ("hinge", summed, dict(loss_type="hinge", beta=0.1, label_smoothing=0.0), None),
    ("IPO", averaged, dict(loss_type="ipo", beta=0.5, label_smoothing=0.0), of_lengths),
    (
      "SimPO",
      averaged,
      dict(loss_type="simpo", beta=2.0, simpo_gamma=1.0, label_smoothing=0.0),
      simpo_note,
    ),
    (
      "SimPO, label smoothing",
      averaged,
      dict(loss_type="simpo", beta=2.5, simpo_gamma=0.5, label_smoothing=0.1),
      simpo_note
      + "; smoothing mixes in −log σ(−(β (log π_w − log π_l) − γ)): the answers turned round, not the margin",
    ),
    (
      "AlphaPO, 0.25",
      averaged,
      dict(loss_type="alphapo", beta=2.0, simpo_gamma=0.5, alpha=0.25, label_smoothing=0.0),
      alphapo_note,
    ),
    (
      "AlphaPO, −0.5",
      averaged,
      dict(loss_type="alphapo", beta=2.0, simpo_gamma=0.5, alpha=-0.5, label_smoothing=0.0),
      alphapo_note,
    ),
  ):
    x = {key: tensor(value, True) for key, value in inputs.items()}
    self = SimpleNamespace(
      accelerator=ACCELERATOR,
      loss_type=settings["loss_type"].replace("alphapo", "simpo"),
      beta=settings["beta"],
      label_smoothing=settings["label_smoothing"],
      simpo_gamma=settings.get("simpo_gamma"),
      alpha=settings.get("alpha", 0.0),
    )
    losses, *_ = CPOTrainer.cpo_loss(self, x["logps_w"], x["logps_l"])
    losses.mean().backward()
    GOLDEN.case(
      "cpo",
      name,
      "trl.experimental.cpo.CPOTrainer.cpo_loss",
      inputs,
      dict(mean_loss=losses.mean().detach(), losses=losses.detach()),
      settings=settings,
      gradients={key: value.grad for key, value in x.items()},
      **(dict(note=note) if note else {}),
    )


def record_orpo():
  for beta in (0.1, 1.0):
    inputs = record.likelihoods()
    x = {key: tensor(value, True) for key, value in inputs.items()}
    self = SimpleNamespace(accelerator=ACCELERATOR, beta=beta)
    bonus, *_ = ORPOTrainer.odds_ratio_loss(self, x["logps_w"], x["logps_l"])
    losses = -bonus
    losses.mean().backward()
    GOLDEN.case(
      "orpo",
      f"beta {beta}",
      "trl.experimental.orpo.ORPOTrainer.odds_ratio_loss",
      inputs,
      dict(mean_loss=losses.mean().detach(), losses=losses.detach()),
      settings=dict(beta=beta),
      gradients={key: value.grad for key, value in x.items()},
      precision="float32",  # the function casts
      note=(
        "the odds-ratio term alone, −β log σ(log odds_w − log odds_l), odds = p / (1 − p), log p averaged over tokens; "
        "TRL returns it with the other sign and subtracts it from the chosen response's NLL"
      ),
    )


def record_reward_loss():
  margin = record.grid([0.0, 0.5, 1.0, 2.0, 0.25, 3.0])
  inputs = dict(record.scores(), margin=margin)
  rewards = tensor(np.concatenate([inputs["chosen"], inputs["rejected"]])[:, None], True)
  self = trainer(None)
  self.args.center_rewards_coefficient = 0.01
  outputs = lambda **columns: SimpleNamespace(logits=rewards)
  loss = RewardTrainer.compute_loss(self, outputs, {"margin": tensor(margin)})
  loss.backward()
  chosen, rejected = rewards.grad[:, 0].chunk(2)
  GOLDEN.case(
    "bradley_terry",
    "margin and centering penalty",
    "trl.RewardTrainer.compute_loss",
    inputs,
    dict(mean_loss=loss.detach()),
    settings=dict(margin=True, centering=0.01),
    gradients=dict(chosen=chosen, rejected=rejected),
  )


if __name__ == "__main__":
  record_dpo()
  record_dpo_tokens()
  record_kto()
  record_cpo()
  record_orpo()
  record_reward_loss()
  GOLDEN.write()
