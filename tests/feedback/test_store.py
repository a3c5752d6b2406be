"""The store, on SQLite and on PostgreSQL: nothing is lost, nothing is handed out once too often."""

import dataclasses
import threading

import pytest
import sqlalchemy as sa
from some_items import PAIRS, pairs

from rlhf_jax.feedback import store as stores
from rlhf_jax.feedback.store import Refused, Store

FIRST = {"better": {"choice": "first"}}
SECOND = {"better": {"choice": "second"}}


def kinds(store, item=None):
  return [e.kind for e in store.events() if item is None or e.item == item]


def test_an_item_goes_to_as_many_annotators_as_the_overlap_says(store):
  store.add_items(pairs(1))
  for name in ("ann", "bob", "cem"):
    store.invite(name)
  assert store.next_item("ann").item.id == "item 0"
  assert store.next_item("bob").item.id == "item 0"
  assert store.next_item("cem") is None


def test_items_that_were_begun_go_out_first_and_then_in_their_order(store):
  store.add_items(pairs(3))
  for name in ("ann", "bob"):
    store.invite(name)
  store.next_item("ann")
  store.judge("ann", "item 0", FIRST, key="a")
  assert store.next_item("ann").item.id == "item 1"
  assert store.next_item("bob").item.id == "item 0"
  store.judge("bob", "item 0", FIRST, key="b")
  assert store.next_item("bob").item.id == "item 1"  # before item 2, which nobody has


def test_asking_again_gives_the_same_item_in_the_same_order(store):
  store.add_items(pairs(5))
  store.invite("ann")
  first = store.next_item("ann")
  again = store.next_item("ann")
  assert (again.item, again.shown) == (first.item, first.shown)
  assert sorted(first.shown) == [0, 1]


def test_both_orders_are_shown(store):
  store.add_items(pairs(20))
  store.invite("ann")
  orders = set()
  for i in range(20):
    handed = store.next_item("ann")
    orders.add(tuple(handed.shown))
    store.judge("ann", handed.item.id, FIRST, key=str(i))
  assert orders == {(0, 1), (1, 0)}
  judged = [e for e in store.events() if e.kind == "judged"]
  assert {tuple(e.payload["shown"]) for e in judged} == orders


def test_a_request_sent_twice_is_stored_once(store):
  store.add_items(pairs(1))
  store.invite("ann")
  store.next_item("ann")
  for _ in range(3):
    store.judge("ann", "item 0", FIRST, key="same")
  assert kinds(store).count("judged") == 1


def test_a_key_of_somebody_else_is_refused(store):
  store.add_items(pairs(1))
  for name in ("ann", "bob"):
    store.invite(name)
    store.next_item(name)
  store.judge("ann", "item 0", FIRST, key="same")
  with pytest.raises(Refused, match="key was used by somebody else"):
    store.judge("bob", "item 0", FIRST, key="same")


def test_an_item_that_was_not_given_is_not_judged(store):
  store.add_items(pairs(1))
  store.invite("ann")
  with pytest.raises(Refused, match="not given to you"):
    store.judge("ann", "item 0", FIRST, key="a")
  assert "judged" not in kinds(store)


def test_a_lease_that_ended_gives_the_item_to_others(store, clock):
  store.add_items(pairs(1))
  for name in ("ann", "bob", "cem"):
    store.invite(name)
  store.next_item("ann"), store.next_item("bob")
  clock.now += 61
  assert store.next_item("cem").item.id == "item 0"
  store.judge("ann", "item 0", FIRST, key="a")  # late, and there is room for one more
  with pytest.raises(Refused, match="others have judged it since"):
    store.judge("bob", "item 0", FIRST, key="b")
  assert kinds(store).count("judged") == 1


def test_an_undo_is_an_event_and_the_item_comes_back_with_what_was_said(store):
  store.add_items(pairs(2))
  store.invite("ann")
  store.next_item("ann")
  store.judge("ann", "item 0", FIRST, key="a")
  back = store.undo("ann")
  assert (back.item.id, back.said) == ("item 0", FIRST)
  assert store.next_item("ann").item.id == "item 0"
  store.judge("ann", "item 0", SECOND, key="b")
  assert [k for k in kinds(store, "item 0") if k not in ("leased", "item_added")] == [
    "judged",
    "undone",
    "judged",
  ]
  assert store.progress("ann") == {"done": 1, "left": 1}


