"""Golden numbers from Tunix: PPO and value losses, GAE, KL estimators, DPO, ORPO, masked statistics.

  pip install jax==0.10.2 flax==0.12.8 optax orbax-checkpoint jaxtyping omegaconf && pip install --no-deps google-tunix==0.1.7
  python tests/parity/tunix_golden.py

Its losses take a model: here the function that asks the model for log-probabilities or values is patched to
return ours. Packages of its trainers that are not installed are replaced by empty modules.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402
from flax import nnx  # noqa: E402

record.Absent(
  *("metrax", "qwix", "grain", "datasets", "transformers", "tensorflow_datasets", "kagglehub"),
  *("sentencepiece", "numba", "perfetto", "safetensors", "huggingface_hub", "pylatexenc", "dotenv"),
  *(
    "tenacity",
    "tensorflow",
    "sympy",
    "torch",
    "hf_transfer",
    "tqdm",
    "PIL",
    "pandas",
    "vllm",
    "sgl_jax",
    "pathwaysutils",
  ),
)

from tunix.rl import algo_core, common  # noqa: E402
from tunix.sft.dpo import dpo_trainer  # noqa: E402

GOLDEN = record.Recorder("tunix", "google-tunix", "jax", "flax")


class NoModel(nnx.Module):
  """A module without parameters, for functions that split one before calling what is patched."""


def record_gae():
  inputs = record.trajectories() | dict(bootstrap=np.zeros(record.B))
  mask = inputs["mask"]
  for gamma, lambda_ in ((1.0, 0.95), (0.9, 0.7)):
    whitened, returns = algo_core.compute_gae_advantages(
      inputs["rewards"], inputs["values"], mask, gamma, lambda_
    )
    advantages = (returns - inputs["values"]) * mask
    GOLDEN.case(
      "gae",
      f"ragged rows and gaps, gamma {gamma}, lambda {lambda_}",
      "tunix.rl.algo_core.compute_gae_advantages",
      inputs,
      dict(advantages=advantages, returns=returns * mask),
      settings=dict(gamma=gamma, lambda_=lambda_),
      note="advantages are its returns minus the values; it whitens its own",
    )
    GOLDEN.case(
      "whiten",
      f"advantages, unbiased variance, gamma {gamma}, lambda {lambda_}",
      "tunix.rl.algo_core.compute_gae_advantages",
      dict(values=advantages, mask=mask),
      dict(whitened=whitened * mask),
      settings=dict(variance="unbiased"),
    )


def record_policy_loss():
  for seed, clip_eps in ((2, 0.2), (12, 0.05)):
    inputs = record.policy_step(seed)
    example = SimpleNamespace(
      prompt_ids=None,
      completion_ids=np.zeros_like(inputs["logps"]),
      completion_mask=jnp.asarray(inputs["mask"]),
      advantages=jnp.asarray(inputs["advantages"]),
      old_per_token_logps=jnp.asarray(inputs["old_logps"]),
    )
    config = SimpleNamespace(epsilon_low=clip_eps, epsilon_high=clip_eps, entropy_coef=None)

    def loss_fn(logps, example=example, config=config):
      with mock.patch.object(common, "compute_per_token_logps", return_value=(logps, None)):
        return algo_core.ppo_policy_loss_fn(NoModel(), example, config, pad_id=0, eos_id=1)

    (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(inputs["logps"]))
    GOLDEN.case(
      "clipped_surrogate",
      f"token mean, clipped on both sides, eps {clip_eps}",
      "tunix.rl.algo_core.ppo_policy_loss_fn",
      inputs,
      dict(mean_loss=loss, clip_fraction=aux["pg_clipfrac"]),
      settings=dict(clip_eps=clip_eps),
      gradients=dict(logps=gradient),
    )


def record_value_loss():
  for seed, clip_eps in ((3, 0.2), (13, 0.45)):
    inputs = record.value_step(seed)
    example = SimpleNamespace(
      prompt_ids=None,
      completion_ids=np.zeros_like(inputs["values"]),
      completion_mask=jnp.asarray(inputs["mask"]),
      old_values=jnp.asarray(inputs["old_values"]),
      returns=jnp.asarray(inputs["returns"]),
    )

    def loss_fn(values, example=example, clip_eps=clip_eps):
      # It drops the value after the last token.
      scores = jnp.pad(values, ((0, 0), (0, 1)))
      with mock.patch.object(common, "compute_score", return_value=scores):
        return algo_core.ppo_value_loss_fn(NoModel(), example, clip_eps, pad_id=0, eos_id=1)

    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(jnp.asarray(inputs["values"]))
    GOLDEN.case(
      "clipped_value_loss",
      f"token mean, clipped on both sides, eps {clip_eps}",
      "tunix.rl.algo_core.ppo_value_loss_fn",
      inputs,
      dict(mean_loss=loss),
      settings=dict(clip_eps=clip_eps),
      gradients=dict(values=gradient),
    )


def record_kl():
  inputs = record.token_pairs()
  ref_logps = jnp.asarray(inputs["ref_logps"])
  for estimator, method in (("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")):
    kl_fn = lambda logps, method=method: common.compute_kl_divergence(logps, ref_logps, method)
    logps = jnp.asarray(inputs["logps"])
    GOLDEN.case(
      "kl",
      estimator,
      "tunix.rl.common.compute_kl_divergence",
      inputs,
      dict(kl=kl_fn(logps)),
      settings=dict(estimator=estimator),
      gradients=dict(logps=jax.grad(lambda logps, f=kl_fn: jnp.mean(f(logps)))(logps)),
      precision="float32",  # the function casts
    )


def record_dpo():
  rng = np.random.RandomState(0)  # the seed and draws of Tunix's own test
  logps = rng.normal(0, 5, size=(8, 4))
  ref_logps = rng.normal(0, 5, size=(8, 4)).sum(axis=-1)
  own = dict(
    logps_w=logps[:4].sum(-1), logps_l=logps[4:].sum(-1), ref_logps_w=ref_logps[:4]
  ) | dict(ref_logps_l=ref_logps[4:])
  for name, inputs in (("Tunix's own test", own), ("wide margins", record.pairs())):
    for label_smoothing in (0.0, 0.3):
      example = mock.MagicMock(
        ref_chosen_logps=jnp.asarray(inputs["ref_logps_w"]),
        ref_rejected_logps=jnp.asarray(inputs["ref_logps_l"]),
      )

      def loss_fn(logps, example=example, label_smoothing=label_smoothing):
        with mock.patch.object(dpo_trainer, "compute_logps", return_value=logps):
          return dpo_trainer.dpo_loss_fn(None, example, beta=0.1, label_smoothing=label_smoothing)[
            0
          ]

      pair = (jnp.asarray(inputs["logps_w"]), jnp.asarray(inputs["logps_l"]))
      loss, (gradient_w, gradient_l) = jax.value_and_grad(loss_fn)(pair)
      GOLDEN.case(
        "dpo",
        f"{name}, label smoothing {label_smoothing}",
        "tunix.sft.dpo.dpo_trainer.dpo_loss_fn",
        inputs,
        dict(mean_loss=loss),
        settings=dict(loss_type="sigmoid", beta=0.1, label_smoothing=label_smoothing),
        gradients=dict(logps_w=gradient_w, logps_l=gradient_l),
      )


def record_orpo():
  inputs = record.likelihoods()
  example = mock.MagicMock(completion_mask=jnp.ones((2 * len(inputs["logps_w"]), 1)))
  for lambda_ in (0.1, 1.0):

    def loss_fn(logps, lambda_=lambda_):
      with mock.patch.object(dpo_trainer, "compute_logps", return_value=logps):
        loss, aux = dpo_trainer.dpo_loss_fn(
          None, example, algorithm="orpo", lambda_orpo=lambda_, label_smoothing=0.0
        )
      return loss - aux["sft_loss"]

    pair = (jnp.asarray(inputs["logps_w"]), jnp.asarray(inputs["logps_l"]))
    loss, (gradient_w, gradient_l) = jax.value_and_grad(loss_fn)(pair)
    GOLDEN.case(
      "orpo",
      f"beta {lambda_}",
      "tunix.sft.dpo.dpo_trainer.dpo_loss_fn",
      inputs,
      dict(mean_loss=loss),
      settings=dict(beta=lambda_),
      gradients=dict(logps_w=gradient_w, logps_l=gradient_l),
      note=(
        "the odds-ratio term alone, −λ log σ(log odds_w − log odds_l), odds = p / (1 − p): its NLL is subtracted "
        "again; given averaged log-probabilities here, where Tunix's trainer passes the sums over the response"
      ),
    )


def record_statistics():
  own = np.array([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
  own_mask = np.array([[1.0, 1, 0, 0, 1], [1, 1, 1, 1, 1]])
  cases = {
    "Tunix's own test, one row": (own[:1], own_mask[:1]),
    "Tunix's own test, two rows": (own, own_mask),
    "ragged rows": (record.trajectories()["rewards"], np.asarray(record.MASK, np.float64)),
  }
  for name, (values, mask) in cases.items():
    x, m = jnp.asarray(values), jnp.asarray(mask)
    GOLDEN.case(
      "masked_statistics",
      name,
      "tunix.rl.algo_core.masked_mean, masked_var",
      dict(values=values, mask=mask),
      dict(mean=algo_core.masked_mean(x, m), variance=algo_core.masked_var(x, m)),
      settings=dict(variance="unbiased"),
    )


def record_logps():
  inputs = record.predictions()
  logits, tokens = jnp.asarray(inputs["logits"]), jnp.asarray(inputs["tokens"])
  logps_fn = lambda logits: common.selective_log_softmax(logits[:, :-1], tokens[:, 1:])
  GOLDEN.case(
    "token_logps",
    "log-probabilities and entropy",
    "tunix.rl.common.selective_log_softmax, algo_core.compute_entropy_from_logits",
    dict(logits=inputs["logits"], tokens=inputs["tokens"]),
    dict(logps=logps_fn(logits), entropy=algo_core.compute_entropy_from_logits(logits[:, :-1])),
    settings=dict(temperature=1.0),
    gradients=dict(logits=jax.grad(lambda logits: jnp.mean(logps_fn(logits)))(logits)),
    precision="float32",  # the function casts
  )


if __name__ == "__main__":
  record_gae()
  record_policy_loss()
  record_value_loss()
  record_kl()
  record_dpo()
  record_orpo()
  record_statistics()
  record_logps()
  GOLDEN.write()
