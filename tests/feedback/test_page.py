"""The page in a real browser: every form by mouse and by keyboard, reloaded, by two at once, and to a trained reward model."""

import contextlib
import hashlib
import json
import shutil
import threading
import time

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
sync_api.expect.set_options(
  timeout=60_000
)  # every answer is synced to a disk that other tests may keep busy

import uvicorn  # noqa: E402

from rlhf_jax.feedback import export, project  # noqa: E402
from rlhf_jax.feedback.app import make_app  # noqa: E402
from rlhf_jax.feedback.project import Project, Question, parse_item  # noqa: E402
from rlhf_jax.feedback.store import Store  # noqa: E402

SCALES = ({"name": "helpful", "low": 1, "high": 5}, {"name": "kind", "low": 1, "high": 5})
QUESTIONS = {
  "pairs": Question("said", "pairs"),
  "rankings": Question("said", "rankings"),
  "ratings": Question("said", "ratings", scales=SCALES),
  "classes": Question("said", "classes", classes=("poor", "fair", "good")),
  "marks": Question("said", "marks"),
  "spans": Question("said", "spans", categories=("wrong", "rude")),
  "corrections": Question("said", "corrections"),
  "steps": Question("said", "steps"),
}
ANSWERS = {
  "pairs": ["the first", "the second"],
  "rankings": ["alpha", "beta", "gamma"],
  "spans": ["The sky 🦊 is green, you fool."],
  "corrections": ["Canberra are the capital."],
  "steps": ["3 * 4 = 12\n12 + 2 = 15\nso 15"],
}


@pytest.fixture(scope="module")
def browser():
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  if chromium is None:
    pytest.skip("Chromium is not installed; apt-get install chromium runs these tests too.")
  with sync_api.sync_playwright() as playwright:
    made = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    yield made
    made.close()


@contextlib.contextmanager
def serving(store):
  """The address of a server of `store`, in a thread."""
  config = uvicorn.Config(make_app(store), port=0, access_log=False, log_level="warning")
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  while not server.started:
    time.sleep(0.02)
  port = server.servers[0].sockets[0].getsockname()[1]
  try:
    yield f"http://127.0.0.1:{port}"
  finally:
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def project_of(tmp_path):
  """form -> (store with items of it)"""
  made = []

  def make(form, count=2, **options):
    asked = Project(
      f"Trial of {form}", (QUESTIONS[form],), guidelines="# How\n*Be fair.*", **options
    )
    store = Store(f"sqlite:///{tmp_path}/{form}.sqlite", asked)
    answers = ANSWERS.get(form, ["an answer"])
    rows = [{"id": f"item {i}", "prompt": f"Prompt {i}", "answers": answers} for i in range(count)]
    store.add_items([parse_item(row, asked) for row in rows])
    made.append(store)
    return store

  yield make
  for store in made:
    store.close()


@contextlib.contextmanager
def annotating(browser, address, token, **options):
  """A page in a context of its own; it must not complain of anything in the browser's console."""
  context = browser.new_context(**options)
  page = context.new_page()
  complaints = []
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
  page.goto(f"{address}/#{token}")
  yield page
  context.close()
  assert complaints == []


def submitted(page, count):
  sync_api.expect(page.locator("#progress")).to_contain_text(f"{count} done")


def the_value(store):
  (event,) = [e for e in store.events() if e.kind == "judged"]
  return event.payload["said"]["said"], event.payload["shown"]


