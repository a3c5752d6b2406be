"""What a file of feedback holds, as a page of text: forms, labels, lengths, people, contradictions, problems, masks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data import convert, encode, feedback, files
from rlhf_jax.data.examples import FORMS, Example, Labelled, Pair, Ranking, TokenLabelled
from rlhf_jax.data.scales import FORM_OF, Scales, by_form
from rlhf_jax.data.texts import Classed, Rated, Spanned, Stepped

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LISTED = 10  # of problems, contradictions and values

Mark = Callable[[str], str]  # how tokens under the mask are set off


class Inspected(NamedTuple):
  """A file's usable records, and what each answer is as tokens."""

  rows: int
  problems: list[str]
  records: list
  examples: dict[str, Example]  # by the id of their text
  classes: tuple[str | int, ...]  # their order, as far as it was given


def inspect(path: str, tokenizer, layout: feedback.Layout) -> Inspected:
  """Reads all of `path`; a row that can not be tokenized is a problem too."""
  examples: dict[str, Example] = {}

  def parse(row, id) -> list:
    records = feedback.parse(row, id, layout)
    for record in records:
      for answer in record.answers:
        examples[answer.id] = encode.example(tokenizer, answer)
    return records

  found = files.load(path, parse)
  return Inspected(found.count, found.problems, found.items, examples, layout.classes or ())


def report(
  path: str, found: Inspected, tokenizer, *, max_tokens: int, show: int, mark: Mark
) -> str:
  """The page; `max_tokens` 0 is no limit, `show` the rows to print with what their masks select."""
  usable = f"{path}: {found.rows} rows, {len(found.problems)} of them not usable"
  sections = [
    ("forms", _forms(found.records)),
    ("labels", _labels(found.records)),
    ("tokens", _lengths(found, max_tokens)),
    ("annotators", _annotators(found.records)),
    ("repeated", _repeated(found.records)),
    ("problems", _listed(found.problems)),
    ("conversion", _conversions(found)),
    ("masks", _masks(found, tokenizer, show, mark)),
  ]
  blocks = [
    "\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in sections if lines
  ]
  return "\n\n".join([usable, *blocks])


def _forms(records: Sequence) -> list[str]:
  counts = Counter(FORM_OF[type(record)] for record in records)
  return [f"{form:<12} {count}" for form, count in counts.most_common()]


def _labels(records: Sequence) -> list[str]:
  """Of each form how its labels are spread."""
  of = lambda kind: [record for record in records if isinstance(record, kind)]
  lines = []
  if pairs := of(Pair):
    ties = sum(pair.preference == convert.TIE for pair in pairs)
    lines.append(f"pairs        {_share(ties, len(pairs))} ties")
    lines += _spread("preference", [pair.preference for pair in pairs])
    if any(pair.margin for pair in pairs):
      lines += _spread("margin", [pair.margin for pair in pairs])
  if rankings := of(Ranking):
    lines += _spread("answers", [sum(rank > 0 for rank in r.ranks) for r in rankings], "rankings")
    lines += _spread("rank", [rank for ranking in rankings for rank in ranking.ranks])
    tied = sum(len(set(_ranked(r))) < len(_ranked(r)) for r in rankings)
    open_ = sum(0 in r.ranks for r in rankings)
    lines.append(
      f"rankings     {_share(tied, len(rankings))} with ties, {_share(open_, len(rankings))} with "
      "unranked answers"
    )
  if rated := of(Rated):
    for name in dict.fromkeys(name for record in rated for name in record.ratings):
      values = [record.ratings[name] for record in rated if name in record.ratings]
      lines.append(f"ratings      {name}: mean {np.mean(values):.4g}, std {np.std(values):.4g}")
      lines += _spread(name, values)
  if classed := of(Classed):
    lines += _spread("class", [record.value for record in classed], "classes")
  if marks := of(Labelled):
    right = sum(record.labels[0] == 1 for record in marks)
    lines.append(f"marks        {_share(right, len(marks))} right")
  if spanned := of(Spanned):
    clean = sum(not record.spans for record in spanned)
    lines.append(f"tokens       {_share(clean, len(spanned))} of answers without a marked span")
  if stepped := of(Stepped):
    labels = [label for record in stepped for label in record.labels if not math.isnan(label)]
    lines.append(
      f"tokens       {_share(sum(label > 0.5 for label in labels), len(labels))} of steps right"
    )
  return lines


def _spread(name: str, values: Sequence, form: str = "") -> list[str]:
  """How often each value occurs, or quantiles where there are many."""
  counts = Counter(values)
  if len(counts) <= LISTED:
    if all(isinstance(value, int | float) for value in counts):
      counts = dict(sorted(counts.items()))
    each = ", ".join(f"{_plain(value)}: {count}" for value, count in counts.items())
  else:
    numbers = [value for value in values if isinstance(value, int | float)]
    each = _quantiles(numbers) if numbers else f"{len(counts)} different ones"
  return [f"{form:<12} {name}  {each}"]


