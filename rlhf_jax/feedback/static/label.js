// The annotator's page: one item at a time, nothing lost. What is being said is kept in this tab's storage until the server has it, and a
// request that got no answer is sent again with its own key.

import { call, Failed, newKey, token } from "./api.js";
import { conversation, make } from "./dom.js";
import { FORMS, SHOWS_ANSWERS } from "./forms.js";

const at = (id) => document.getElementById(id);
const stored = (name) => JSON.parse(sessionStorage.getItem(name) || "null");
const store = (name, value) => sessionStorage.setItem(name, JSON.stringify(value));

let project;
let item = null;
let widgets = [];
let since = 0;
let busy = false;

async function begin() {
  if (!token()) return tell("Open this page by the link of your invitation.");
  try {
    project = await (await call("project")).json();
  } catch (error) {
    return tell(error.message);
  }
  if (project.role === "administrator") return location.replace("/admin");
  document.title = at("title").textContent = project.title;
  at("guide").innerHTML = project.guidelines;
  at("show-guide").hidden = !project.guidelines;
  if (project.guidelines && matchMedia("(min-width: 1100px)").matches) guide(true);
  const pending = stored("pending");
  await (pending ? send(pending.path, pending.body) : send("next", {}));
}

// Sends until the server has answered, and shows the item that it answers with.
async function send(path, body) {
  if (busy) return;
  busy = true;
  at("submit").disabled = true;
  if (body.key) store("pending", { path, body });
  try {
    const answer = await (await patiently(path, body)).json();
    tell("");
    if (body.key) {
      sessionStorage.removeItem("pending");
      sessionStorage.removeItem("draft");
    }
    show(answer);
  } catch (error) {
    tell(error.message);
    if (error.status === 409 || error.status === 422) {
      sessionStorage.removeItem("pending");
      if (error.status === 409 && path !== "undo") {
        sessionStorage.removeItem("draft");
        busy = false;
        const reason = error.message;
        await send("next", {});
        return tell(`That answer was not stored: ${reason}`);
      }
    }
  } finally {
    busy = false;
    ready();
  }
}

async function patiently(path, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await call(path, body);
    } catch (error) {
      if (!(error instanceof Failed) || (error.status && error.status < 500)) throw error;
      tell(`${error.message} Trying again; what you said is kept here.`);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

function show(answer) {
  item = answer.item;
  const { done, left } = answer.progress;
  const all = done + left + (item ? 1 : 0);
  at("progress").textContent = `${done} done, ${all - done} to go`;
  [at("bar").value, at("bar").max] = [done, Math.max(all, 1)];
  at("actions").hidden = at("remark").hidden = !item;
  for (const id of ["prompt", "answers", "questions"]) at(id).replaceChildren();
  at("comment").value = "";
  widgets = [];
  if (!item) {
    at("prompt").append(make("p", { className: "finished" }, "That was all for now. Thank you."));
    at("actions").hidden = !done;
    return;
  }
  at("prompt").append(conversation(item.prompt));
  const shownByWidget = project.questions.some(({ form }) => SHOWS_ANSWERS.includes(form));
  if (!shownByWidget) {
    at("answers").append(make("article", { className: "answer" }, conversation(item.answers[0])));
  }
  widgets = project.questions.map((question) => FORMS[question.form](question, item, changed));
  at("questions").append(...widgets.map(({ element }) => element));
  const draft = stored("draft");
  const said = draft && draft.item === item.id ? draft.said : item.said;
  if (draft && draft.item === item.id) at("comment").value = draft.comment;
  if (said) {
    project.questions.forEach(({ name }, i) => said[name] && widgets[i].set(said[name]));
  }
  since = performance.now();
  scrollTo(0, 0);
  document.activeElement?.blur?.();
  ready();
}

function values() {
  const said = {};
  project.questions.forEach(({ name }, i) => {
    const value = widgets[i].value();
    if (value !== null) said[name] = value;
  });
  return said;
}

function ready() {
  const missing = project?.questions.filter(({ optional }, i) => !optional && widgets[i]?.value() === null);
  const nothing = !item || !Object.keys(values()).length;
  at("submit").disabled = busy || nothing || missing.length > 0;
}

function changed() {
  if (!item || widgets.length < project.questions.length) return;
  store("draft", { item: item.id, said: values(), comment: at("comment").value });
  ready();
}

function submit() {
  if (at("submit").disabled) return;
  const client_ms = performance.now() - since;
  send("judge", { item: item.id, key: newKey(), said: values(), comment: at("comment").value, client_ms });
}

function leave(flag) {
  if (!item) return;
  at("reasons-title").textContent = flag ? "Flag this item for the administrator" : "Skip this item";
  at("reason").value = "";
  at("reasons").onclose = () => {
    const reason = at("reason").value.trim();
    if (at("reasons").returnValue === "given" && reason) send("skip", { item: item.id, key: newKey(), reason, flag });
  };
  at("reasons").returnValue = "";
  at("reasons").showModal();
}

function guide(open = at("guide").hidden) {
  at("guide").hidden = !open;
  at("show-guide").setAttribute("aria-expanded", String(open));
}

function tell(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

const KEYS = {
  u: () => send("undo", {}),
  s: () => leave(false),
  f: () => leave(true),
  c: () => at("comment").focus(),
  g: () => project?.guidelines && guide(),
  "?": () => at("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  const writing = event.target.matches("textarea, input[type=number], input:not([type])");
  if (event.key === "Enter" && (event.ctrlKey || !writing)) {
    if (event.target.matches("button, a") && !event.ctrlKey) return;
    event.preventDefault();
    return submit();
  }
  if (event.key === "Escape" && writing) return event.target.blur();
  if (writing || event.ctrlKey || !item) {
    if (!writing && !event.ctrlKey && event.key === "u") KEYS.u();
    return;
  }
  const focused = widgets.filter(({ element }) => element.contains(document.activeElement));
  const open = widgets.filter((widget) => widget.value() === null && !focused.includes(widget));
  for (const widget of [...focused, ...open, ...widgets]) {
    if (widget.key(event)) return event.preventDefault();
  }
  if (event.key in KEYS) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

at("questions").addEventListener("submit", (event) => event.preventDefault());
at("submit").addEventListener("click", submit);
at("undo").addEventListener("click", KEYS.u);
at("skip").addEventListener("click", KEYS.s);
at("flag").addEventListener("click", KEYS.f);
at("show-guide").addEventListener("click", () => guide());
at("show-keys").addEventListener("click", KEYS["?"]);
at("no-reason").addEventListener("click", () => at("reasons").close(""));
at("comment").addEventListener("input", changed);
begin();
