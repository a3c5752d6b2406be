"""A language model as annotator of comparisons: asked in both orders, and what it could not be read as is counted.

An answer that is named in both orders is the better one; one that is named by its place, first or second in both orders, is
no preference. What names neither is unread, and the question stays open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlhf_jax.feedback.project import text_of
from rlhf_jax.feedback.store import Store

TEMPLATE = """Which of two answers is better?

Prompt: {prompt}

Answer A: {first}

Answer B: {second}

Reply with A or B alone."""
NAMED = r"(?:(?:answer|option)\W{1,3}[ab]|(?-i:[AB]))"
ALONE = re.compile(r"\W*(?:(?:the )?(?:better )?(?:answer|option)\W+(?:is\W+)?)?([ab])\W*", re.I)
JOINED = re.compile(rf"\b{NAMED}\W*(?:and|or|nor|/|&|vs)\W*{NAMED}\b", re.I)
# A capital A before another word is an article, unless the word speaks of what it names.
ARTICLE = re.compile(
  r"(?<!answer )(?<!option )\ba (?!(?:is|was|has|seems|sounds|gives|provides|wins|because|since|as|over)\b)(?=[a-z])",
  re.I,
)
BETTER = re.compile(rf"\b({NAMED})\W+(?:\w+\W+){{0,2}}?(?:better|preferable|over)\b", re.I)
AGAINST = re.compile(r"\b(?:not|\w+n't|neither|worse|worst|wrong|incorrect|less)\b", re.I)


class Verdicts(NamedTuple):
  choices: list[
    str | None
  ]  # of each question: "first", "second", "tie", or None where it was not read
  unread: list[str]  # replies that say neither
  swayed: int  # questions on which it named a place and not an answer

  def summary(self) -> str:
    decided, count = sum(c in ("first", "second") for c in self.choices), len(self.choices)
    return (
      f"decided {decided} of {count} questions; {self.swayed} by place alone, "
      f"{len(self.unread)} replies of {2 * count} were not read"
    )


def read(reply: str) -> str | None:
  """A or B, the only one that the reply names, or that it says is better than the other; None where it is not clear.

  "A and B" names neither, a small "a" is a name only by itself or after "answer", and a name with "not" or "worse" in its clause
  is none that was chosen.
  """
  first = reply.strip().split("\n")[0]
  if alone := ALONE.fullmatch(first):
    return alone[1].upper()
  clauses = re.split(r"[.,;!?\n]", ARTICLE.sub(" ", JOINED.sub(" ", reply)))
  named = re.compile(rf"\b{NAMED}\b", re.I)
  naming = [clause for clause in clauses if named.search(clause)]
  if any(AGAINST.search(clause) for clause in naming):
    return None
  letters = [name[-1].upper() for clause in naming for name in named.findall(clause)]
  if len(set(letters)) == 1:
    return letters[0]
  better = BETTER.search(naming[0]) if naming else None
  return better[1][-1].upper() if better else None


def compare(
  ask: Callable[[list[str]], list[str]], questions: Sequence[tuple[str, str, str]]
) -> Verdicts:
  """What a model says of each (prompt, first answer, second answer); `ask` maps requests to replies."""
  forms = [
    TEMPLATE.format(prompt=prompt, first=a, second=b)
    for prompt, first, second in questions
    for a, b in ((first, second), (second, first))
  ]
  replies = ask(forms)
  letters = [read(reply) for reply in replies]
  choices, swayed = [], 0
  for plain, swapped in zip(letters[::2], letters[1::2], strict=True):
    if plain is None or swapped is None:
      choices.append(None)
    elif plain != swapped:  # the same answer in both orders
      choices.append("first" if plain == "A" else "second")
    else:
      choices.append("tie")
      swayed += 1
  unread = [reply for reply, letter in zip(replies, letters, strict=True) if letter is None]
  return Verdicts(choices, unread, swayed)


def label(store: Store, source: str, *, batch_size: int) -> Verdicts:
  """Asks the model `source` about every item of `store`, a project of pairs with one question, and stores what it was read as."""
  items, (question,) = store.items(), store.project.questions
  form = lambda item: (text_of(item.prompt), *(text_of(a["content"]) for a in item.answers))
  verdicts = compare(model(source, batch_size=batch_size), [form(item) for item in items])
  said = [
    (item.id, source[-100:], {question.name: {"choice": choice}})
    for item, choice in zip(items, verdicts.choices, strict=True)
    if choice is not None
  ]
  store.take_in(said, "judge")
  return verdicts


def model(source: str, *, batch_size: int, longest: int = 1024) -> Callable[[list[str]], list[str]]:
  """`ask` for the instruction-tuned model `source`, without chance; requests are cut at their beginning to `longest` tokens."""
  import jax

  from rlhf_jax.data import chat
  from rlhf_jax.models import decoder, registry
  from rlhf_jax.rollout.generate import Sampling, generate, left_pad, responses
  from rlhf_jax.weights import load

  family, params, tokenizer = load.load(source)
  language_model = registry.language_model(family, dtype="bfloat16")
  weights = decoder.cast_for_decoding(params, "bfloat16")
  settings = Sampling(max_new_tokens=8, greedy=True, stop_tokens=chat.ends(tokenizer))
  run = jax.jit(generate, static_argnums=0)

  def ask(requests: list[str]) -> list[str]:
    encoded = [
      chat.conversation_prompt(tokenizer, [{"role": "user", "content": request}])[-longest:]
      for request in requests
    ]
    width = max(map(len, encoded))
    replies = []
    for start in range(0, len(encoded), batch_size):
      part = encoded[start : start + batch_size]
      tokens, mask = left_pad(part + [part[-1]] * (batch_size - len(part)), width)
      keys = jax.random.split(jax.random.key(0), len(tokens))
      written = jax.device_get(run(language_model, weights, tokens, mask, keys, settings).sequences)
      texts = responses(written.tokens, written.response_mask)[: len(part)]
      replies += tokenizer.batch_decode(texts, skip_special_tokens=True)
    return replies

  return ask
