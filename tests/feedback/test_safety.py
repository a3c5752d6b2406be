"""What the pages and the server must never do, and what everybody must be able to read."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from some_items import PAIRS, pairs
from starlette.testclient import TestClient

from rlhf_jax.cli import label
from rlhf_jax.cli.parser import Parser
from rlhf_jax.feedback import app
from rlhf_jax.feedback.store import Store

STATIC = Path(app.STATIC)
GOOD = {  # path -> a body that it takes
  "judge": {"item": "item 0", "key": "key-00000001", "said": {"better": {"choice": "first"}}},
  "skip": {"item": "item 0", "key": "key-00000001", "reason": "unclear"},
  "admin/adjudicate": {
    "item": "item 0",
    "key": "key-00000001",
    "said": {"better": {"choice": "first"}},
  },
  "admin/invite": {"name": "eve"},
  "admin/revoke": {"name": "ann"},
}
WRONG = [None, 5, [], {"a": 1}, "", "x" * 200_000, "\0", "'; DROP TABLE events; --\0", True]


@pytest.mark.parametrize("page", sorted(STATIC.glob("*.html")), ids=lambda path: path.name)
def test_pages_run_their_own_files_alone(page):
  text = page.read_text()
  assert all(
    re.match(r'<script type="module" src="/static/[a-z]+\.js">', s)
    for s in re.findall("<script[^>]*>", text)
  )
  assert not re.search(r"\son[a-z]+=|style=|javascript:|https?://", text)
  assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.S) == [""] * text.count("<script")


def test_scripts_load_nothing_from_elsewhere():
  for script in STATIC.glob("*.js"):
    assert not re.search(r"https?://|\beval\(|new Function|document\.write", script.read_text()), (
      script
    )


def luminance(color: str) -> float:
  parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
  high, low = sorted((luminance(a), luminance(b)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_in_dark():
  """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
  schemes = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text(), re.S)
  assert len(schemes) == 2
  for scheme in schemes:
    color = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", scheme))
    pairs_of = [
      (t, p) for t in ("text", "quiet", "accent", "good", "bad") for p in ("page", "raised")
    ]
    pairs_of += [("on-accent", "accent"), *(("text", p) for p in ("added", "removed", "chosen"))]
    for text, page in pairs_of:
      assert contrast(color[text], color[page]) >= 4.5, (text, page, color[text], color[page])


@pytest.mark.parametrize("path", GOOD)
def test_every_field_refuses_what_it_is_not(path, database):
  store = Store(database, PAIRS)
  store.add_items(pairs(1))
  bearer = lambda token: {"authorization": f"Bearer {token}"}
  ann, boss = bearer(store.invite("ann")), bearer(store.invite("boss", "administrator"))
  headers = boss if path.startswith("admin/") else ann
  store.next_item("ann")
  before = store.events()
  with TestClient(app.make_app(store), raise_server_exceptions=False) as client:
    for field in GOOD[path]:
      for wrong in WRONG:
        answer = client.post(f"/api/{path}", headers=headers, json={**GOOD[path], field: wrong})
        assert answer.status_code in (404, 409, 422), (field, wrong, answer.text)
      missing = {name: value for name, value in GOOD[path].items() if name != field}
      assert client.post(f"/api/{path}", headers=headers, json=missing).status_code == 422
    unknown = client.post(
      f"/api/{path}", headers=headers, json={**GOOD[path], "role": "administrator"}
    )
    assert unknown.status_code == 422
    assert store.events() == before
    assert client.post(f"/api/{path}", headers=headers, json=GOOD[path]).status_code == 200
  store.close()


def test_the_server_listens_on_this_machine_alone_unless_told_otherwise():
  parser = Parser("label", label.__doc__)
  label.add_options(parser)
  assert parser.parse_args(["--workdir=x"]).host == "127.0.0.1"


def test_no_token_is_in_what_the_server_prints_while_it_serves(tmp_path):
  """Beyond the two links that it prints on purpose when it starts."""
  items = tmp_path / "items.jsonl"
  items.write_text('{"prompt": "p", "answers": ["a", "b"]}\n')
  words = ["label", f"--workdir={tmp_path}/labels", f"--items={items}", "--form=pairs", "--port=0"]
  log = tmp_path / "log"
  with log.open("w") as out:
    server = subprocess.Popen([sys.executable, "-m", "rlhf_jax", *words], stdout=out, stderr=out)
    try:
      for _ in range(600):
        if "Ctrl-C" in log.read_text():
          break
        time.sleep(0.1)
      tokens = re.findall(r"#(\S+)", log.read_text())
      started = len(log.read_text())
      port = _port_of(server.pid)
      for token in tokens:
        for path in ("project", "nothing", "admin/overview"):
          httpx.get(
            f"http://127.0.0.1:{port}/api/{path}", headers={"authorization": f"Bearer {token}"}
          )
    finally:
      server.terminate()
      server.wait(20)
  assert len(tokens) == 2
  assert not any(token in log.read_text()[started:] for token in tokens)


def _port_of(pid: int) -> int:
  """The port on which a process listens."""
  for _ in range(200):
    sockets = {
      link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
    }
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
      fields = line.split()
      if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
        return int(fields[1].split(":")[1], 16)
    time.sleep(0.05)
  raise AssertionError("the server listens nowhere")
