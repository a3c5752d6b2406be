"""The server's JSON interface: who may do what, and what it refuses without storing anything."""

import json

import pytest
from some_items import PAIRS, pairs
from starlette.testclient import TestClient

from rlhf_jax.feedback.app import HEADERS, LARGEST_BODY, make_app
from rlhf_jax.feedback.store import Store

FIRST = {"better": {"choice": "first"}}
KEY = "key-00000001"


@pytest.fixture
def served(tmp_path, clock):
  """(client, store, headers of an annotator, headers of the administrator)"""
  store = Store(f"sqlite:///{tmp_path}/labels.sqlite", PAIRS, clock=clock)
  store.add_items(pairs(3))
  bearer = lambda token: {"authorization": f"Bearer {token}"}
  ann = bearer(store.invite("ann"))
  admin = bearer(store.invite("boss", "administrator"))
  with TestClient(make_app(store), base_url="http://127.0.0.1") as client:
    yield client, store, ann, admin
  store.close()


def said(store):
  return [e for e in store.events() if e.kind in ("judged", "skipped", "flagged", "adjudicated")]


def test_an_annotator_gets_an_item_judges_it_and_gets_the_next(served):
  client, store, ann, _ = served
  first = client.post("/api/next", headers=ann).json()
  assert first["progress"] == {"done": 0, "left": 2}  # and the one in hand
  body = {"item": first["item"]["id"], "key": KEY, "said": FIRST, "client_ms": 1500.0}
  second = client.post("/api/judge", headers=ann, json=body)
  assert second.status_code == 200 and second.json()["item"]["id"] != first["item"]["id"]
  (event,) = said(store)
  assert event.payload["said"] == FIRST and event.payload["client_ms"] == 1500.0
  assert event.payload["shown"] == first["item"]["shown"]


def test_what_is_shown_tells_nothing_of_where_an_answer_comes_from(served):
  client, store, ann, _ = served
  row = {"id": "x", "prompt": "p", "answers": [{"content": "a", "model": "secret"}, "b"]}
  from rlhf_jax.feedback.project import parse_item

  store.add_items([parse_item(row, PAIRS)])
  for i in range(4):
    page = client.post("/api/next", headers=ann)
    assert "secret" not in page.text
    body = {"item": page.json()["item"]["id"], "key": f"{KEY}{i}", "said": FIRST}
    client.post("/api/judge", headers=ann, json=body)


@pytest.mark.parametrize(
  "headers",
  [
    {},
    {"authorization": "Bearer "},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer " + "x" * 5000},
    {"authorization": "Basic YTpi"},
    {"authorization": "Bearer ' OR 1=1 --"},
  ],
)
@pytest.mark.parametrize("path", ["next", "judge", "skip", "undo", "admin/invite", "admin/revoke"])
def test_without_a_good_token_nothing_is_done(served, headers, path):
  client, store, _, _ = served
  before = store.events()
  answer = client.post(f"/api/{path}", headers=headers, json={})
  assert answer.status_code == 401 and "ask for another one" in answer.json()["error"]
  assert store.events() == before


@pytest.mark.parametrize("path", ["admin/overview", "admin/export", "admin/item?id=x", "project"])
def test_without_a_good_token_nothing_is_read(served, path):
  client, *_ = served
  assert client.get(f"/api/{path}").status_code == 401


def test_expired_and_revoked_tokens_are_refused(served, clock):
  client, store, ann, _ = served
  short = {"authorization": f"Bearer {store.invite('cem', days=1)}"}
  assert client.post("/api/next", headers=short).status_code == 200
  clock.now += 86_401
  assert client.post("/api/next", headers=short).status_code == 401
  store.revoke("ann")
  assert client.post("/api/next", headers=ann).status_code == 401


def test_each_role_is_kept_to_its_own(served):
  client, store, ann, admin = served
  assert client.post("/api/next", headers=admin).status_code == 403
  for path, body in {
    "invite": {"name": "eve"},
    "revoke": {"name": "boss"},
    "adjudicate": {"item": "item 0", "key": KEY, "said": FIRST},
  }.items():
    assert client.post(f"/api/admin/{path}", headers=ann, json=body).status_code == 403
  for path in ("overview", "export", "item?id=item 0"):
    assert client.get(f"/api/admin/{path}", headers=ann).status_code == 403
  assert [a.name for a in store.annotators()] == ["ann", "boss"] and not said(store)


def test_an_item_of_others_is_not_judged(served):
  client, store, ann, _ = served
  body = {"item": "item 2", "key": KEY, "said": FIRST}
  answer = client.post("/api/judge", headers=ann, json=body)
  assert answer.status_code == 409 and "not given to you" in answer.json()["error"]
  assert not said(store)