def rank_by_mouse(page):
  """Drags the last card to the top, and ties the last with the one above it."""
  grips = page.locator(".grip")
  low, high = grips.nth(2).bounding_box(), grips.nth(0).bounding_box()
  middle = lambda box: (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
  page.mouse.move(*middle(low))
  page.mouse.down()
  page.mouse.move(*middle(high), steps=12)
  page.mouse.move(high["x"] + 5, high["y"] - 60, steps=6)
  page.mouse.up()
  page.locator("li.card").nth(2).get_by_role("button", name="tied").click()


def mark_by_mouse(page):
  source = page.locator(".source")
  source.evaluate(
    """(element) => {
      const text = element.firstChild.firstChild;
      const range = document.createRange();
      const start = text.data.indexOf("green");
      range.setStart(text, start);
      range.setEnd(text, start + 5);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
    }"""
  )
  page.get_by_role("button", name="wrong").first.click()


def correct_by_mouse(page):
  page.get_by_label("The answer, to be corrected").fill("Canberra is the capital.")


BY_MOUSE = {
  "pairs": lambda p: (p.get_by_label("Right is better").check(), p.get_by_label("Clearly").check()),
  "rankings": rank_by_mouse,
  "ratings": lambda p: [
    p.get_by_role("group", name=name).last.get_by_label(n).check()
    for name, n in (("helpful", "4"), ("kind", "2"))
  ],
  "classes": lambda p: p.get_by_label("fair").check(),
  "marks": lambda p: p.get_by_label("Wrong").check(),
  "spans": mark_by_mouse,
  "corrections": correct_by_mouse,
  "steps": lambda p: (
    p.get_by_role("button", name="Step 1 is right").click(),
    p.get_by_role("button", name="Step 2 is wrong").click(),
  ),
}
BY_KEYS = {
  "pairs": ["ArrowRight", "2"],
  "rankings": [
    "ArrowUp",
    "ArrowDown",
    "ArrowDown",
    "Shift+ArrowUp",
    "Shift+ArrowUp",
    "ArrowDown",
    "ArrowDown",
    "=",
  ],
  "ratings": ["4", "2"],
  "classes": ["2"],
  "marks": ["w"],
  "spans": ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "1"],
  "corrections": ["e", "Control+Home", *["ArrowRight"] * 9, *["Delete"] * 3, "i", "s", "Escape"],
  "steps": ["r", "w"],
}


def expected(form, shown, by_keys):
  if form == "pairs":
    return {"choice": ("first", "second")[shown[1]], "strength": 2}
  if form == "rankings":  # the third on top, then the first and the second tied
    ranks = [None] * 3
    for place, rank in zip((shown[2], shown[0], shown[1]), (1, 2, 2), strict=True):
      ranks[place] = rank
    return {"ranks": ranks}
  if form == "spans":
    text = ANSWERS["spans"][0]
    start, end = text.index("green"), text.index("green") + len("green," if by_keys else "green")
    return {"spans": [{"start": start, "end": end, "label": "wrong"}]}
  return {
    "ratings": {"helpful": 4, "kind": 2},
    "classes": {"class": "fair"},
    "marks": {"label": False},
    "corrections": {"text": "Canberra is the capital."},
    "steps": {"labels": [True, False, None]},
  }[form]


@pytest.mark.parametrize("form", QUESTIONS)
def test_every_form_is_said_by_mouse(form, browser, project_of):
  store = project_of(form)
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    sync_api.expect(page.locator("#submit")).to_be_disabled()
    BY_MOUSE[form](page)
    page.locator("#submit").click()
    submitted(page, 1)
  value, shown = the_value(store)
  assert value == expected(form, shown, by_keys=False)


@pytest.mark.parametrize("form", QUESTIONS)
def test_every_form_is_said_by_keyboard(form, browser, project_of):
  store = project_of(form)
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    page.locator("#actions").wait_for()
    for key in BY_KEYS[form]:
      page.keyboard.press(key)
    page.keyboard.press("Enter")
    submitted(page, 1)
  value, shown = the_value(store)
  assert value == expected(form, shown, by_keys=True)


def test_a_correction_shows_what_it_changes(browser, project_of):
  store = project_of("corrections")
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    correct_by_mouse(page)
    assert page.locator(".diff del").all_inner_texts() == ["are"]
    assert page.locator(".diff ins").all_inner_texts() == ["is"]


def test_a_reload_in_the_middle_loses_nothing_and_the_token_leaves_the_address(browser, project_of):
  store = project_of("pairs")
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    page.get_by_label("Right is better").check()
    page.locator("#comment").fill("because")
    shown = page.locator(".answer").all_inner_texts()
    assert page.url == f"{address}/"
    page.reload()
    sync_api.expect(page.get_by_label("Right is better")).to_be_checked()
    assert page.locator("#comment").input_value() == "because"
    assert page.locator(".answer").all_inner_texts() == shown
    page.keyboard.press("Control+Enter")
    submitted(page, 1)
  (event,) = [e for e in store.events() if e.kind == "judged"]
  assert event.payload["comment"] == "because" and event.payload["client_ms"] > 0


