// The administrator's page: read again every few seconds, so that what annotators do shows by itself.

import { call, newKey, token } from "./api.js";
import { conversation, make } from "./dom.js";
import { FORMS, SHOWS_ANSWERS } from "./forms.js";

const EVERY = 5_000; // milliseconds
const at = (id) => document.getElementById(id);
let project;

async function begin() {
  if (!token()) return tell("Open this page by the administrator's link.");
  try {
    project = await (await call("project")).json();
    if (project.role !== "administrator") return location.replace("/");
    at("title").textContent = document.title = `${project.title}: administration`;
  } catch (error) {
    return tell(error.message);
  }
  for (;;) {
    await watch();
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

async function watch() {
  try {
    draw(await (await call("admin/overview")).json());
    tell("");
    at("fresh").textContent = `as of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    tell(error.message);
  }
}

const percent = (x) => (x === null || x === undefined ? "–" : `${Math.round(100 * x)} %`);
const number = (x) => (x === null || x === undefined ? "–" : x.toFixed(2));
const estimate = (x) => (!x || x.value === null ? "–" : `${number(x.value)} [${number(x.low)}, ${number(x.high)}]`);

function draw(seen) {
  const hours = seen.hours_left === null ? "–" : `${seen.hours_left.toFixed(1)} h`;
  const tiles = {
    Judgements: `${seen.judgements} of ${seen.wanted}`,
    "Items finished": `${seen.finished} of ${seen.items}`,
    "In the last hour": String(seen.last_hour),
    "Left at this pace": hours,
  };
  at("tiles").replaceChildren(
    ...Object.entries(tiles).map(([name, value]) => make("div", { className: "tile" }, make("strong", {}, value), name)),
  );
  at("agreement").replaceChildren(
    table(
      ["Question", "Krippendorff's α", "Fleiss' κ", "Alike", "Units shared", "Two and two (Cohen's κ)"],
      Object.entries(seen.questions).map(([name, q]) => [
        name,
        estimate(q.alpha),
        estimate(q.kappa),
        estimate(q.alike),
        String(q.units),
        q.between.map((b) => `${b.annotators.join(" & ")}: ${number(b.kappa.value)}`).join(", ") || "–",
      ]),
    ),
  );
  at("people").replaceChildren(
    table(
      ["Name", "Judged", "Seconds an item (median)", "Check items right", "Agrees with others", "Last", ""],
      seen.annotators.map((a) => [
        a.name,
        String(a.judged),
        a.median_seconds === null ? "–" : a.median_seconds.toFixed(1),
        a.checks ? `${a.checks_right} of ${a.checks}` : "–",
        Object.entries(a.agrees_with_others).map(([q, share]) => `${q}: ${percent(share)}`).join(", ") || "–",
        a.last ? new Date(1000 * a.last).toLocaleString() : "–",
        make("button", { type: "button", onclick: () => revoke(a.name) }, "Take links back"),
      ]),
    ),
  );
  at("bias").replaceChildren(
    ...Object.entries(seen.positions).flatMap(([name, p]) => [
      bar(`${name}: shown`, { left: p.left || 0, right: p.right || 0, neither: (p.tie || 0) + (p.both_bad || 0) }),
      bar(`${name}: by length`, { longer: seen.lengths[name].longer || 0, shorter: seen.lengths[name].shorter || 0 }),
    ]),
  );
  at("apart").replaceChildren(
    seen.disagreements.length
      ? table(
          ["Item", "Alike", "Judgements", ""],
          seen.disagreements.map((d) => [
            d.item,
            percent(d.alike),
            String(d.count),
            make("button", { type: "button", onclick: () => look(d.item) }, d.decided ? "Decided; look again" : "Decide"),
          ]),
        )
      : make("p", { className: "hint" }, "None."),
  );
  at("flagged").replaceChildren(
    seen.flagged.length
      ? table(["Item", "By", "Why", ""], seen.flagged.map((f) => [f.item, f.annotator, f.reason, make("button", { type: "button", onclick: () => look(f.item) }, "Look")]))
      : make("p", { className: "hint" }, "None."),
  );
}

function table(heads, rows) {
  return make(
    "table",
    { className: "figures" },
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))),
  );
}

function bar(title, counts) {
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  const parts = Object.values(counts).map((count, i) => {
    const part = make("span", { className: "abc"[i] });
    part.style.flexGrow = count;
    return part;
  });
  const said = Object.entries(counts).map(([name, count]) => `${name} ${count} (${total ? percent(count / total) : "–"})`);
  const drawn = make("div", { className: "bar", role: "img", ariaLabel: `${title}: ${said.join(", ")}` }, ...parts);
  return make("div", {}, make("p", { className: "hint" }, `${title} ${said.join(", ")}`), total ? drawn : null);
}

async function revoke(name) {
  if (confirm(`Take back all links of ${name}? What was said stays.`)) {
    await act("admin/revoke", { name });
  }
}

async function act(path, body) {
  try {
    const answer = await (await call(path, body)).json();
    await watch();
    return answer;
  } catch (error) {
    tell(error.message);
    return null;
  }
}

async function look(id) {
  const seen = await (await call(`admin/item?id=${encodeURIComponent(id)}`)).json();
  const { item, judgements, decision } = seen;
  at("decision-prompt").replaceChildren(conversation(item.prompt));
  const inWidget = project.questions.some(({ form }) => SHOWS_ANSWERS.includes(form));
  at("decision-answers").replaceChildren(...(inWidget ? [] : item.answers.map((a) => conversation(a))));
  const said = judgements.map((j) => [j.annotator, JSON.stringify(j.said), j.comment || ""]);
  if (decision) said.push([`${decision.by} (decision)`, JSON.stringify(decision.said), ""]);
  at("decision-said").replaceChildren(table(["Who", "Said", "Comment"], said));
  const complete = () => (at("decide").disabled = widgets.some((w, i) => !project.questions[i].optional && w.value() === null));
  let widgets = [];
  widgets = project.questions.map((question) => FORMS[question.form](question, item, () => widgets.length && complete()));
  at("decision-form").replaceChildren(...widgets.map(({ element }) => element));
  complete();
  at("decide").onclick = async () => {
    const values = {};
    project.questions.forEach(({ name }, i) => {
      if (widgets[i].value() !== null) values[name] = widgets[i].value();
    });
    at("decision").close();
    await act("admin/adjudicate", { item: id, key: newKey(), said: values });
  };
  at("decision").showModal();
}

function tell(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

at("close").addEventListener("click", () => at("decision").close());
at("decision-form").addEventListener("submit", (event) => event.preventDefault());
at("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("invite-name").value.trim();
  const answer = await act("admin/invite", { name, days: at("invite-days").valueAsNumber || null });
  if (answer) {
    at("link").textContent = `${location.origin}/#${answer.token} is the link for ${name}; it is shown this once.`;
    at("invite-name").value = "";
  }
});
at("export").addEventListener("click", async () => {
  try {
    const answer = await call("admin/export");
    const link = make("a", { href: URL.createObjectURL(await answer.blob()), download: "feedback.jsonl" });
    link.click();
    URL.revokeObjectURL(link.href);
    at("fresh").textContent = `exported, SHA-256 ${answer.headers.get("x-content-hash").slice(0, 16)}…`;
  } catch (error) {
    tell(error.message);
  }
});
begin();
