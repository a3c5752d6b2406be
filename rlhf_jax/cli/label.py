"""Opens a page where people compare, rank, rate, mark and correct answers; or invites them, or exports what they said.

The workdir is a project: `project.toml` says what is asked, `labels.sqlite` keeps every event. With --items and --form it is made
first; edit project.toml for several questions, guidelines, or several annotators an item. docs/labelling.md says more.

  rlhf-jax label --workdir=labels --items=items.jsonl --form=pairs
  rlhf-jax label --workdir=labels --items=items.jsonl --form=ratings --scales=helpful:1:5,kind:1:5
  rlhf-jax label --workdir=labels                                    serves it again
  rlhf-jax label invite ann --workdir=labels --days=30               a link for one annotator
  rlhf-jax label export --workdir=labels --out=feedback.jsonl        what `train --config.data.feedback=` reads
  rlhf-jax label export --workdir=labels --out=soft.jsonl --together=dawid_skene    one row an item, by reliability
  rlhf-jax label export --workdir=labels --out=tasks.json --format=label_studio
  rlhf-jax label import results.csv --workdir=labels --format=table  what a platform of crowd work gave back
  rlhf-jax label screen --workdir=labels --out=screened.csv          BLEU, chrF, TER, METEOR where items have references
  rlhf-jax label add --workdir=labels --items=more.jsonl             more items, while it is served too

An item is {"prompt": …, "answers": […]}. The page is served on this machine alone unless --host says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.cli.parser import UsageError

ACTIONS = ("serve", "invite", "add", "export", "import", "screen")
FORMATS = ("jsonl", "datasets", "argilla", "label_studio", "table")
FORMS = ("pairs", "rankings", "ratings", "classes", "marks", "spans", "corrections", "steps")
HINT = "`rlhf-jax label --help` has examples."


def add_options(parser) -> None:
  parser.add_argument("action", nargs="?", default="serve", metavar=" | ".join(ACTIONS))
  parser.add_argument(
    "name", nargs="?", metavar="NAME", help="whom to invite, or the file to import"
  )
  parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the project")
  parser.add_argument("--items", metavar="FILE.jsonl", help="prompts with answers, to be judged")
  parser.add_argument("--form", choices=FORMS, help="what is asked of each item of a new project")
  parser.add_argument("--scales", metavar="NAME:LOW:HIGH,...", help="of ratings")
  parser.add_argument("--classes", metavar="NAME,...", help="of ordered classes, the worst first")
  parser.add_argument("--categories", metavar="NAME,...", help="of marked spans")
  parser.add_argument("--overlap", type=int, metavar="N", help="annotators an item; 1 unless said")
  parser.add_argument("--database", metavar="URL", help="of SQLAlchemy; labels.sqlite unless said")
  parser.add_argument("--host", default="127.0.0.1", help="address to serve on; this machine alone")
  parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000 unless said")
  parser.add_argument("--days", type=float, metavar="N", help="until an invitation ends")
  parser.add_argument("--out", metavar="FILE", help="where `export` writes; a folder for datasets")
  parser.add_argument("--format", choices=FORMATS, default="jsonl", help="jsonl unless said")
  parser.add_argument(
    "--together", choices=("dawid_skene", "majority"), help="one row an item, of all its judgements"
  )


def run(args) -> None:
  from rlhf_jax.config import suggest

  if args.action not in ACTIONS:
    raise UsageError(f"{args.action!r} is not an action{suggest(args.action, ACTIONS)}", HINT)
  if args.form and args.action != "serve":
    raise UsageError("--form makes a project that is then served; leave the action out.", HINT)
  try:
    from rlhf_jax.feedback import project, store
  except ImportError as error:
    raise ImportError(f"{error}; pip install 'rlhf_jax[label]'") from error
  workdir = Path(args.workdir)
  if args.form:
    questions = dict(scales=args.scales, classes=args.classes, categories=args.categories)
    project.create(workdir, args.form, overlap=args.overlap or 1, **questions)
  found = project.read(workdir)
  url = args.database or f"sqlite:///{(workdir / 'labels.sqlite').resolve()}"
  opened = store.Store(url, found)
  try:
    if args.items:
      items = project.items(Path(args.items), found)
      added = opened.add_items(items)
      print(f"{args.items}: {added} new items of {len(items)}", flush=True)
    actions = {
      "serve": serve,
      "invite": _invite,
      "add": _add,
      "export": _export,
      "import": _import,
      "screen": _screen,
    }
    actions[args.action](args, opened)
  except store.Refused as error:
    raise ValueError(str(error)) from error
  finally:
    opened.close()


def serve(args, store) -> None:
  """Serves `store` until it is stopped; needs args.host, port and days."""
  import uvicorn

  from rlhf_jax.feedback.app import make_app

  if not store.items():
    raise ValueError("there is nothing to judge yet; give --items=FILE.jsonl.")
  print(f"administrator: {_link(args, store.invite('administrator', 'administrator'), '/admin')}")
  print(f"annotator:     {_link(args, store.invite('me', days=args.days), '/')}")
  print(
    "others: rlhf-jax label invite NAME, or the administrator's page. Ctrl-C stops.", flush=True
  )
  uvicorn.run(
    make_app(store), host=args.host, port=args.port, access_log=False, log_level="warning"
  )


def _invite(args, store) -> None:
  if not args.name:
    raise UsageError("give the annotator's name: rlhf-jax label invite NAME --workdir=DIR.", HINT)
  print(_link(args, store.invite(args.name, days=args.days), "/"))


def _export(args, store) -> None:
  from rlhf_jax.feedback import export, formats, reliability
  from rlhf_jax.training import disk

  if not args.out:
    raise UsageError("export needs --out=FILE.", HINT)
  if args.together and args.format not in ("jsonl", "datasets"):
    raise UsageError("--together makes rows to train on; leave --format out.", HINT)
  out, found = Path(args.out), export.judgements(store)
  if args.format in ("jsonl", "datasets"):
    rows = export.rows(store)
    if args.together:
      rows = reliability.soft_rows(found, store.project, args.together)
    data, digest = export.as_jsonl(rows)
    if args.format == "datasets":
      export.as_dataset(rows).save_to_disk(out)
    else:
      disk.replace(out, data.decode())
    print(f"{out}: {len(rows)} rows, sha256 {digest}")
    return
  text = {
    "argilla": lambda: json.dumps(formats.to_argilla(found, store.project), indent=1),
    "label_studio": lambda: json.dumps(formats.to_label_studio(found, store.project), indent=1),
    "table": lambda: formats.to_table(store.items()),
  }[args.format]()
  disk.replace(out, text)
  what = f"{len(store.items())} items" if args.format == "table" else f"{len(found)} judgements"
  print(f"{out}: {what}")


def _import(args, store) -> None:
  from rlhf_jax.feedback import formats

  if not args.name or args.format not in ("argilla", "label_studio", "table"):
    raise UsageError("import needs a FILE and --format=argilla, label_studio or table.", HINT)
  path = Path(args.name)
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file; give what the other tool exported.")
  text = path.read_text(encoding="utf-8-sig")
  try:
    read = {"argilla": formats.from_argilla, "label_studio": formats.from_label_studio}
    if args.format == "table":
      found = formats.from_table(text, store.project)
    else:
      found = read[args.format](json.loads(text), store.project)
    items = {item.id: item for item in store.items()}
    found = formats.checked(found, items, store.project)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    problem = f"there is no {error}" if isinstance(error, KeyError) else error
    raise ValueError(f"{path}: {problem}") from error
  print(f"{path}: {store.take_in(found, path.name)} new judgements of {len(found)}")


def _screen(args, store) -> None:
  import csv
  import io

  from rlhf_jax.feedback import screening
  from rlhf_jax.training import disk

  if not args.out:
    raise UsageError("screen needs --out=FILE.csv.", HINT)
  rows = screening.screen(store)
  if not rows:
    raise ValueError("no item has references, so there is nothing to compare with.")
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  disk.replace(Path(args.out), text.getvalue())
  print(f"{args.out}: {len(rows)} texts, the farthest from its references first")


def _add(args, store) -> None:
  if not args.items:
    raise UsageError("add needs --items=FILE.jsonl.", HINT)


def _link(args, token: str, path: str) -> str:
  """The token stands after #, which browsers do not send: no log of a server or a proxy holds it."""
  host = f"[{args.host}]" if ":" in args.host else args.host
  return f"http://{host}:{args.port}{path}#{token}"