def test_what_the_server_could_not_take_is_sent_again(browser, project_of):
  store = project_of("marks")
  refused = []
  with serving(store) as address, browser.new_context() as context:
    page = context.new_page()
    # From before the page is there: a route that comes later may miss the next request.
    page.route("**/api/judge", lambda route: (refused.append(route), route.abort()))
    page.goto(f"{address}/#{store.invite('ann')}")
    page.locator("#actions").wait_for()
    page.keyboard.press("r")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#message")).to_contain_text("Trying again")
    assert refused and not [e for e in store.events() if e.kind == "judged"]
    page.unroute("**/api/judge")
    submitted(page, 1)
  assert the_value(store)[0] == {"label": True}


def test_an_undo_shows_what_was_said(browser, project_of):
  store = project_of("marks")
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    page.locator("#actions").wait_for()
    for key in ("r", "Enter"):
      page.keyboard.press(key)
    submitted(page, 1)
    page.keyboard.press("u")
    submitted(page, 0)
    sync_api.expect(page.get_by_label("Right", exact=False).first).to_be_checked()
    for key in ("w", "Enter"):
      page.keyboard.press(key)
    submitted(page, 1)
  assert [e.payload["said"]["said"]["label"] for e in store.events() if e.kind == "judged"] == [
    True,
    False,
  ]


def test_an_item_is_skipped_and_flagged_with_a_reason(browser, project_of):
  store = project_of("marks", count=3)
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    page.locator("#actions").wait_for()
    for key, reason in (("s", "too hard"), ("f", "nonsense")):
      page.keyboard.press(key)
      page.locator("#reason").fill(reason)
      page.get_by_role("button", name="Send").click()
      sync_api.expect(page.locator("#reasons")).to_be_hidden()
      page.wait_for_timeout(150)
    submitted(page, 2)
  said = [(e.kind, e.payload["reason"]) for e in store.events() if "reason" in e.payload]
  assert said == [("skipped", "too hard"), ("flagged", "nonsense")]


def test_two_annotators_at_once_get_items_of_their_own_until_all_are_done(browser, project_of):
  store = project_of("marks", count=6)
  tokens = [store.invite(name) for name in ("ann", "bob")]
  with (
    serving(store) as address,
    annotating(browser, address, tokens[0]) as ann,
    annotating(browser, address, tokens[1]) as bob,
  ):
    for i in range(3):
      for page in (ann, bob):
        submitted(page, i)
        page.keyboard.press("r")
        page.keyboard.press("Enter")
    for page in (ann, bob):
      sync_api.expect(page.locator("#prompt")).to_contain_text("That was all")
  judged = [e.item for e in store.events() if e.kind == "judged"]
  assert sorted(judged) == [f"item {i}" for i in range(6)]


def test_nothing_in_a_text_runs_or_loads(browser, tmp_path):
  asked = Project("Trial", (QUESTIONS["marks"],))
  bad = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\n\n![a](http://127.0.0.1:9/x.png)\n\n"
    "[b](javascript:window.ran=1) <a href='http://127.0.0.1:9'>c</a>\n\n<style>body{display:none}</style>\n\n"
    "$\\href{javascript:window.ran=1}{d}$ $<script>window.ran=1</script>$\n\n<iframe src=http://127.0.0.1:9></iframe>"
  )
  store = Store(f"sqlite:///{tmp_path}/x.sqlite", asked)
  turns = [{"role": "<img src=x onerror='window.ran=1'>", "content": bad}]
  store.add_items([parse_item({"id": "x", "prompt": turns, "answers": [bad]}, asked)])
  requested = []
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    page.on("request", lambda request: requested.append(request.url))
    page.reload()
    page.locator("#actions").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert (
      page.locator("#prompt a, #prompt img, #prompt iframe, #prompt script, #prompt style").count()
      == 0
    )
    assert "<script>window.ran = 1</script>" in page.locator("#answers").inner_text()
  assert all(url.startswith(address) for url in requested)
  store.close()


