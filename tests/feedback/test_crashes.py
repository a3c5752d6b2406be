"""Fifty annotators over HTTP at once while the server is killed again and again: what got a 200 is stored exactly once."""

import asyncio
import collections
import os
import random
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from some_items import PAIRS, pairs

from rlhf_jax.feedback.store import Store

PEOPLE, ITEMS, KILLS = 50, 60, 3
SERVER = """
import sys, uvicorn
from rlhf_jax.feedback.app import make_app
from rlhf_jax.feedback.project import Project, Question
from rlhf_jax.feedback.store import Store
project = Project("t", (Question("better", "pairs"),), overlap=2, lease_seconds=60)
store = Store(sys.argv[1], project)
uvicorn.run(make_app(store), port=int(sys.argv[2]), access_log=False, log_level="error")
"""


@pytest.mark.parametrize("seed", [0])
def test_every_answer_that_got_a_200_is_stored_once_whatever_kills_the_server(database, seed):
  store = Store(database, PAIRS)
  store.add_items(pairs(ITEMS))
  tokens = [store.invite(f"annotator {i}") for i in range(PEOPLE)]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  acknowledged = asyncio.run(_everybody(database, port, tokens, random.Random(seed)))
  judged = [e for e in store.events() if e.kind == "judged"]
  said = collections.Counter((e.annotator, e.item) for e in judged)
  assert max(said.values()) == 1
  assert set(acknowledged) <= set(said)
  times = collections.Counter(item for _, item in said)
  assert set(times.values()) == {2} and len(times) == ITEMS
  store.close()


async def _everybody(database, port, tokens, rng):
  acknowledged = []
  servers = [_start(database, port)]
  finished = asyncio.Event()

  async def kill():
    for _ in range(KILLS):
      await asyncio.sleep(rng.uniform(0.2, 0.6))
      if finished.is_set():
        return
      os.kill(servers[-1].pid, signal.SIGKILL)
      servers[-1].wait()
      servers.append(_start(database, port))

  async def annotate(client, i, token):
    headers = {"authorization": f"Bearer {token}"}
    answer = await _until_answered(client, "next", headers, {})
    while answer["item"] is not None:
      item = answer["item"]["id"]
      body = {"item": item, "key": f"key-{i}-{item}".replace(" ", "-")}
      body["said"] = {"better": {"choice": rng.choice(["first", "second"])}}
      answer = await _until_answered(client, "judge", headers, body)
      acknowledged.append((f"annotator {i}", item))

  try:
    address = f"http://127.0.0.1:{port}/api/"
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
      killer = asyncio.create_task(kill())
      await asyncio.gather(*(annotate(client, i, token) for i, token in enumerate(tokens)))
      finished.set()
      await killer
  finally:
    servers[-1].kill()
    servers[-1].wait()
  assert len(servers) > 1, "the server was never killed; more items would keep it busy for longer"
  return acknowledged


async def _until_answered(client, path, headers, body):
  for _ in range(600):
    try:
      answer = await client.post(path, headers=headers, json=body)
    except httpx.TransportError:
      await asyncio.sleep(0.1)
      continue
    assert answer.status_code == 200, answer.text
    return answer.json()
  raise AssertionError("the server did not come back")


def _start(database, port):
  server = subprocess.Popen([sys.executable, "-c", SERVER, database, str(port)])
  for _ in range(600):
    with socket.socket() as probe:
      if probe.connect_ex(("127.0.0.1", port)) == 0:
        return server
    time.sleep(0.05)
  raise AssertionError("the server does not start")
