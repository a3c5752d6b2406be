"""GRPO on problems whose answers can be checked: spell a word backwards, from reasoning-gym.

    pip install '.[reasoning]'
    rlhf-jax train --config=experiments/reasoning.py --workdir=runs/reasoning --seeds=0,1,2
    rlhf-jax train --config=experiments/reasoning.py --workdir=runs/reasoning/seed_0 --config.algorithm.name=rloo

A Llama of 0.36 million parameters on bytes: SFT on 450 solved words, then GRPO on 8,000 others, rewarded by the generator's own
check. Measured 2026-11-26 on two cores of an AMD EPYC (AVX512-BF16), jax 0.10.2, with other work on the machine: 3.9 minutes and
1.7 GB a seed. pass@1 on 1,000 held-out words, greedy, goes from 29.6, 47.0 and 64.1 % (seeds 0, 1, 2) to 49.4, 81.3 and 86.5 %: gains of
19.8 [16.8, 22.7], 34.3 [31.4, 37.3] and 22.4 [19.4, 25.2] points. docs/reasoning.md says more.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "policy", "evaluation")
  config.model = dict(
    source="random",
    random=dict(
      model_type="llama",
      vocab_size=257,
      hidden_size=96,
      intermediate_size=256,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=4,
      max_position_embeddings=64,
      tie_word_embeddings=True,
      rms_norm_eps=1e-5,
      rope_theta=10000.0,
      hidden_act="silu",
    ),
    dtype="float32",
    remat=False,
    scan=False,
  )
  config.lora = dict(rank=0, alpha=8.0, targets=("q", "k", "v", "o"))
  config.data = dict(
    source="reasoning_gym",
    task="spell_backward",
    task_options=dict(min_word_len=3, max_word_len=6),
    question="{word} ",
    solved=450,
    problems=8000,
    test_prompts=1000,
    prompt_tokens=7,
    max_tokens=64,
  )
  config.rollout = dict(max_new_tokens=8, temperature=1.0)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.rewards = dict(terms=("verifier",))
  config.sft = dict(
    epochs=40.0,
    batch_size=16,
    learning_rate=4e-3,
    schedule="cosine",
    warmup=0.05,
    checkpoint_every=200,
  )
  config.algorithm = dict(name="grpo")
  learning = dict(
    steps=80,
    learning_rate=5e-4,
    schedule="constant",
    kl_coef=0.0,
    checkpoint_every=50,
    evaluate_every=10,
  )
  config.grpo = dict(learning, prompts=128, group=8)
  config.rloo = dict(learning, prompts=128, group=8)
  config.ppo = dict(learning, prompts=1024, epochs=1)
  config.evaluation = dict(greedy=True, batch_size=500)
  return config
