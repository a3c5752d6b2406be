"""The shortest path from random walks: online and offline algorithms on one graph, with curves.

    rlhf-jax compare --config=experiments/random_walks.py --workdir=runs/random_walks --seeds=1,2,3

A Llama of 99,000 parameters learns to write random walks; nine algorithms then make 240 updates each to shorten them. Measured
2026-11-26 on one of two cores of an AMD EPYC (AVX512-BF16), jax 0.10.2, with other work on the machine: 15 minutes. Mean scores of
three seeds, where SFT has 0.32 and a shortest path 1: PPO 0.98, ILQL 0.93, DPO 0.85; docs/random_walks.md has all.
"""

from ml_collections import ConfigDict


def variant(algorithm, **options):
  return {"algorithm": {"name": algorithm}, algorithm: options}


VARIANTS = {
  "ppo": variant("ppo"),
  "grpo": variant("grpo"),
  "rloo": variant("rloo"),
  "raft": variant("raft"),
  "online_dpo": variant("online_dpo"),
  "ilql": variant("ilql"),
  "dpo": variant("dpo"),
  "rpo": variant("dpo", nll_coef=1.0, beta=0.5),
  "kto": variant("kto"),
}


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.stages = ("sft", "policy", "evaluation")
  config.model = dict(
    source="random",
    random=dict(
      model_type="llama",
      vocab_size=257,
      hidden_size=64,
      intermediate_size=128,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=4,
      max_position_embeddings=32,
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
    source="random_walks",
    nodes=21,
    edge_probability=0.1,
    walks=1000,
    longest_walk=10,
    graph_seed=0,
    max_tokens=12,
    prompt_tokens=1,
    test_prompts=400,
  )
  config.rollout = dict(max_new_tokens=11, temperature=1.0)
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.rewards = dict(terms=("verifier",))
  config.answers = dict(source="human")
  config.sft = dict(
    epochs=20.0,
    batch_size=64,
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.05,
    checkpoint_every=1000,
  )
  config.algorithm = dict(name="ppo")
  online = dict(  # 60 x 4 updates of 64 answers
    steps=60,
    epochs=4,
    minibatches=1,
    learning_rate=3e-4,
    schedule="linear",
    checkpoint_every=1000,
    logged_samples=0,
    evaluate_every=5,
  )
  config.ppo = dict(online, prompts=64, kl_coef=0.01)
  config.grpo = dict(online, prompts=16, group=4)
  config.rloo = dict(online, prompts=16, group=4)
  config.raft = dict(online, prompts=16, group=4)
  config.online_dpo = dict(online, prompts=32, group=2, beta=0.5)
  offline = dict(  # as many, of walks or pairs of them
    batch_size=64,
    widths=1,
    learning_rate=1e-4,
    schedule="linear",
    checkpoint_every=1000,
    evaluate_every=20,
  )
  config.dpo = dict(offline, epochs=22.0, beta=2.0)  # 11 batches of pairs each
  config.kto = dict(offline, epochs=16.0, beta=0.5)  # 15 of marks
  config.ilql = dict(  # 15 of ratings
    offline, epochs=16.0, learning_rate=1e-3, beta=64.0, tau=0.7, gamma=1.0, cql_coef=0.03
  )
  config.evaluation = dict(best_of=4, batch_size=400)
  config.variants = VARIANTS
  return config
