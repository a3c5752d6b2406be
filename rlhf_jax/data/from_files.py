"""Your own files as a task, one object a line: `sft` {"prompt", "response"}, `feedback` and `held_out` {"prompt",
"chosen", "rejected"}, `prompts` {"prompt"}, `test` {"prompt"}.
"""

from __future__ import annotations

from rlhf_jax.data import chat, jsonl
from rlhf_jax.data.examples import Example, Pair
from rlhf_jax.data.task import Settings, Task


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  notes: list[str] = []
  encode = lambda prompt: chat.plain_prompt(tokenizer, prompt)

  def example(row, field) -> Example:
    tokens, mask = chat.plain(tokenizer, row["prompt"], row[field])
    return Example(row["id"], tokens, mask)

  def answer_fits(row, *fields) -> str | None:
    longest = max(len(example(row, f).tokens) for f in fields)
    if len(encode(row["prompt"])) >= settings.max_tokens:
      return f"the prompt leaves no room to answer within data.max_tokens={settings.max_tokens}"
    if longest > settings.max_tokens:
      return f"{longest} tokens exceed data.max_tokens={settings.max_tokens}; raise it or shorten the row"
    return None

  def pair_is_usable(row) -> str | None:
    if row["chosen"] == row["rejected"]:
      return "'chosen' and 'rejected' are the same text, so nothing is preferred"
    return answer_fits(row, "chosen", "rejected")

  def prompt_fits(row) -> str | None:
    size = len(encode(row["prompt"]))
    if size > settings.prompt_tokens:
      return (
        f"a prompt of {size} tokens exceeds data.prompt_tokens={settings.prompt_tokens}; raise it or "
        "shorten the row"
      )
    return None

  def read(name, fields, check):
    path = getattr(settings, name)
    return jsonl.read(path, fields, check, notes) if path else []

  sft = read("sft", ("prompt", "response"), lambda r: answer_fits(r, "response"))
  pairs = read("feedback", ("prompt", "chosen", "rejected"), pair_is_usable)
  held_out = read("held_out", ("prompt", "chosen", "rejected"), pair_is_usable)
  prompts = read("prompts", ("prompt",), prompt_fits)
  test = read("test", ("prompt",), prompt_fits)
  as_prompt = lambda r: Example.prompt(r["id"], encode(r["prompt"]))
  as_pairs = lambda rows: [Pair(example(r, "chosen"), example(r, "rejected")) for r in rows]
  tokenized, tokenized_held_out = as_pairs(pairs), as_pairs(held_out)
  return Task(
    sft=[example(r, "response") for r in sft],
    feedback=lambda form, epoch: tokenized if form == "pairs" else [],
    held_out_feedback=lambda form: tokenized_held_out if form == "pairs" else [],
    attributes=(),
    prompts=[as_prompt(r) for r in prompts],
    test_prompts=[as_prompt(r) for r in test][: settings.test_prompts],
    held_out=None,
    train=None,
    judge=None,
    notes=tuple(notes),
  )
