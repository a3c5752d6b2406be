"""Deep Q-learning of tokens: replay and a target network (Mnih et al., Nature 518, 2015; double: arXiv:1509.06461).

Like `q_learning`, but that a step draws answers from the last `replay` batches, and that V(s') is read from Q̂, a copy of the whole
policy that follows it:

    double   Q̂(s', argmaxₐ Q(s', a))
    max      maxₐ Q̂(s', a)
    soft     α log Σₐ π̂_LM(a | s') exp(Q̂(s', a) / α)

Targets are made anew whenever an answer is drawn. With λ > 0 they hold choices of the policies that wrote the answers, uncorrected.
"""

from __future__ import annotations

import jax

from rlhf_jax.algorithms import q_learning as family
from rlhf_jax.config import hyperparameters, option
from rlhf_jax.ops import q_learning
from rlhf_jax.types import Algorithm, Policy, ValueHeads, Words

Array = jax.Array

TRAINS = "policy"
DATA = "rollouts"
CRITIC_FREE = True
HEADS = ValueHeads(q=1, acts=True)


@hyperparameters
class Config(family.Common):
  backup: str = option("double", choices=("double", "max", "soft"))
  replay: int = option(
    8, at_least=1
  )  # batches of rollouts that are drawn from; 1 is the newest alone
  target_every: int = option(5, at_least=1)  # steps between updates of the target network
  target_rate: float = option(1.0, above=0, at_most=1)  # of the way to the policy that it goes


def worth(mine: Words, target: Words, tokens: Array, config: Config) -> family.Worth:
  if config.backup == "soft":
    return family.soft(target, tokens, config)
  select = mine if config.backup == "double" else target
  return family.hard(q_learning.double_value(select.q[0], target.q[0]))


def make(policy: Policy) -> Algorithm:
  """DQN on `Rollout`s; `policy` needs `HEADS`."""
  return family.make_by(policy, worth, target_network=True)