def test_there_is_nothing_to_undo_at_the_beginning(store):
  store.invite("ann")
  assert store.undo("ann") is None


def test_what_is_skipped_stays_open_to_others(store):
  store.add_items(pairs(1))
  for name in ("ann", "bob", "cem"):
    store.invite(name)
  store.next_item("ann")
  store.skip("ann", "item 0", "not my language", key="a")
  assert store.next_item("ann") is None
  assert store.next_item("bob").item.id == store.next_item("cem").item.id == "item 0"


def test_check_items_come_at_their_turn_and_to_everybody(database, clock):
  project = dataclasses.replace(PAIRS, check_every=3, overlap=1)
  items = [i._replace(known=FIRST) if i.id == "item 5" else i for i in pairs(6)]
  store = Store(database, project, clock=clock)
  store.add_items(items)
  for name in ("ann", "bob"):
    store.invite(name)
    seen = []
    for i in range(3):
      handed = store.next_item(name)
      seen.append(handed.item.id)
      store.judge(name, handed.item.id, FIRST, key=f"{name} {i}")
    assert seen[2] == "item 5" and "item 5" not in seen[:2]
  store.close()


def test_tokens_are_kept_as_hashes_and_end(store, clock, database):
  token = store.invite("ann", days=1)
  assert store.annotator_of(token).name == "ann"
  assert store.annotator_of(token + "x") is None
  with store.engine.connect() as db:
    for table in stores.META.sorted_tables:
      assert not any(token in str(value) for row in db.execute(sa.select(table)) for value in row)
  clock.now += 86_401
  assert store.annotator_of(token) is None
  other = store.invite("ann")
  store.revoke("ann")
  assert store.annotator_of(other) is None


def test_a_store_that_is_opened_again_holds_everything(store, database, clock):
  store.add_items(pairs(3))
  token = store.invite("ann")
  store.next_item("ann")
  store.judge("ann", "item 0", FIRST, key="a", client_ms=1234.0, comment="clear")
  again = Store(database, PAIRS, clock=clock)
  assert again.annotator_of(token).name == "ann"
  assert again.events() == store.events()
  assert again.add_items(pairs(4)) == 1
  assert [item.id for item in again.items()] == [f"item {i}" for i in range(4)]
  again.close()


def test_an_id_with_other_content_is_refused(store):
  store.add_items(pairs(1))
  with pytest.raises(Refused, match="other content"):
    store.add_items([pairs(1)[0]._replace(prompt="changed")])


def test_assignments_can_be_made_again_from_the_events(store, clock):
  store.add_items(pairs(4))
  for name in ("ann", "bob"):
    store.invite(name)
  for i in range(3):
    store.judge("ann", store.next_item("ann").item.id, FIRST, key=f"a{i}")
  store.undo("ann")
  store.skip("bob", store.next_item("bob").item.id, "unclear", key="b", flag=True)
  store.next_item("bob")
  before = assignments(store)
  store.rebuild()
  assert assignments(store) == before


def assignments(store):
  with store.engine.connect() as db:
    order = (stores.ASSIGNMENTS.c.item, stores.ASSIGNMENTS.c.annotator)
    return [tuple(row) for row in db.execute(sa.select(stores.ASSIGNMENTS).order_by(*order))]


def test_many_at_once_are_never_given_an_item_beyond_its_overlap(database, clock):
  items, people = 12, 8
  store = Store(database, PAIRS, clock=clock)
  store.add_items(pairs(items))
  for i in range(people):
    store.invite(f"annotator {i}")

  def work(name):
    while (handed := store.next_item(name)) is not None:
      store.judge(name, handed.item.id, FIRST, key=f"{name} {handed.item.id}")

  threads = [threading.Thread(target=work, args=(f"annotator {i}",)) for i in range(people)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  judged = [e for e in store.events() if e.kind == "judged"]
  times = {f"item {i}": sum(e.item == f"item {i}" for e in judged) for i in range(items)}
  assert set(times.values()) == {2}
  store.close()
