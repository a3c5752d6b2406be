"""The labelling server: a JSON interface over a `Store`, and the pages that speak to it.

Whoever asks shows a token in the header `Authorization: Bearer …`; it is in no address, so no log holds it. The pages run
their own scripts alone, load nothing from elsewhere and cannot be framed (`HEADERS`).
"""

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from rlhf_jax.feedback import export, overview, render
from rlhf_jax.feedback.project import Item, Project, parse_judgement, steps_of, text_of, writable
from rlhf_jax.feedback.store import Annotator, Handed, Refused, Store

STATIC = Path(__file__).parent / "static"
LARGEST_BODY = 1 << 20  # bytes
LONGEST_COMMENT = 2_000  # characters
HEADERS = {
  "content-security-policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
  ),
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cache-control": "no-store",
}

Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Comment = Annotated[str, Field(max_length=LONGEST_COMMENT)]


class Body(BaseModel):
  model_config = ConfigDict(extra="forbid", strict=True)


class Judgement(Body):
  item: Name
  key: Key
  said: dict[str, Any]
  comment: Comment = ""
  client_ms: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0


class Skip(Body):
  item: Name
  key: Key
  reason: Annotated[str, Field(min_length=1, max_length=LONGEST_COMMENT)]
  flag: bool = False


class Adjudication(Body):
  item: Name
  key: Key
  said: dict[str, Any]


class Invitation(Body):
  name: Name
  days: Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] | None = None


class Person(Body):
  name: Name


def make_app(store: Store) -> FastAPI:
  """The server of `store`."""
  app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  app.add_middleware(Guarded)
  project = store.project
  description = described(project)

  @app.exception_handler(Refused)
  def refused(request: Request, error: Refused):
    return JSONResponse({"error": str(error)}, 409)

  @app.exception_handler(StarletteHTTPException)
  def failed(request: Request, error: StarletteHTTPException):
    return JSONResponse({"error": error.detail}, error.status_code)

  @app.exception_handler(RequestValidationError)
  def invalid(request: Request, error: RequestValidationError):
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where or 'body'}: {first['msg']}"}, 422)

  def somebody(request: Request) -> Annotator:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    who = store.annotator_of(token) if scheme.lower() == "bearer" and 0 < len(token) < 200 else None
    if who is None:
      raise HTTPException(
        401, "this link is unknown, taken back or out of date; ask for another one."
      )
    return who

  def annotator(who: Annotated[Annotator, Depends(somebody)]) -> Annotator:
    if who.role != "annotator":
      raise HTTPException(403, "this is an administrator's link; invite yourself as an annotator.")
    return who

  def administrator(who: Annotated[Annotator, Depends(somebody)]) -> Annotator:
    if who.role != "administrator":
      raise HTTPException(403, "only an administrator may do this.")
    return who

  Anyone = Annotated[Annotator, Depends(somebody)]
  Judging = Annotated[Annotator, Depends(annotator)]
  Running = Annotated[Annotator, Depends(administrator)]

  @app.get("/api/project")
  def read_project(who: Anyone) -> dict:
    return {"name": who.name, "role": who.role, **description}

  def answer(who: Annotator, handed: Handed | None) -> dict:
    given = None if handed is None else shown(handed, project)
    return {"item": given, "progress": store.progress(who.name)}

  @app.post("/api/next")
  def next_item(who: Judging) -> dict:
    return answer(who, store.next_item(who.name))

  @app.post("/api/judge")
  def judge(who: Judging, body: Judgement) -> dict:
    said = parsed(body.item, body.said)
    comment = checked(writable, body.comment, "comment")
    store.judge(who.name, body.item, said, key=body.key, client_ms=body.client_ms, comment=comment)
    return answer(who, store.next_item(who.name))

  @app.post("/api/skip")
  def skip(who: Judging, body: Skip) -> dict:
    reason = checked(writable, body.reason, "reason")
    store.skip(who.name, body.item, reason, key=body.key, flag=body.flag)
    return answer(who, store.next_item(who.name))

  @app.post("/api/undo")
  def undo(who: Judging) -> dict:
    back = store.undo(who.name)
    if back is None:
      raise Refused("there is nothing to take back.")
    return answer(who, back)

  @app.post("/api/admin/invite")
  def invite(who: Running, body: Invitation) -> dict:
    return {"token": store.invite(checked(writable, body.name, "name"), days=body.days)}

  @app.post("/api/admin/revoke")
  def revoke(who: Running, body: Person) -> dict:
    store.revoke(body.name)
    return {}

  @app.post("/api/admin/adjudicate")
  def adjudicate(who: Running, body: Adjudication) -> dict:
    store.adjudicate(who.name, body.item, parsed(body.item, body.said), key=body.key)
    return {}

  @app.get("/api/admin/item")
  def one_item(who: Running, id: Name) -> dict:
    item = known(id)
    handed = Handed(item, list(range(len(item.answers))), 0.0, None)
    return {"item": shown(handed, project), **overview.of_item(store, id)}

  @app.get("/api/admin/overview")
  def watch(who: Running) -> dict:
    return overview.overview(store)

  @app.get("/api/admin/export")
  def take(who: Running) -> Response:
    data, digest = export.jsonl(store)
    return Response(data, media_type="application/x-ndjson", headers={"x-content-hash": digest})

  def known(id: str) -> Item:
    item = store.item(id)
    if item is None:
      raise HTTPException(404, f"there is no item {id!r}.")
    return item

  def parsed(id: str, said: dict) -> dict:
    return checked(parse_judgement, project, known(id), said)

  @app.get("/")
  def page() -> FileResponse:
    return FileResponse(STATIC / "label.html")

  @app.get("/admin")
  def admin_page() -> FileResponse:
    return FileResponse(STATIC / "admin.html")

  app.mount("/static", StaticFiles(directory=STATIC))
  return app


