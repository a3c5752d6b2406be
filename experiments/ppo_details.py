"""PPO's details, each changed alone, over eight seeds: what matters and what does not (docs/ppo_details.md).

    rlhf-jax ablate --config=experiments/ppo_details.py --workdir=runs/ppo_details

A Llama of 0.28 million parameters on bytes and learned pairs of bytes finishes the sentences that food reviews begin, to the
taste of a reward model from their stars. `base` is PPO as the section below has it; every other variant says what it changes.
Measured 2026-11-26 on two cores of an AMD EPYC (AVX512-BF16), jax 0.10.2, with much other work on the machine: 46 minutes and
2.9 GB. How much is learned from a batch and what the KL penalty is decide most; whitening, value clipping and the like do not show.
"""

from ml_collections import ConfigDict

# Tokens with a "!", "." or "?" in them, and the end mark.
STOPS = (0, 13, 30, 368, 475, 571, 730, 1023)


def ppo(**options):
  return {"ppo": options}


OWN_CRITIC = dict(critic="separate")
VARIANTS = {
  "base": ppo(),
  # The penalty for leaving the reference.
  "no_kl": ppo(kl_coef=0.0),
  "kl_k3": ppo(kl_estimator="k3"),
  "kl_exact": ppo(kl_estimator="exact"),
  "kl_in_loss_k2": ppo(kl_in="loss", kl_estimator="k2"),
  "kl_in_loss_k3": ppo(kl_in="loss", kl_estimator="k3"),
  "kl_adaptive_to_3": ppo(kl_target=3.0),
  # What is paid, and where.
  "score_after_last": ppo(reward_at="after_last"),
  "truncation_fixed": ppo(truncation="fixed_score"),
  "truncation_penalty": ppo(truncation="penalty"),
  "truncation_bootstrap": ppo(truncation="bootstrap"),
  "whiten_rewards": ppo(whiten_rewards="scale"),
  "whiten_rewards_shift": ppo(whiten_rewards="shift_and_scale"),
  "scale_rewards": ppo(scale_rewards="running"),
  "min_tokens_6": ppo(min_tokens=6),
  # Advantages.
  "whiten_minibatch": ppo(whiten_advantages="minibatch"),
  "no_whitening": ppo(whiten_advantages="none"),
  "gae_lambda_1": ppo(gae_lambda=1.0),
  # The critic.
  "no_value_clip": ppo(value_clip_eps=None),
  "value_head_random": ppo(value_head_std=0.1),
  "critic_separate": ppo(**OWN_CRITIC),
  "critic_of_reward_model": ppo(**OWN_CRITIC, critic_init="reward_model"),
  "critic_warmup_4": ppo(**OWN_CRITIC, critic_warmup=4),
  # The policy's loss.
  "no_clip": ppo(clip_eps=1e3),
  "clip_higher": ppo(clip_eps_high=0.28),
  "entropy_bonus": ppo(entropy_coef=0.01),
  "mean_of_sequences": ppo(aggregation="sequence"),
  "stop_kl": ppo(stop_kl=0.02),
  # The optimizer, and how often it steps.
  "adam_tf": ppo(optimizer="adam_tf", eps=1e-5),
  "no_grad_clip": ppo(clip_norm=None),
  "constant_rate": ppo(schedule="constant"),
  "one_epoch": ppo(epochs=1),
  "four_epochs": ppo(epochs=4),
  "one_minibatch": ppo(minibatches=1),
}


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "reward_model", "policy", "evaluation")
  config.model = dict(
    source="random",
    random=dict(
      model_type="llama",
      vocab_size=1024,
      hidden_size=96,
      intermediate_size=192,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=4,
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
    source="reviews", max_tokens=96, held_out_tokens=96, prompt_tokens=8, test_prompts=200
  )
  config.rollout = dict(max_new_tokens=16, temperature=1.0, stop_tokens=STOPS)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.sft = dict(
    epochs=8.0,
    batch_size=16,
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.05,
    checkpoint_every=200,
  )
  config.reward_model = dict(
    epochs=3.0,
    batch_size=16,
    learning_rate=5e-4,
    schedule="linear",
    warmup=0.05,
    checkpoint_every=200,
  )
  config.algorithm = dict(name="ppo")
  config.ppo = dict(
    steps=30,
    prompts=32,
    epochs=2,
    minibatches=2,
    learning_rate=5e-4,
    schedule="linear",
    optimizer="adamw",
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip_norm=1.0,
    kl_coef=0.1,
    kl_in="reward",
    kl_estimator="k1",
    reward_at="last",
    truncation="score",
    whiten_rewards="none",
    scale_rewards="none",
    whiten_advantages="batch",
    gamma=1.0,
    gae_lambda=0.95,
    clip_eps=0.2,
    aggregation="token",
    value_clip_eps=0.2,
    value_coef=0.1,
    value_head_std=0.0,
    critic="shared",
  )
  config.evaluation = dict(best_of=4, batch_size=200)
  config.ablation = dict(seeds=8, base="base")
  config.variants = VARIANTS
  return config
