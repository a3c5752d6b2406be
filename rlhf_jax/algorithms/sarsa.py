"""SARSA of tokens: the value of the policy as it writes (Rummery and Niranjan 1994; Sutton and Barto 2018, section 6.4).

Like `q_learning`, but that V(s') is the Q of the token that was written next, or with backup="expected" the mean Q of what the
policy would write, Σₐ π(a | s') Q(s', a), which is the same on average with less variance. Q is then the value of the policy that
wrote, and each step, in which the policy follows its new Q, is one of policy iteration.
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
  backup: str = option("sampled", choices=("sampled", "expected"))


def worth(mine: Words, target: Words, tokens: Array, config: Config) -> family.Worth:
  if config.backup == "sampled":
    return family.hard(q_learning.taken(mine.q[0], tokens))
  return family.hard(q_learning.expected_value(mine.q[0], family.acting_logp(mine, config)))


def make(policy: Policy) -> Algorithm:
  """SARSA on `Rollout`s; `policy` needs `HEADS`."""
  return family.make_by(policy, worth)
