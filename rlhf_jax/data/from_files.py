"""Your own files as a task: feedback of any form, demonstrations and prompts, in the layouts of `data/feedback.py`.

`sft` holds texts, conversations or corrections; `prompts` and `test` a `prompt` a row, or `messages` that end with a
user turn. A row that is longer than `max_tokens`, or a prompt than `prompt_tokens`, is skipped and counted.
"""

from __future__ import annotations

import functools

from rlhf_jax.data import convert, encode, feedback, files
from rlhf_jax.data.examples import FORMS, Example, Record
from rlhf_jax.data.scales import Scales, by_form
from rlhf_jax.data.task import Settings, Task
from rlhf_jax.data.texts import Text

FEEDBACK = "prompt, chosen, rejected or the columns of another form of feedback (docs/feedback.md)"


def build(settings: Settings, tokenizer, *, rollout_tokens: int, seed: int) -> Task:
  notes: list[str] = []
  layout = feedback.Layout(tuple(settings.classes), settings.step_separator)

  training = _Feedback(settings, tokenizer, settings.feedback, layout, notes)
  scales = training.scales
  # Held-out feedback is of the same classes and on the same scales.
  layout = layout._replace(classes=scales.classes or layout.classes)
  held_out = _Feedback(settings, tokenizer, settings.held_out, layout, notes, scales)
  return Task(
    sft=_demonstrations(settings, tokenizer, layout, notes),
    feedback=lambda form, epoch: training.of(form),
    held_out_feedback=held_out.of,
    attributes=training.attributes or held_out.attributes,
    prompts=_prompts(settings, tokenizer, settings.prompts, notes),
    test_prompts=_prompts(settings, tokenizer, settings.test, notes)[: settings.test_prompts],
    held_out=None,
    train=None,
    judge=None,
    verifier=None,
    notes=tuple(notes),
  )


class _Feedback:
  """A file of feedback: its records by form, and as what conversion makes of them."""

  def __init__(self, settings, tokenizer, path, layout, notes, scales: Scales | None = None):
    self.tokenizer, self.example = tokenizer, _fitting(settings, tokenizer)
    parse = functools.partial(feedback.parse, layout=layout)
    records = files.read(path, self._checked(parse), FEEDBACK, notes) if path else []
    mine = Scales.of(records, layout.classes or ())
    known = mine if scales is None or not scales.attributes else scales
    self.scales = known._replace(classes=mine.classes)
    self.found = by_form(records, self.scales)
    self.reached = {form: convert.reach(self.found, form) for form in FORMS}
    self.tokenized: dict[str, list[Record]] = {}
    if path:
      notes.append(f"{path}: {self._held()}")
      notes += self._converted() if scales is None else []  # held-out feedback does as much
    lost = len(records) - sum(map(len, self.found.values()))
    if lost:
      notes.append(f"{path}: {lost} ratings are on no scale of data.feedback, and left out")

  @property
  def attributes(self) -> tuple[str, ...]:
    """Of the ratings that there are, or that classes become."""
    named = self.scales.attributes
    return named if named or not self.reached["ratings"].records else ("class",)

  def of(self, form: str) -> list[Record]:
    """Records of `form`, the file's own first."""
    if form not in self.tokenized:
      records = self.reached[form].records if form in self.reached else []
      encoded = [encode.record(self.tokenizer, record, self.example) for record in records]
      self.tokenized[form] = encoded
    return self.tokenized[form]

  def _checked(self, parse):
    """`parse` for rows all of whose answers fit."""

    def checked(row, id):
      records = parse(row, id)
      for record in records:
        for answer in record.answers:
          self.example(answer)
      return records

    return checked

  def _held(self) -> str:
    """What the file holds, and on which scales."""
    parts = [", ".join(f"{len(records)} {form}" for form, records in self.found.items())]
    parts += [self.scales.describe()] if "ratings" in self.found else []
    if "classes" in self.found:
      parts.append(f"classes from the worst: {', '.join(map(str, self.scales.classes))}")
    return ". ".join(parts)

  def _converted(self) -> list[str]:
    """What its records become where an algorithm asks for another form."""
    notes = [note for reached in self.reached.values() for note in reached.notes]
    return [f"by conversion, where an algorithm asks for it: {'; '.join(notes)}"] if notes else []


def _demonstrations(settings: Settings, tokenizer, layout, notes) -> list[Example]:
  example = _fitting(settings, tokenizer)

  def parse(row, id) -> list[Example]:
    records = feedback.parse(row, id, layout, forms=("corrections", "texts"))
    found = by_form(records, Scales())
    return [example(text) for text in convert.reach(found, "texts").records]

  expected = "prompt, response (or completion, or correction), or messages, or text"
  return files.read(settings.sft, parse, expected, notes) if settings.sft else []


def _prompts(settings: Settings, tokenizer, path: str, notes) -> list[Example]:
  def parse(row, id) -> list[Example]:
    found = encode.prompt(tokenizer, feedback.prompt(row, id))
    size = len(found.tokens)
    if size > settings.prompt_tokens:
      raise ValueError(
        f"a prompt of {size} tokens exceeds data.prompt_tokens={settings.prompt_tokens}; raise it or "
        "shorten the row"
      )
    return [found]

  return files.read(path, parse, "prompt, or messages", notes) if path else []


def _fitting(settings: Settings, tokenizer):
  """From a text to its example, made once; raises ValueError where it is longer than the limit."""
  known: dict[str, Example] = {}

  def example(text: Text) -> Example:
    if text.id not in known:
      found = encode.example(tokenizer, text)
      size, begin = len(found.tokens), found.response_mask.index(1)
      limit = f"data.max_tokens={settings.max_tokens}"
      if begin >= settings.max_tokens:
        raise ValueError(f"the prompt leaves no room to answer within {limit}")
      if size > settings.max_tokens:
        raise ValueError(f"{size} tokens exceed {limit}; raise it or shorten the row")
      known[text.id] = found
    return known[text.id]

  return example
