"""The whole pipeline on a model of a few thousand parameters: SFT, reward model, PPO or DPO, evaluation.

    rlhf-jax train --config=experiments/tiny.py --workdir=runs/tiny

Bytes for tokens and the quickstart's real reviews. It shows that everything works, not that a model
of this size can write.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "reward_model", "policy", "evaluation")
  config.model = dict(
    source="random",
    random=dict(
      model_type="llama",
      vocab_size=257,
      hidden_size=16,
      intermediate_size=32,
      num_hidden_layers=2,
      num_attention_heads=2,
      num_key_value_heads=1,
      max_position_embeddings=128,
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
    source="reviews", max_tokens=64, held_out_tokens=64, prompt_tokens=8, test_prompts=64
  )
  config.rollout = dict(max_new_tokens=24, temperature=1.0)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.sft = dict(epochs=0.3, batch_size=16, learning_rate=1e-2, checkpoint_every=10)
  config.reward_model = dict(epochs=0.3, batch_size=16, learning_rate=3e-3, checkpoint_every=10)
  config.algorithm = dict(name="ppo")
  config.answers = dict(source="sampled", prompts=64, count=4)
  config.ppo = dict(
    steps=8,
    prompts=32,
    epochs=2,
    minibatches=2,
    learning_rate=3e-3,
    kl_coef=0.05,
    checkpoint_every=2,
    critic="shared",
  )
  config.dpo = dict(epochs=1.0, batch_size=16, learning_rate=1e-3, beta=0.1, checkpoint_every=2)
  config.evaluation = dict(best_of=4, batch_size=64)
  return config
