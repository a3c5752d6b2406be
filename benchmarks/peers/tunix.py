"""Times a case in Tunix and prints one JSON line.

  python -m benchmarks.peers.tunix dpo S

Tunix has no trainer of reward models. Its rows are padded to the longest that the set allows, so that nothing is compiled
anew; and its sampler ends a row by an end mark alone, so that the ragged set is left to SFT and DPO.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from importlib.metadata import version

os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler, tokenizer_adapter
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rollout import base_rollout
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils
from tunix.sft.dpo import dpo_trainer

from benchmarks.peers import measure
from benchmarks.peers.measure import PAD, Case, Clock, Ids

NEVER = 10**9


def main() -> None:
  case = measure.parse(__doc__, tuple(TASKS), ("float32", "bfloat16"))
  if case.ragged and case.task not in ("sft", "dpo"):
    sys.exit("error: Tunix ends a row by an end mark alone, so the ragged set is sft and dpo here.")
  if case.cached_reference:
    sys.exit("error: Tunix computes the reference of DPO in each step.")
  # Tunix lets two steps run behind the one that it prepares: a tick comes that much late, and early ones come too soon.
  case = dataclasses.replace(case, warmup=max(case.warmup, 2))
  clock = Clock(case)
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with mesh, contextlib.redirect_stdout(sys.stderr):
    TASKS[case.task](case, clock, mesh)
  versions = ", ".join(f"{name} {version(name)}" for name in ("google-tunix", "jax", "flax"))
  measure.report(case, "tunix", versions, clock)


def sft(case: Case, clock: Clock, mesh) -> None:
  """Language modelling on whole texts."""
  ids, width = Ids(case), (1 + case.ragged) * case.shape["seq"]

  def batch(rows) -> peft_trainer.TrainingInput:
    tokens, mask = _right_padded([ids(row.longest) for row in rows], width)
    return peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)

  def model_input(x) -> dict:
    return {
      "input_tokens": x.input_tokens,
      "input_mask": x.input_mask,
      "positions": sft_utils.build_positions_from_mask(x.input_mask),
      "attention_mask": sft_utils.make_causal_attn_mask(x.input_mask),
    }

  config = peft_trainer.TrainingConfig(eval_every_n_steps=NEVER, max_steps=NEVER)
  trainer = peft_trainer.PeftTrainer(_lm(case, 0), optax.adamw(1e-5), config)
  trainer.with_gen_model_input_fn(model_input).train(_Feed(case, clock, batch))


def dpo(case: Case, clock: Clock, mesh) -> None:
  """The reference is computed in each step."""
  ids, scale = Ids(case), 1 + case.ragged
  prompt_width, width = scale * case.shape["prompt"], scale * case.shape["completion"]

  def batch(rows) -> dpo_trainer.TrainingInput:
    prompts, prompt_mask = _right_padded([ids(row.prompt) for row in rows], prompt_width)
    chosen, chosen_mask = _right_padded([ids(row.responses[0]) for row in rows], width)
    rejected, rejected_mask = _right_padded([ids(row.responses[1]) for row in rows], width)
    return dpo_trainer.TrainingInput(
      prompt_ids=prompts[:, ::-1],  # left-padded
      prompt_mask=prompt_mask[:, ::-1],
      chosen_ids=chosen,
      chosen_mask=chosen_mask,
      rejected_ids=rejected,
      rejected_mask=rejected_mask,
    )

  config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=NEVER, max_steps=NEVER)
  trainer = dpo_trainer.DPOTrainer(_lm(case, 0), _lm(case, 1), optax.adamw(1e-5), config)
  trainer.train(_Feed(case, clock, batch))


def gen(case: Case, clock: Clock, mesh) -> None:
  shape, architecture = case.shape, _architecture(case)
  cache = sampler.CacheConfig(
    cache_size=shape["prompt"] + shape["new"],
    num_layers=architecture.num_layers,
    num_kv_heads=architecture.num_kv_heads,
    head_dim=architecture.head_dim,
  )
  sample = sampler.Sampler(_lm(case, 0), tokenizer_adapter.TokenizerAdapter(_Words()), cache)
  ids = Ids(case)
  for seed, _ in enumerate(_Feed(case, clock, lambda rows: rows)):
    sample(
      [ids.text(shape["prompt"] - 1) for _ in range(shape["batch"])],  # a first mark is added
      max_generation_steps=shape["new"],
      max_prompt_length=shape["prompt"],
      temperature=1.0,
      top_p=1.0,
      seed=seed,
      eos_tokens=[_no_end(case)],
    )


def grpo(case: Case, clock: Clock, mesh) -> None:
  """Groups are written, scored by a function that costs nothing, and learned from once."""

  def reward(prompts, completions, **_) -> list[float]:
    words = [text.split() for text in completions]
    return [sum(int(word[1:]) % 2 for word in row) / max(len(row), 1) for row in words]

  config = GRPOConfig(
    num_generations=case.shape["group"], num_iterations=case.shape["iterations"], beta=0.04
  )
  learner = GRPOLearner(_cluster(case, mesh, case.shape["prompts"]), config, reward)
  learner.train(_Feed(case, clock, _prompts(case)))


def ppo(case: Case, clock: Clock, mesh) -> None:
  """Four models of one size: policy, critic, reward model and reference."""
  cluster = _cluster(
    case, mesh, case.shape["batch"], critic=_scorer(case, 2), reward=_scorer(case, 3)
  )
  learner = PPOLearner(cluster, PPOConfig(num_iterations=case.shape["epochs"], beta=0.05))
  learner.train(_Feed(case, clock, _prompts(case)))


TASKS = {"sft": sft, "dpo": dpo, "gen": gen, "grpo": grpo, "ppo": ppo}


class _Feed:
  """Batches of the case's rows; a tick whenever one is asked for, and a last one when there are no more."""

  def __init__(self, case: Case, clock: Clock, make):
    self._batches, self._clock, self._make = case.sorted_rows(), clock, make

  def __iter__(self):
    for rows in self._batches:
      self._clock.tick()
      yield self._make(rows)
    self._clock.tick()


