"""Opens a page where people compare, rank, rate, mark and correct answers; or invites them, or exports what they said.

The workdir is a project: `project.toml` says what is asked, `labels.sqlite` keeps every event. With --items and --form it is made
first; edit project.toml for several questions, guidelines, or several annotators an item. docs/labelling.md says more.

  rlhf-jax label --workdir=labels --items=items.jsonl --form=pairs
  rlhf-jax label --workdir=labels --items=items.jsonl --form=ratings --scales=helpful:1:5,kind:1:5
  rlhf-jax label --workdir=labels                                    serves it again
  rlhf-jax label invite ann --workdir=labels --days=30               a link for one annotator
  rlhf-jax label export --workdir=labels --out=feedback.jsonl        what `train --config.data.feedback=` reads
  rlhf-jax label add --workdir=labels --items=more.jsonl             more items, while it is served too

An item is {"prompt": …, "answers": […]}. The page is served on this machine alone unless --host says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_jax.cli.parser import UsageError

ACTIONS = ("serve", "invite", "export", "add")
FORMS = ("pairs", "rankings", "ratings", "classes", "marks", "spans", "corrections", "steps")
HINT = "`rlhf-jax label --help` has examples."


def add_options(parser) -> None:
  parser.add_argument("action", nargs="?", default="serve", metavar="serve | invite | export | add")
  parser.add_argument("name", nargs="?", metavar="NAME", help="of the annotator to invite")
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
  parser.add_argument("--out", metavar="FILE.jsonl", help="where `export` writes")


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
    {"serve": _serve, "invite": _invite, "export": _export, "add": _add}[args.action](args, opened)
  except store.Refused as error:
    raise ValueError(str(error)) from error
  finally:
    opened.close()


def _serve(args, store) -> None:
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
  from rlhf_jax.feedback import export
  from rlhf_jax.training import disk

  if not args.out:
    raise UsageError("export needs --out=FILE.jsonl.", HINT)
  data, digest = export.jsonl(store)
  disk.replace(Path(args.out), data.decode())
  print(f"{args.out}: {data.count(10)} rows, sha256 {digest}")


def _add(args, store) -> None:
  if not args.items:
    raise UsageError("add needs --items=FILE.jsonl.", HINT)


def _link(args, token: str, path: str) -> str:
  """The token stands after #, which browsers do not send: no log of a server or a proxy holds it."""
  host = f"[{args.host}]" if ":" in args.host else args.host
  return f"http://{host}:{args.port}{path}#{token}"
