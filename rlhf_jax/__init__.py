"""Reinforcement learning from human feedback in JAX: from ratings to a reward model to an aligned language model."""

__version__ = "0.1.0"
