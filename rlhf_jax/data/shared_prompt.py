"""The prompt that two whole texts or conversations share, where no column holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

TURN = "\n\nAssistant:"  # how written dialogues mark where an answer begins


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
  """(prompt, the rest of `chosen`, the rest of `rejected`), which concatenate to the two texts again.

  The prompt ends after the last shared "\\n\\nAssistant:", or else where the last shared word does: no
  word is split, and a blank before the answers is theirs, as tokenizers join it to the word behind;
  a line break is the prompt's. Something remains of both, also where one text begins the other.
  Raises ValueError for a text that ends where its answer should begin.
  """
  for field, text in (("chosen", chosen), ("rejected", rejected)):
    if text.rstrip().endswith(TURN):
      raise ValueError(f"field {field!r} has no answer after its last 'Assistant:'")
  most = min(len(chosen.rstrip()), len(rejected.rstrip())) - 1
  size = 0
  while size < most and chosen[size] == rejected[size]:
    size += 1
  shared = chosen[:size]
  if TURN in shared:
    cut = shared.rindex(TURN) + len(TURN)
  else:
    blanks = list(re.finditer(r"\s", shared))
    last = blanks[-1] if blanks else None
    cut = 0 if last is None else last.end() if last[0] == "\n" else last.start()
  return chosen[:cut], chosen[cut:], rejected[cut:]


def split_turns(chosen: Sequence[Mapping], rejected: Sequence[Mapping]) -> tuple[tuple, ...]:
  """(prompt, the rest of `chosen`, the rest of `rejected`): the turns they share, and those after them.

  Something remains of both. Where one conversation goes on after the other's end, the answers begin
  with the last assistant turn that both can begin with.
  """
  most = min(len(chosen), len(rejected)) - 1
  size = 0
  while size < most and chosen[size] == rejected[size]:
    size += 1
  if chosen[size] == rejected[size]:
    while size > 0 and chosen[size]["role"] != "assistant":
      size -= 1
  return tuple(chosen[:size]), tuple(chosen[size:]), tuple(rejected[size:])
