"""Llama 3.1 and 3.2 shapes on pods of TPUs: DPO of the whole model, or PPO with LoRA.

    rlhf-jax plan --config=experiments/llama.py:8b_dpo --topology=v5e:4x4
    rlhf-jax train --config=experiments/llama.py:1b_dpo --workdir=runs/llama --config.model.source=FOLDER \\
        --config.data.sft=texts.jsonl --config.data.feedback=pairs.jsonl

After the colon stands a size, 1b, 8b or 70b, and an algorithm, dpo or ppo_lora. The mesh is that of 16 chips; docs/plan.md says which
other chips each fits, what a step takes of them at least, and with which options; on more chips lower every stage's `accumulate`, so that
`batch_size` / `accumulate` divides over them. Weights are random until `model.source` names a
folder of Hugging Face. DPO learns from people's pairs, PPO from the reward model that the run trains on them.
"""

from ml_collections import ConfigDict

# hidden size, layers, heads, feed-forward size, whether the unembedding is the embedding, factor of rotary scaling
SHAPES = {
  "1b": (2048, 16, 32, 8192, True, 32.0),
  "8b": (4096, 32, 32, 14336, False, 8.0),
  "70b": (8192, 80, 64, 28672, False, 8.0),
}


def get_config(which="8b_dpo"):
  size, _, algorithm = which.partition("_")
  hidden, layers, heads, mlp, tied, factor = SHAPES[size]
  lora = {"dpo": False, "ppo_lora": True}[algorithm]
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "reward_model", "policy") if lora else ("sft", "policy")
  config.model = dict(
    source="random",
    random=dict(
      model_type="llama",
      vocab_size=128256,
      hidden_size=hidden,
      intermediate_size=mlp,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=8,
      max_position_embeddings=131072,
      tie_word_embeddings=tied,
      rms_norm_eps=1e-5,
      rope_theta=500000.0,
      rope_scaling=dict(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
      ),
      hidden_act="silu",
    ),
    dtype="bfloat16",
    remat=True,
    remat_policy="nothing_saveable",
    scan=True,
  )
  config.lora = dict(
    rank=64 if lora else 0, alpha=128.0, targets=("q", "k", "v", "o", "gate", "up", "down")
  )
  config.data = dict(source="files", max_tokens=2048, prompt_tokens=1024)
  config.rollout = dict(max_new_tokens=1024, temperature=1.0)
  config.mesh = dict(data=1, fsdp=16, tensor=1)
  config.sft = dict(epochs=1.0, batch_size=256, accumulate=16, learning_rate=1e-5, warmup=0.05)
  config.reward_model = dict(epochs=1.0, batch_size=256, accumulate=16, learning_rate=1e-4)
  config.algorithm = dict(name="ppo" if lora else "dpo")
  config.answers = dict(source="human")
  config.dpo = dict(
    epochs=1.0, batch_size=256, accumulate=16, learning_rate=5e-7, beta=0.1, warmup=0.05
  )
  config.ppo = dict(
    steps=500,
    prompts=256,
    epochs=1,
    minibatches=1,
    accumulate=16,
    learning_rate=1e-5,
    kl_coef=0.05,
    critic="shared",
  )
  return config