def test_a_phone_shows_everything_without_scrolling_sideways(browser, project_of):
  store = project_of("pairs")
  phone = dict(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
  with (
    serving(store) as address,
    annotating(browser, address, store.invite("ann"), **phone) as page,
  ):
    page.locator("#actions").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_text("Left is better").tap()
    page.locator("#submit").tap()
    submitted(page, 1)


def test_every_control_has_a_name_for_screen_readers(browser, project_of):
  for form in QUESTIONS:
    store = project_of(form)
    with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
      page.locator("#actions").wait_for()
      nameless = page.evaluate(
        """() => [...document.querySelectorAll("main button, main input, main textarea")].filter((e) =>
          !(e.ariaLabel || e.textContent.trim() || (e.labels && [...e.labels].some((l) => l.textContent.trim())))
        ).map((e) => e.outerHTML)"""
      )
      assert nameless == [], form


def test_the_administrator_watches_decides_and_exports(browser, project_of):
  store = project_of("marks", count=1, overlap=2)
  for name, label in (("ann", True), ("bob", False)):
    store.invite(name)
    store.next_item(name)
    store.judge(name, "item 0", {"said": {"label": label}}, key=f"key of {name}")
  token = store.invite("boss", "administrator")
  with serving(store) as address, annotating(browser, f"{address}/admin", token) as page:
    sync_api.expect(page.locator("#tiles")).to_contain_text("2 of 2")
    page.get_by_role("button", name="Decide").first.click()
    page.locator("#decision").get_by_label("Wrong").check()
    page.locator("#decide").click()
    sync_api.expect(page.locator("#apart")).to_contain_text("Decided")
    page.locator("#invite-name").fill("cem")
    page.get_by_role("button", name="Invite").click()
    sync_api.expect(page.locator("#link")).to_contain_text(f"{address}/#")
    with page.expect_download() as download:
      page.locator("#export").click()
    with open(download.value.path()) as file:
      (row,) = map(json.loads, file)
  assert (row["label"], row["annotator"]) == (False, "boss")
  assert (
    export.jsonl(store)[0].decode() == json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"
  )


def test_labels_from_the_page_train_a_reward_model(browser, tmp_path):
  from rlhf_jax.cli import main

  items, exported = tmp_path / "items.jsonl", tmp_path / "feedback.jsonl"
  rows = [
    {"prompt": f"Is {word} good?", "answers": [f"Yes, {word} is great.", f"No, {word} is awful."]}
    for word in ("tea", "rice", "soup", "bread", "jam", "salt", "milk", "corn")
  ]
  items.write_text("".join(json.dumps(row) + "\n" for row in rows))
  labels = f"--workdir={tmp_path}/labels"
  project.create(tmp_path / "labels", "pairs")
  found = project.read(tmp_path / "labels")
  store = Store(f"sqlite:///{tmp_path}/labels/labels.sqlite", found)
  store.add_items(project.items(items, found))
  with serving(store) as address, annotating(browser, address, store.invite("ann")) as page:
    for i in range(8):
      submitted(page, i)
      left = page.get_by_role("article", name="Left answer").inner_text()
      page.keyboard.press("ArrowLeft" if "great" in left else "ArrowRight")
      page.keyboard.press("Enter")
    submitted(page, 8)
  store.close()
  assert main(["label", "export", labels, f"--out={exported}"]) == 0
  assert all("great" in json.loads(line)["chosen"] for line in exported.read_text().splitlines())
  run = tmp_path / "run"
  arguments = [
    "train",
    "--config=experiments/tiny.py",
    f"--workdir={run}",
    "--config.stages=('reward_model',)",
    "--config.data.source=files",
    f"--config.data.feedback={exported}",
    f"--config.data.prompts={items}",
    "--config.data.prompt_tokens=24",
    "--config.reward_model.batch_size=4",
    "--config.reward_model.epochs=6.0",
  ]
  assert main(arguments) == 0
  recorded = json.loads((run / "data.json").read_text())["feedback"]["sha256"]
  assert recorded == hashlib.sha256(exported.read_bytes()).hexdigest()
  losses = [
    row["loss/total"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  ]
  assert losses[-1] < losses[0]