def checked(function, *args):
  """What `function` gives; its ValueError becomes the answer to the request."""
  try:
    return function(*args)
  except ValueError as error:
    raise HTTPException(422, str(error)) from error


def described(project: Project) -> dict:
  """What the pages need to know of a project."""
  return {
    "title": project.title,
    "guidelines": render.markdown(project.guidelines),
    "questions": [
      {
        "name": q.name,
        "form": q.form,
        "text": q.text,
        "optional": q.optional,
        "strength": q.strength,
        "scales": [dict(scale) for scale in q.scales],
        "classes": list(q.classes),
        "categories": list(q.categories),
      }
      for q in project.questions
    ],
  }


def shown(handed: Handed, project: Project) -> dict:
  """An item as the page shows it: blind, without its id's meaning, its answers in the order they are to be shown."""
  item = handed.item
  single = {q.form for q in project.questions} & {"spans", "corrections", "steps"}
  return {
    "id": item.id,
    "prompt": render.conversation(item.prompt),
    "answers": [render.conversation(item.answers[place]["content"]) for place in handed.shown],
    "shown": handed.shown,
    "source": text_of(item.answers[0]["content"]) if single else None,
    "steps": steps_of(item, project) if "steps" in single else None,
    "said": handed.said,
  }


class Guarded:
  """Adds `HEADERS` to every answer, and refuses a body that is too large or no JSON before anything reads it."""

  def __init__(self, app):
    self.app = app

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      return await self.app(scope, receive, send)

    async def send_guarded(message):
      if message["type"] == "http.response.start":
        added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        message = {**message, "headers": [*message["headers"], *added]}
      await send(message)

    if scope["method"] not in ("POST", "PUT", "PATCH"):
      return await self.app(scope, receive, send_guarded)
    body = bytearray()
    while True:
      message = await receive()
      if message["type"] == "http.disconnect":
        return None
      body += message.get("body", b"")
      if len(body) > LARGEST_BODY:
        error = f"the request has more than {LARGEST_BODY} bytes."
        return await JSONResponse({"error": error}, 413)(scope, receive, send_guarded)
      if not message.get("more_body"):
        break
    headers = dict(scope["headers"])
    if body and not headers.get(b"content-type", b"").startswith(b"application/json"):
      error = "the request should be JSON (content-type application/json)."
      return await JSONResponse({"error": error}, 415)(scope, receive, send_guarded)
    try:
      json.loads(body or b"null")
    except (ValueError, RecursionError):
      error = "the request is not JSON that can be read."
      return await JSONResponse({"error": error}, 400)(scope, receive, send_guarded)

    sent = False

    async def whole():
      nonlocal sent
      if sent:
        return await receive()
      sent = True
      return {"type": "http.request", "body": bytes(body), "more_body": False}

    return await self.app(scope, whole, send_guarded)
