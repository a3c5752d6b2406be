"""The store of feedback: events that are only ever added to, and the little state that is derived from them.

`events` holds everything that happened and nothing in it is changed or removed: an undo is an event, and so is a correction of a
judgement, which is a later one. `assignments` says who holds or has judged which item; it can be made again from the
events (`Store.rebuild`). One writer at a time, so that an item is never handed out once too often.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from rlhf_jax.feedback.project import Item, Project

META = sa.MetaData()
ITEMS = sa.Table(
  "items",
  META,
  sa.Column("id", sa.String, primary_key=True),
  sa.Column("place", sa.Integer),
  sa.Column("is_check", sa.Boolean),  # its judgement is known
  sa.Column("content", sa.Text),  # JSON of an `Item`
)
ANNOTATORS = sa.Table(
  "annotators", META, sa.Column("name", sa.String, primary_key=True), sa.Column("role", sa.String)
)
TOKENS = sa.Table(
  "tokens",
  META,
  sa.Column("hash", sa.String, primary_key=True),  # SHA-256; the token itself is nowhere
  sa.Column("annotator", sa.String),
  sa.Column("expires", sa.Float),  # Unix seconds; null never
)
EVENTS = sa.Table(
  "events",
  META,
  sa.Column("id", sa.Integer, primary_key=True),
  sa.Column("at", sa.Float),  # Unix seconds
  sa.Column("kind", sa.String),
  sa.Column("annotator", sa.String),
  sa.Column("item", sa.String),
  sa.Column("key", sa.String),  # of the request, so that one sent twice is stored once
  sa.Column("payload", sa.Text),  # JSON
)
ASSIGNMENTS = sa.Table(
  "assignments",
  META,
  sa.Column("item", sa.String, primary_key=True),
  sa.Column("annotator", sa.String, primary_key=True),
  sa.Column("status", sa.String),  # leased, judged, skipped
  sa.Column("until", sa.Float),  # of a lease
  sa.Column("shown", sa.Text),  # JSON: the answers' places in the order they are shown
  sa.Column("event", sa.Integer),  # the judgement or the skip that counts
)
ROLES = ("annotator", "administrator")
SAYING = (
  "judged",
  "skipped",
  "flagged",
)  # kinds of event by which an annotator is done with an item


class Event(NamedTuple):
  id: int
  at: float
  kind: str
  annotator: str | None
  item: str | None
  payload: dict


class Annotator(NamedTuple):
  name: str
  role: str


class Handed(NamedTuple):
  """An item in an annotator's hands."""

  item: Item
  shown: list[int]  # the answers' places, in the order they are shown
  until: float
  said: dict | None  # what the annotator had said before an undo


class Refused(Exception):
  """What was asked cannot be done now; the text says why, for the person who asked."""