BAD = [
  ({}, "item"),
  ({"item": "item 0", "key": KEY}, "said"),
  ({"item": 5, "key": KEY, "said": FIRST}, "item"),
  ({"item": "item 0", "key": "x", "said": FIRST}, "key"),
  ({"item": "item 0", "key": "a" * 65, "said": FIRST}, "key"),
  ({"item": "item 0", "key": "'; DROP TABLE events; --", "said": FIRST}, "key"),
  ({"item": "item 0", "key": KEY, "said": []}, "said"),
  ({"item": "item 0", "key": KEY, "said": {}}, "not answered"),
  ({"item": "item 0", "key": KEY, "said": {"worse": 1}}, "'worse' is not a question"),
  ({"item": "item 0", "key": KEY, "said": {"better": "first"}}, "should be an object"),
  ({"item": "item 0", "key": KEY, "said": {"better": {"choice": "left"}}}, "'choice'"),
  ({"item": "item 0", "key": KEY, "said": {"better": {"choice": ["first"]}}}, "'choice'"),
  ({"item": "item 0", "key": KEY, "said": {"better": {"choice": "\ud800"}}}, ""),
  (
    {"item": "item 0", "key": KEY, "said": {"better": {"choice": "first", "strength": 9}}},
    "'strength' is 9",
  ),
  ({"item": "item 0", "key": KEY, "said": FIRST, "client_ms": -1.0}, "client_ms"),
  ({"item": "item 0", "key": KEY, "said": FIRST, "comment": "x" * 2001}, "comment"),
  ({"item": "item 0", "key": KEY, "said": FIRST, "comment": "\0"}, "comment"),
  ({"item": "item 0", "key": KEY, "said": FIRST, "annotator": "boss"}, "annotator"),
]


@pytest.mark.parametrize("body, named", BAD)
def test_a_bad_judgement_is_refused_by_field_and_nothing_is_stored(served, body, named):
  client, store, ann, _ = served
  client.post("/api/next", headers=ann)
  before = store.events()
  sent = json.dumps(body).encode()
  answer = client.post(
    "/api/judge", headers={**ann, "content-type": "application/json"}, content=sent
  )
  assert answer.status_code == 422 and named in answer.json()["error"], answer.text
  assert store.events() == before


@pytest.mark.parametrize(
  "content, kind, status",
  [
    (b"{", "application/json", 400),
    (b"[" * 100_000, "application/json", 400),
    (b'{"item": NaN}', "application/json", 422),
    (b"item=x", "application/x-www-form-urlencoded", 415),
    (b"{}", "text/plain", 415),
    (b" " * (LARGEST_BODY + 1), "application/json", 413),
    (b"\xff\xfe", "application/json", 400),
  ],
)
def test_a_body_that_is_no_small_json_is_refused(served, content, kind, status):
  client, store, ann, _ = served
  before = store.events()
  answer = client.post("/api/judge", headers={**ann, "content-type": kind}, content=content)
  assert answer.status_code == status and answer.json()["error"]
  assert store.events() == before


@pytest.mark.parametrize(
  "path",
  [
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static/....//app.py",
    "/../../etc/passwd",
    "/static//etc/passwd",
    "/labels.sqlite",
    "/project.toml",
    "/docs",
    "/openapi.json",
  ],
)
def test_only_the_pages_own_files_are_served(served, path):
  client, *_ = served
  assert client.get(path).status_code == 404


def test_every_answer_forbids_what_could_run_or_load(served):
  client, _, ann, _ = served
  answers = [
    client.get("/api/project", headers=ann),
    client.get("/nothing"),
    client.post("/api/next"),
  ]
  for answer in answers:
    for name, value in HEADERS.items():
      assert answer.headers[name] == value
  assert "unsafe" not in HEADERS["content-security-policy"]


def test_an_undo_gives_the_item_back(served):
  client, store, ann, _ = served
  item = client.post("/api/next", headers=ann).json()["item"]
  body = {"item": item["id"], "key": KEY, "said": FIRST}
  client.post("/api/judge", headers=ann, json=body)
  back = client.post("/api/undo", headers=ann).json()["item"]
  assert (back["id"], back["said"]) == (item["id"], FIRST)
  assert client.post("/api/undo", headers=ann).status_code == 409


def test_the_administrator_invites_watches_decides_and_exports(served):
  client, store, ann, admin = served
  token = client.post("/api/admin/invite", headers=admin, json={"name": "bob"}).json()["token"]
  bob = {"authorization": f"Bearer {token}"}
  for who, choice in ((ann, "first"), (bob, "second")):
    item = client.post("/api/next", headers=who).json()["item"]
    said_now = {"better": {"choice": choice}}
    body = {"item": item["id"], "key": f"key-of-{choice}", "said": said_now}
    assert client.post("/api/judge", headers=who, json=body).status_code == 200
  seen = client.get("/api/admin/overview", headers=admin).json()
  assert (seen["judgements"], seen["wanted"], seen["finished"]) == (2, 6, 1)
  assert [d["item"] for d in seen["disagreements"]] == ["item 0"]
  assert seen["questions"]["better"]["alike"]["value"] == 0.0
  one = client.get("/api/admin/item", headers=admin, params={"id": "item 0"}).json()
  assert [j["annotator"] for j in one["judgements"]] == ["ann", "bob"]
  body = {"item": "item 0", "key": "key-of-boss", "said": FIRST}
  assert client.post("/api/admin/adjudicate", headers=admin, json=body).status_code == 200
  exported = client.get("/api/admin/export", headers=admin)
  (row,) = map(json.loads, exported.text.splitlines())
  assert (row["chosen"], row["rejected"], row["annotator"]) == ("0", "not 0", "boss")
  again = client.get("/api/admin/export", headers=admin)
  assert again.content == exported.content
  assert again.headers["x-content-hash"] == exported.headers["x-content-hash"]
