"""The reward of GRPO's case, a function of texts on the host as a user would write it."""


def odd(prompts: list[str], responses: list[str]) -> list[float]:
  """The share of characters whose code is odd."""
  return [sum(ord(c) % 2 for c in text) / max(len(text), 1) for text in responses]