class Store:
  """Feedback in any database that SQLAlchemy speaks to; SQLite and PostgreSQL are tested."""

  def __init__(self, url: str, project: Project, *, clock=time.time):
    self.project, self.clock, self.turn = project, clock, threading.Lock()
    self.engine = sa.create_engine(url, **_engine_options(url))
    if self.engine.dialect.name == "sqlite":
      sa.event.listen(self.engine, "connect", _sqlite_connection)
      sa.event.listen(self.engine, "begin", _sqlite_begin)
    self._migrate()

  def close(self) -> None:
    self.engine.dispose()

  # Items and people.

  def add_items(self, items: Sequence[Item]) -> int:
    """Adds the items that are not there yet; how many those were. Raises Refused for an id with other content."""
    with self._writing() as db:
      known = {row.id: row.content for row in db.execute(sa.select(ITEMS.c.id, ITEMS.c.content))}
      new = []
      for item in items:
        content = _dump(item.as_json())
        if item.id not in known:
          new.append((item, content))
        elif known[item.id] != content:
          raise Refused(
            f"item {item.id!r} is in the store with other content; give the new one another id."
          )
      for place, (item, content) in enumerate(new, start=len(known)):
        row = dict(id=item.id, place=place, is_check=item.known is not None, content=content)
        db.execute(ITEMS.insert().values(**row))
        self._add(db, "item_added", item=item.id, payload={"digest": _sha(content)})
      return len(new)

  def items(self) -> list[Item]:
    with self._reading() as db:
      return [_item(row.content) for row in db.execute(sa.select(ITEMS).order_by(ITEMS.c.place))]

  def invite(self, name: str, role: str = "annotator", *, days: float | None = None) -> str:
    """A new token for `name`, who may have others; the only time that it is seen."""
    if role not in ROLES:
      raise Refused(f"role {role!r} is none of {', '.join(ROLES)}.")
    if not name or len(name) > 100 or not name.isprintable():
      raise Refused("a name should have 1 to 100 printable characters.")
    token = secrets.token_urlsafe(32)
    with self._writing() as db:
      known = db.execute(sa.select(ANNOTATORS).where(ANNOTATORS.c.name == name)).first()
      if known is None:
        db.execute(ANNOTATORS.insert().values(name=name, role=role))
      elif known.role != role:
        raise Refused(f"{name!r} is known as {known.role}; choose another name.")
      expires = None if days is None else self.clock() + days * 86_400
      db.execute(TOKENS.insert().values(hash=_sha(token), annotator=name, expires=expires))
      self._add(db, "invited", annotator=name, payload={"role": role, "expires": expires})
    return token

  def revoke(self, name: str) -> None:
    """Takes all of a person's tokens away; what they said stays. Raises Refused for a name that nobody has."""
    with self._writing() as db:
      if db.execute(sa.select(ANNOTATORS).where(ANNOTATORS.c.name == name)).first() is None:
        raise Refused(f"nobody is called {name!r}.")
      db.execute(TOKENS.delete().where(TOKENS.c.annotator == name))
      self._add(db, "revoked", annotator=name)

  def annotator_of(self, token: str) -> Annotator | None:
    """Whose token it is; None for one that is unknown, taken away or out of date."""
    query = (
      sa.select(ANNOTATORS, TOKENS.c.expires)
      .join(TOKENS, TOKENS.c.annotator == ANNOTATORS.c.name)
      .where(TOKENS.c.hash == _sha(token))
    )
    with self._reading() as db:
      row = db.execute(query).first()
    if row is None or (row.expires is not None and row.expires <= self.clock()):
      return None
    return Annotator(row.name, row.role)

  def annotators(self) -> list[Annotator]:
    with self._reading() as db:
      return [
        Annotator(*row) for row in db.execute(sa.select(ANNOTATORS).order_by(ANNOTATORS.c.name))
      ]

  # Judging.

  def next_item(self, annotator: str) -> Handed | None:
    """The item that `annotator` holds, or else another one to judge, which is theirs until the lease ends.

    None where nothing is left for them. Items go out in their order, those that were begun first, and every
    `check_every`-th is a check item, while there are any they have not seen.
    """
    with self._writing() as db:
      now = self.clock()
      held = db.execute(
        sa.select(ASSIGNMENTS)
        .where(ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.status == "leased")
        .order_by(ASSIGNMENTS.c.until.desc())
      ).all()
      for row in held:
        if row.until > now or self._room(db, row.item, annotator, now):
          return self._lease(db, annotator, row.item, now)
      item = self._choose(db, annotator, now)
      return None if item is None else self._lease(db, annotator, item, now)

  def judge(
    self,
    annotator: str,
    item: str,
    said: dict,
    *,
    key: str,
    client_ms: float = 0.0,
    comment: str = "",
  ) -> None:
    """Stores what `annotator` says of `item`, a judgement of `project.parse_judgement`.

    The same `key` again changes nothing. A later judgement of the same item stands in place of the earlier one.
    Raises Refused where the item was never theirs, or went to others when their lease ended.
    """
    payload = {"said": said, "client_ms": client_ms, "comment": comment}
    self._say(annotator, item, "judged", key, payload)

  def skip(self, annotator: str, item: str, reason: str, *, key: str, flag: bool = False) -> None:
    """Leaves an item to others; with `flag` it is also one that the administrator should look at."""
    self._say(annotator, item, "flagged" if flag else "skipped", key, {"reason": reason})

  def undo(self, annotator: str) -> Handed | None:
    """Takes back the last thing that `annotator` said, and puts that item back into their hands; None at the beginning."""
    with self._writing() as db:
      last = db.execute(
        sa.select(ASSIGNMENTS)
        .where(ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.event.is_not(None))
        .order_by(ASSIGNMENTS.c.event.desc())
        .limit(1)
      ).first()
      if last is None:
        return None
      self._add(db, "undone", annotator=annotator, item=last.item, payload={"event": last.event})
      self._assign(db, annotator, last.item, status="leased", event=None)
      return self._lease(db, annotator, last.item, self.clock(), again=last.event)

  def adjudicate(self, administrator: str, item: str, said: dict, *, key: str) -> None:
    """The administrator's last word on an item, which stands in place of all judgements of it in an export."""
    with self._writing() as db:
      if db.execute(sa.select(ITEMS.c.id).where(ITEMS.c.id == item)).first() is None:
        raise Refused(f"there is no item {item!r}.")
      if not self._known(db, key, administrator):
        self._add(
          db, "adjudicated", annotator=administrator, item=item, key=key, payload={"said": said}
        )

  def take_in(self, found: Sequence, source: str) -> int:
    """Adds judgements that were made elsewhere, each with `item`, `annotator` and `said`; how many are new.

    The same judgement again changes nothing, and another one by the same person on the same item stands in place of
    the earlier. Overlap is not asked.
    """
    new = 0
    with self._writing() as db:
      known = {row.name for row in db.execute(sa.select(ANNOTATORS.c.name))}
      for item, annotator, said in found:
        if annotator not in known:
          db.execute(ANNOTATORS.insert().values(name=annotator, role="annotator"))
          known.add(annotator)
        key = _sha(_dump([source, item, annotator, said]))[:32]
        if self._known(db, key, annotator):
          continue
        count = len(
          _item(
            db.execute(sa.select(ITEMS.c.content).where(ITEMS.c.id == item)).scalar_one()
          ).answers
        )
        shown = list(range(count))
        payload = {"said": said, "client_ms": 0.0, "comment": "", "source": source}
        payload["shown"] = shown
        if _where(db, annotator=annotator, item=item) is None:
          row = dict(status="judged", until=0.0, shown=_dump(shown), event=None)
          db.execute(ASSIGNMENTS.insert().values(item=item, annotator=annotator, **row))
          self._add(
            db, "leased", annotator=annotator, item=item, payload={"shown": shown, "until": 0.0}
          )
        event = self._add(db, "judged", annotator=annotator, item=item, key=key, payload=payload)
        self._assign(db, annotator, item, status="judged", event=event)
        new += 1
    return new

  # Reading.

  def progress(self, annotator: str) -> dict[str, int]:
    """How many items `annotator` is done with, and how many are left for them."""
    with self._reading() as db:
      done = sa.select(sa.func.count()).where(
        ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.event.is_not(None)
      )
      now = self.clock()
      left = sa.select(sa.func.count()).select_from(self._open(annotator, now).subquery())
      return {"done": db.execute(done).scalar_one(), "left": db.execute(left).scalar_one()}

  def item(self, id: str) -> Item | None:
    with self._reading() as db:
      row = db.execute(sa.select(ITEMS.c.content).where(ITEMS.c.id == id)).first()
    return None if row is None else _item(row.content)

  def events(self, after: int = 0) -> list[Event]:
    """All events in order, from the one after `after`."""
    with self._reading() as db:
      rows = db.execute(sa.select(EVENTS).where(EVENTS.c.id > after).order_by(EVENTS.c.id))
      return [_event(row) for row in rows]

  def rebuild(self) -> None:
    """Makes `assignments` again from the events."""
    with self._writing() as db:
      db.execute(ASSIGNMENTS.delete())
      rows = db.execute(sa.select(EVENTS).order_by(EVENTS.c.id)).all()
      for event in map(_event, rows):
        key = dict(annotator=event.annotator, item=event.item)
        if event.kind == "leased":
          held = _where(db, **key)
          new = dict(until=event.payload["until"], shown=_dump(event.payload["shown"]))
          if held is None:
            db.execute(ASSIGNMENTS.insert().values(**key, status="leased", event=None, **new))
          else:
            self._assign(db, **key, **new)
        elif event.kind in SAYING:
          status = "judged" if event.kind == "judged" else "skipped"
          self._assign(db, **key, status=status, event=event.id)
        elif event.kind == "undone":
          self._assign(db, **key, status="leased", event=None)

  # Below, `db` is a connection within a transaction.

  def _say(self, annotator: str, item: str, kind: str, key: str, payload: dict) -> None:
    with self._writing() as db:
      if self._known(db, key, annotator):
        return
      held, now = _where(db, annotator=annotator, item=item), self.clock()
      if held is None:
        raise Refused("this item was not given to you.")
      late = held.status == "leased" and held.until <= now
      if kind == "judged" and (late or held.status == "skipped"):
        if not self._room(db, item, annotator, now):
          raise Refused("your time for this item ended, and others have judged it since.")
      payload = {**payload, "shown": json.loads(held.shown)}
      event = self._add(db, kind, annotator=annotator, item=item, key=key, payload=payload)
      status = "judged" if kind == "judged" else "skipped"
      self._assign(db, annotator, item, status=status, event=event)

  def _lease(self, db, annotator: str, item: str, now: float, again: int | None = None) -> Handed:
    """`item` in the hands of `annotator`; the lease begins anew whenever it is asked for."""
    held = _where(db, annotator=annotator, item=item)
    content = _item(db.execute(sa.select(ITEMS.c.content).where(ITEMS.c.id == item)).scalar_one())
    until = now + self.project.lease_seconds
    if held is None:
      shown = list(range(len(content.answers)))
      random.Random(_sha(f"{annotator}\n{item}")).shuffle(shown)
      row = dict(status="leased", until=until, shown=_dump(shown), event=None)
      db.execute(ASSIGNMENTS.insert().values(item=item, annotator=annotator, **row))
    else:
      shown = json.loads(held.shown)
      self._assign(db, annotator, item, until=until)
    self._add(
      db, "leased", annotator=annotator, item=item, payload={"shown": shown, "until": until}
    )
    said = None
    if again is not None:
      row = db.execute(sa.select(EVENTS.c.payload).where(EVENTS.c.id == again)).first()
      said = json.loads(row.payload).get("said")
    return Handed(content, shown, until, said)

  def _choose(self, db, annotator: str, now: float) -> str | None:
    """The next item for `annotator`, among those that they may have."""
    mine = sa.select(sa.func.count()).where(ASSIGNMENTS.c.annotator == annotator)
    count = db.execute(mine).scalar_one()
    every = self.project.check_every
    is_check = bool(every) and (count + 1) % every == 0
    for wanted in (is_check, not is_check) if every else (False,):
      query = self._open(annotator, now).where(ITEMS.c.is_check == wanted)
      row = db.execute(query.order_by(sa.desc("taken"), ITEMS.c.place).limit(1)).first()
      if row is not None:
        return row.id
    return None

  def _open(self, annotator: str, now: float):
    """The items that `annotator` has not seen and that fewer than `overlap` others hold or have judged."""
    taken = (
      sa.select(sa.func.count())
      .where(ASSIGNMENTS.c.item == ITEMS.c.id, self._counts(now))
      .scalar_subquery()
    )
    seen = sa.exists().where(ASSIGNMENTS.c.item == ITEMS.c.id, ASSIGNMENTS.c.annotator == annotator)
    room = sa.or_(ITEMS.c.is_check, taken < self.project.overlap)
    checks = sa.true() if self.project.check_every else sa.not_(ITEMS.c.is_check)
    return sa.select(ITEMS.c.id, taken.label("taken")).where(~seen, room, checks)

  def _room(self, db, item: str, annotator: str, now: float) -> bool:
    """Whether `annotator` may judge `item` beside the others who hold or have judged it."""
    if db.execute(sa.select(ITEMS.c.is_check).where(ITEMS.c.id == item)).scalar_one():
      return True
    others = sa.select(sa.func.count()).where(
      ASSIGNMENTS.c.item == item, ASSIGNMENTS.c.annotator != annotator, self._counts(now)
    )
    return db.execute(others).scalar_one() < self.project.overlap

  def _counts(self, now: float):
    """Whether an assignment takes one of its item's places."""
    live = sa.and_(ASSIGNMENTS.c.status == "leased", ASSIGNMENTS.c.until > now)
    return sa.or_(ASSIGNMENTS.c.status == "judged", live)

  def _known(self, db, key: str, annotator: str) -> bool:
    """Whether the request was stored before. Raises Refused where another person's has the key."""
    row = db.execute(sa.select(EVENTS.c.annotator).where(EVENTS.c.key == key)).first()
    if row is not None and row.annotator != annotator:
      raise Refused("that request's key was used by somebody else; reload the page.")
    return row is not None

  def _assign(self, db, annotator: str, item: str, **values) -> None:
    mine = (ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.item == item)
    db.execute(ASSIGNMENTS.update().where(*mine).values(**values))

  def _add(self, db, kind, *, annotator=None, item=None, key=None, payload=None) -> int:
    """Appends an event; its id."""
    row = dict(at=self.clock(), kind=kind, annotator=annotator, item=item, key=key)
    return db.execute(
      EVENTS.insert().values(**row, payload=_dump(payload or {}))
    ).inserted_primary_key[0]

  @contextmanager
  def _writing(self) -> Iterator[sa.Connection]:
    """A transaction that is alone with the database until it ends.

    Threads of this process take turns before they ask the database, whose own way of waiting is to look again later.
    """
    with (
      self.turn,
      self.engine.connect().execution_options(writes=True) as db,
      db.begin(),
    ):
      if self.engine.dialect.name == "postgresql":
        db.execute(sa.text("LOCK TABLE assignments IN EXCLUSIVE MODE"))
      yield db

  @contextmanager
  def _reading(self) -> Iterator[sa.Connection]:
    with self.engine.connect() as db, db.begin():
      yield db

  def _migrate(self) -> None:
    """Brings the database's tables to what this code expects; rows stay."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with self.engine.connect().execution_options(writes=True) as db, db.begin():
      if self.engine.dialect.name == "postgresql":
        db.execute(sa.text("SELECT pg_advisory_xact_lock(7415)"))
      config.attributes["connection"] = db
      command.upgrade(config, "head")


def _where(db, *, annotator: str, item: str):
  """The assignment of `item` to `annotator`, or None."""
  mine = (ASSIGNMENTS.c.annotator == annotator, ASSIGNMENTS.c.item == item)
  return db.execute(sa.select(ASSIGNMENTS).where(*mine)).first()


def _engine_options(url: str) -> dict:
  return {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _sqlite_connection(connection, record) -> None:
  connection.isolation_level = None  # transactions begin where `_sqlite_begin` says
  for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
    connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection) -> None:
  writes = connection.get_execution_options().get("writes")
  connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _item(content: str) -> Item:
  row: dict[str, Any] = json.loads(content)
  lists = {name: tuple(row[name]) for name in ("answers", "references") if name in row}
  return Item(**{**row, **lists})


def _event(row) -> Event:
  return Event(row.id, row.at, row.kind, row.annotator, row.item, json.loads(row.payload))


def _dump(value) -> str:
  return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sha(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
