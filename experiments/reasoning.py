"""GRPO on problems with checkable answers: spell a word backwards, from reasoning-gym.

pip install '.[reasoning]'
rlhf-jax train --config=experiments/reasoning.py --workdir=runs/reasoning --seeds=0,1,2
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
    solved=600,
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
  config.grpo = dict(
    steps=150,
    prompts=128,
    group=8,
    learning_rate=5e-4,
    schedule="constant",
    kl_coef=0.0,
    checkpoint_every=50,
    evaluate_every=10,
  )
  config.evaluation = dict(greedy=True, batch_size=500)
  return config
