"""Golden numbers from open-instruct: DPO on summed and on averaged log-probabilities, and SimPO.

  pip install torch==2.13.0 "transformers>=4.56,<5" numpy tqdm
  python tests/parity/open_instruct_golden.py CLONE

where CLONE holds allenai/open-instruct at the commit below, which stands in for a version. The modules that
`dpo_utils.py` imports for its command line are replaced by empty ones.

Its `wpo_loss` is not recorded: the trainer gives it log-probabilities that are summed already, [B], which it then
multiplies by token masks, [B, T], to average them.
"""

from __future__ import annotations

import sys
import types

import record
import torch

COMMIT = "e6c3044aa6201c8bfa4573c1b03142af599e730d"


def stand_in(name: str):
  module = types.ModuleType(f"open_instruct.{name}")
  module.__file__ = name
  module.__getattr__ = lambda attribute: type(attribute, (), {})
  sys.modules[module.__name__] = module


sys.path.insert(0, sys.argv[1])
for _name in ("dataset_transformation", "model_utils", "olmo_core_utils", "utils"):
  stand_in(_name)

from open_instruct import dpo_utils  # noqa: E402

GOLDEN = record.Recorder("open_instruct", "", "torch", "transformers", version=COMMIT)


def tensors(inputs: dict) -> dict:
  return {
    key: torch.tensor(value, dtype=torch.float64, requires_grad=key in ("logps_w", "logps_l"))
    for key, value in inputs.items()
  }


def gradients(losses, x: dict) -> dict:
  losses.mean().backward()
  return {key: x[key].grad for key in ("logps_w", "logps_l")}


def record_dpo():
  for name, settings in (
    ("sigmoid", dict(loss_type="sigmoid", beta=0.1, label_smoothing=0.0)),
    ("cDPO", dict(loss_type="sigmoid", beta=0.5, label_smoothing=0.2)),
  ):
    inputs = record.pairs()
    x = tensors(inputs)
    losses, rewards_w, rewards_l = dpo_utils.dpo_loss(
      *(x[key] for key in ("logps_w", "logps_l", "ref_logps_w", "ref_logps_l")),
      beta=settings["beta"],
      label_smoothing=settings["label_smoothing"],
    )
    GOLDEN.case(
      "dpo",
      name,
      "open_instruct.dpo_utils.dpo_loss",
      inputs,
      dict(
        mean_loss=losses.mean().detach(),
        losses=losses.detach(),
        rewards_w=rewards_w,
        rewards_l=rewards_l,
      ),
      settings=settings,
      gradients=gradients(losses, x),
    )


def record_dpo_tokens():
  for name, average, beta in (
    ("summed: its loss_type dpo", False, 0.1),
    ("averaged over each response: its loss_type dpo_norm", True, 2.0),
  ):
    inputs = record.token_preferences()
    x = tensors(inputs)

    def sequence_logps(logps, mask, average=average):
      # A prompt of one token before the response; the log-probability at i is that of label i + 1.
      labels = torch.nn.functional.pad(torch.where(mask > 0, 1, -100), (1, 0), value=-100)
      padded = torch.nn.functional.pad(logps, (0, 1))
      return dpo_utils._get_batch_logps(padded, labels, average_log_prob=average)

    losses, *_ = dpo_utils.dpo_loss(
      *(
        sequence_logps(x[f"{of}_{side}"], x[f"mask_{side}"])
        for of in ("logps", "ref_logps")
        for side in ("w", "l")
      ),
      beta=beta,
    )
    GOLDEN.case(
      "dpo_tokens",
      name,
      "open_instruct.dpo_utils._get_batch_logps, dpo_loss",
      inputs,
      dict(mean_loss=losses.mean().detach(), losses=losses.detach()),
      settings=dict(
        loss_type="sigmoid", beta=beta, **(dict(average_logps=True) if average else {})
      ),
      gradients=gradients(losses, x),
    )


def record_simpo():
  for name, beta, gamma, label_smoothing in (
    ("SimPO", 2.0, 1.0, 0.0),
    ("SimPO, label smoothing", 2.5, 0.5, 0.1),
  ):
    inputs = record.likelihoods()
    x = tensors(inputs)
    losses, *_ = dpo_utils.simpo_loss(
      x["logps_w"],
      x["logps_l"],
      beta=beta,
      gamma_beta_ratio=gamma / beta,
      label_smoothing=label_smoothing,
    )
    GOLDEN.case(
      "cpo",
      name,
      "open_instruct.dpo_utils.simpo_loss",
      inputs,
      dict(mean_loss=losses.mean().detach(), losses=losses.detach()),
      settings=dict(
        loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=label_smoothing
      ),
      gradients=gradients(losses, x),
      note=(
        "its gamma_beta_ratio is γ / β; log-probabilities averaged over the response"
        + (
          "; smoothing mixes in −log σ(−(β (log π_w − log π_l) − γ)), as TRL does: the answers turned round, "
          "not the margin"
          if label_smoothing
          else ""
        )
      ),
    )


if __name__ == "__main__":
  record_dpo()
  record_dpo_tokens()
  record_simpo()
  GOLDEN.write()
