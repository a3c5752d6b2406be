"""How long an annotator waits: the latency of judging and getting the next item, with many annotators at once.

  python benchmarks/labelling.py --annotators=50 --items=500
  python benchmarks/labelling.py --database=postgresql+psycopg://user@/name?host=/path

Prints a JSON line: judgements a second, and the median, 95th and 99th percentile of a request's milliseconds as the client
sees them. The server is a process of its own on this machine; a new SQLite file unless --database says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import numpy as np

from rlhf_jax.feedback.project import Project, Question, parse_item
from rlhf_jax.feedback.store import Store

PROJECT = Project("benchmark", (Question("better", "pairs"),), overlap=2)
SERVER = """
import sys, uvicorn
from rlhf_jax.feedback.app import make_app
from rlhf_jax.feedback.project import Project, Question
from rlhf_jax.feedback.store import Store
project = Project("benchmark", (Question("better", "pairs"),), overlap=2)
uvicorn.run(make_app(Store(sys.argv[1], project)), port=int(sys.argv[2]), access_log=False, log_level="error")
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--annotators", type=int, default=50)
  parser.add_argument("--items", type=int, default=500)
  parser.add_argument("--database", default="")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    url = args.database or f"sqlite:///{folder}/labels.sqlite"
    store = Store(url, PROJECT)
    rows = [{"id": str(i), "prompt": f"{i}?", "answers": ["yes", "no"]} for i in range(args.items)]
    store.add_items([parse_item(row, PROJECT) for row in rows])
    tokens = [store.invite(f"annotator {i}") for i in range(args.annotators)]
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, url, str(port)])
    try:
      seconds, waits = asyncio.run(_label(f"http://127.0.0.1:{port}/api/", tokens))
    finally:
      server.kill()
      server.wait()
    judged = sum(event.kind == "judged" for event in store.events())
    store.close()
  found = {
    "annotators": args.annotators,
    "judgements": judged,
    "judgements_per_second": round(judged / seconds, 1),
    **{f"p{q}_ms": round(1000 * float(np.percentile(waits, q)), 1) for q in (50, 95, 99)},
    "database": url.split(":")[0],
    "python": platform.python_version(),
    "machine": platform.machine(),
  }
  print(json.dumps(found))


async def _label(address: str, tokens: list[str]) -> tuple[float, list[float]]:
  """(seconds of the whole, seconds of each request)"""
  waits: list[float] = []
  limits = httpx.Limits(max_connections=len(tokens))
  async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
    for _ in range(400):
      try:
        await client.get("project")
        break
      except httpx.TransportError:
        await asyncio.sleep(0.05)

    async def post(path, token, body):
      began = time.perf_counter()
      answer = await client.post(path, json=body, headers={"authorization": f"Bearer {token}"})
      waits.append(time.perf_counter() - began)
      return answer.raise_for_status().json()["item"]

    async def annotate(i, token):
      item = await post("next", token, {})
      while item is not None:
        said = {"better": {"choice": "first"}}
        item = await post(
          "judge", token, {"item": item["id"], "key": f"key-{i:04d}-{item['id']}", "said": said}
        )

    began = time.perf_counter()
    await asyncio.gather(*(annotate(i, token) for i, token in enumerate(tokens)))
    return time.perf_counter() - began, waits


if __name__ == "__main__":
  main()