def _lengths(found: Inspected, max_tokens: int) -> list[str]:
  examples = list(found.examples.values())
  if not examples:
    return []
  prompts = [example.response_mask.index(1) for example in examples]
  whole = [len(example.tokens) for example in examples]
  masked = [sum(example.response_mask) for example in examples]
  lines = [
    f"{name:<12} {_quantiles(sizes)}"
    for name, sizes in (("prompt", prompts), ("learnt from", masked), ("whole", whole))
  ]
  if max_tokens:
    over = sum(size > max_tokens for size in whole)
    lines.append(f"{_share(over, len(whole))} of answers exceed {max_tokens} tokens")
  return lines


def _annotators(records: Sequence) -> list[str]:
  counts = Counter(getattr(record, "annotator", "") for record in records)
  if set(counts) <= {""}:
    return []
  named = [f"{name or '(not named)'}: {count}" for name, count in counts.most_common(LISTED)]
  more = f", and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
  return [", ".join(named) + more]


def _repeated(records: Sequence) -> list[str]:
  """Records of the same prompt and answers, and those among them that say the opposite."""
  same = defaultdict(list)
  for record in records:
    same[type(record), frozenset(answer.key for answer in record.answers)].append(record)
  groups = [group for group in same.values() if len(group) > 1]
  if not groups:
    return []
  extra = sum(len(group) - 1 for group in groups)
  lines = [f"{extra} records repeat the prompt and the answers of another"]
  contrary = [clash for group in groups if (clash := _contradiction(group))]
  if contrary:
    lines.append(f"{len(contrary)} of them contradict it:")
    lines += _listed([f"{_place(a)} says otherwise than {_place(b)}" for b, a in contrary])
  return lines


def _contradiction(group: Sequence) -> tuple | None:
  """The first of a group, and the first after it that prefers another answer or has another label."""
  said = {
    Pair: lambda r: None if r.preference == convert.TIE else r.chosen.key,
    Labelled: lambda r: r.labels,
    Classed: lambda r: r.value,
  }.get(type(group[0]))
  if said is None:
    return None
  decided = [record for record in group if said(record) is not None]
  return next(((decided[0], r) for r in decided[1:] if said(r) != said(decided[0])), None)


def _conversions(found: Inspected) -> list[str]:
  """What the records convert to, which of classes takes their order to know."""
  scales = Scales.of(found.records, found.classes)
  records = by_form(found.records, scales)
  unordered = not found.classes and any(isinstance(name, str) for name in scales.classes)
  if unordered:
    del records["classes"]
  notes = [note for form in FORMS for note in convert.reach(records, form).notes]
  return [*notes, *(["classes: give their order with --classes=WORST,...,BEST"] * unordered)]


def _masks(found: Inspected, tokenizer, show: int, mark: Mark) -> list[str]:
  """The first `show` records, an answer a line, the tokens under its mask set off."""
  lines = []
  for record in found.records[:show]:
    for answer in record.answers:
      example = found.examples[answer.id]
      lines.append(f"{answer.id}  {marked(tokenizer, example, mark)}")
    if isinstance(record, Spanned | Stepped):
      labels = encode.token_labels(tokenizer, record, found.examples[record.answer.id])
      lines.append(f"  labels  {labelled(tokenizer, TokenLabelled(example, labels))}")
  return lines


def marked(tokenizer, example: Example, mark: Mark) -> str:
  """The text of an example, each run of tokens under the mask set off; line breaks as \\n."""
  runs: list[tuple[int, list[int]]] = []
  for token, inside in zip(example.tokens, example.response_mask, strict=True):
    if not runs or runs[-1][0] != inside:
      runs.append((inside, []))
    runs[-1][1].append(token)
  texts = ((inside, tokenizer.decode(tokens).replace("\n", "\\n")) for inside, tokens in runs)
  return "".join(mark(text) if inside else text for inside, text in texts)


def labelled(tokenizer, record: TokenLabelled) -> str:
  """The tokens whose label is not 1, or which stand alone with theirs, each with it."""
  sparse = sum(not math.isnan(label) for label in record.labels) < sum(record.answer.response_mask)
  shown = [
    f"{tokenizer.decode([token])!r} {label:g}"
    for token, label in zip(record.answer.tokens, record.labels, strict=True)
    if not math.isnan(label) and (sparse or label != 1)
  ]
  return ", ".join(shown) or "all 1"


def _listed(lines: Sequence[str]) -> list[str]:
  more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
  return [*lines[:LISTED], *more]


def _ranked(ranking: Ranking) -> list[int]:
  return [rank for rank in ranking.ranks if rank > 0]


def _place(record) -> str:
  return record.answers[0].id.split("#")[0]


def _share(part: int, whole: int) -> str:
  return f"{part} of {whole} ({part / whole:.1%})" if whole else "0"


def _quantiles(values: Sequence[float]) -> str:
  cuts = np.quantile(values, QUANTILES)
  return "  ".join(
    f"{'min' if q == 0 else 'max' if q == 1 else f'{q:.0%}'} {cut:.4g}"
    for q, cut in zip(QUANTILES, cuts, strict=True)
  )


def _plain(value) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)