class _Words:
  """One word, one token: "w17" is id 17."""

  def encode(self, text: str, **_) -> list[int]:
    return [int(word[1:]) for word in text.split()]

  def decode(self, ids, **_) -> str:
    return " ".join(f"w{i}" for i in ids)

  def bos_id(self) -> int:
    return measure.BOS

  def eos_id(self) -> int:
    return measure.EOS

  def pad_id(self) -> int:
    return measure.PAD


class _Scorer(llama3.Llama3):
  """The trunk with a number per position; Tunix makes its critics from untied heads only."""

  def __init__(self, config, *, rngs):
    super().__init__(config, rngs=rngs)
    self.score = nnx.Linear(config.embed_dim, 1, use_bias=False, rngs=rngs)

  def __call__(self, input_tokens, positions, cache, attention_mask, **_):
    x = self.embedder.encode(input_tokens)
    for layer in self.layers:
      _, x = layer(x, positions, None, attention_mask)
    return self.score(self.final_norm(x)), None


def _architecture(case: Case) -> llama3.ModelConfig:
  a = case.architecture
  return llama3.ModelConfig(
    num_layers=a["layers"],
    vocab_size=a["vocab"],
    embed_dim=a["d"],
    hidden_dim=a["ffn"],
    num_heads=a["heads"],
    head_dim=a["d"] // a["heads"],
    num_kv_heads=a["kv_heads"],
    rope_theta=int(a["rope_theta"]),
    norm_eps=1e-5,
    weight_tying=a["tie"],
  )


def _lm(case: Case, seed: int) -> llama3.Llama3:
  """With random weights, which cost what trained ones do."""
  return _cast(llama3.Llama3(_architecture(case), rngs=nnx.Rngs(seed)), case)


def _scorer(case: Case, seed: int) -> _Scorer:
  return _cast(_Scorer(_architecture(case), rngs=nnx.Rngs(seed)), case)


def _cast(model, case: Case):
  """The weights in the case's dtype, in which Tunix then computes."""
  cast = lambda w: w.astype(jnp.dtype(case.dtype)) if w.dtype == jnp.float32 else w
  nnx.update(model, jax.tree.map(cast, nnx.state(model, nnx.Param)))
  return model


def _cluster(case: Case, mesh, batch: int, **models) -> rl_cluster.RLCluster:
  """What GRPO and PPO train in; `batch` prompts to a step."""
  shape, roles = case.shape, rl_cluster.Role
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.adamw(1e-5),
    critic_optimizer=optax.adamw(1e-5) if models else None,
    eval_every_n_steps=NEVER,
    max_steps=NEVER,
    mini_batch_size=batch,
    train_micro_batch_size=batch,
  )
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=shape["new"],
    max_prompt_length=shape["prompt"],
    temperature=1.0,
    top_p=1.0,
    top_k=None,
    kv_cache_size=shape["prompt"] + shape["new"],
    eos_tokens=[_no_end(case)],
  )
  every = (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT, roles.CRITIC, roles.REWARD)
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(every, mesh),
    rollout_engine="vanilla",
    training_config=training,
    rollout_config=rollout,
  )
  return rl_cluster.RLCluster(
    actor=_lm(case, 0), reference=_lm(case, 1), tokenizer=_Words(), cluster_config=config, **models
  )


def _prompts(case: Case):
  """Makes a batch of prompts; a first mark is added to each."""
  ids = Ids(case)
  return lambda rows: {"prompts": np.array([ids.text(row.prompt - 1) for row in rows])}


def _no_end(case: Case) -> int:
  """An end mark that is drawn once in as many tokens as there are ids: few rows end early."""
  return case.architecture["vocab"] - 1


def _right_padded(rows: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  ids = np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)
  return ids, ids != PAD


if __name__ == "__main__":
  main()
