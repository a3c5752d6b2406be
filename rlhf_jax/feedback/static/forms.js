// One widget for each form of question. A widget is {element, value, set, key}: `value()` is what the server stores or null while
// something is missing, `set(value)` shows such a value, and `key(event)` is true where it has used a key.
// Values speak of answers by their place in the item; `item.shown[k]` is the place of the k-th that is shown.

import { button, choices, conversation, make } from "./dom.js";
import { diff } from "./diff.js";

const digit = (event) => (/^[0-9]$/.test(event.key) ? Number(event.key) : null);

function pairs(question, item, onchange) {
  const sides = item.answers.map((turns, k) =>
    make(
      "article",
      { className: "answer", "aria-label": k ? "Right answer" : "Left answer" },
      make("h3", {}, k ? "Right" : "Left"),
      conversation(turns),
    ),
  );
  const name = (k) => (item.shown[k] === 0 ? "first" : "second");
  const changed = () => {
    if (degree) degree.element.hidden = !["first", "second"].includes(choice.value());
    onchange();
  };
  const choice = choices(
    `${question.name}-choice`,
    question.text || "Which answer is better?",
    [
      { value: name(0), text: "Left is better", keys: "←" },
      { value: name(1), text: "Right is better", keys: "→" },
      { value: "tie", text: "Equally good", keys: "t" },
      { value: "both_bad", text: "Both are bad", keys: "b" },
    ],
    changed,
  );
  const degree = question.strength
    ? choices(
        `${question.name}-strength`,
        "By how much?",
        [
          { value: 1, text: "Slightly", keys: "1" },
          { value: 2, text: "Clearly", keys: "2" },
          { value: 3, text: "Very much", keys: "3" },
        ],
        onchange,
      )
    : null;
  if (degree) degree.element.hidden = true;
  const keys = { ArrowLeft: 0, ArrowRight: 1, t: 2, b: 3 };
  return {
    element: make(
      "div",
      {},
      make("div", { className: "side-by-side" }, ...sides),
      choice.element,
      degree ? degree.element : null,
    ),
    value() {
      const said = choice.value();
      if (!said) return null;
      const strength = degree && !degree.element.hidden ? degree.value() : null;
      return strength ? { choice: said, strength } : { choice: said };
    },
    set(value) {
      choice.set(value.choice);
      if (degree) degree.set(value.strength ?? null);
      changed();
    },
    key(event) {
      if (event.key in keys) return choice.choose(keys[event.key]);
      const at = digit(event);
      return Boolean(degree && !degree.element.hidden && at) && degree.choose(at - 1);
    },
  };
}

// Cards in the order of their places; one that is `tied` shares the place of the card above it.
function rankings(question, item, onchange) {
  let order = item.shown.map((place, k) => ({ place, letter: String.fromCharCode(65 + k), tied: false }));
  let touched = false;
  const cards = new Map(
    order.map(({ place, letter }, k) => [place, card(place, letter, item.answers[k])]),
  );
  const list = make("ol", { className: "ranking", "aria-label": "Answers, the best first" });
  const said = make("p", { className: "hint", role: "status" });

  function card(place, letter, turns) {
    const tie = make("button", { type: "button", className: "tie" }, "= tied with the one above");
    const up = make("button", { type: "button", ariaLabel: `Move answer ${letter} up` }, "↑");
    const down = make("button", { type: "button", ariaLabel: `Move answer ${letter} down` }, "↓");
    const grip = make("span", { className: "grip", title: "Drag", "aria-hidden": "true" }, "⠿");
    const rank = make("span", { className: "rank" });
    const element = make(
      "li",
      { className: "answer card", tabIndex: 0, "aria-label": `Answer ${letter}` },
      make("div", { className: "card-head" }, grip, rank, make("strong", {}, letter), up, down, tie),
      conversation(turns),
    );
    const index = () => order.findIndex((entry) => entry.place === place);
    up.addEventListener("click", () => move(index(), -1));
    down.addEventListener("click", () => move(index(), 1));
    tie.addEventListener("click", () => join(index()));
    grip.addEventListener("pointerdown", (event) => drag(event, place));
    return { element, tie, rank, up, down };
  }

  function draw() {
    let rank = 0;
    order[0].tied = false;
    order.forEach((entry, i) => {
      if (!entry.tied) rank = i + 1;
      entry.rank = rank;
      const { element, tie, rank: shown, up, down } = cards.get(entry.place);
      if (list.children[i] !== element) list.insertBefore(element, list.children[i] || null);
      shown.textContent = `${rank}.`;
      tie.hidden = i === 0;
      tie.setAttribute("aria-pressed", String(entry.tied));
      element.classList.toggle("tied", entry.tied);
      [up.disabled, down.disabled] = [i === 0, i === order.length - 1];
    });
    said.textContent = order.map(({ letter, tied }, i) => (i ? (tied ? " = " : " > ") : "") + letter).join("");
  }

  function changed(place) {
    touched = true;
    draw();
    if (place !== undefined) cards.get(place).element.focus({ preventScroll: true });
    onchange();
  }

  function move(from, step) {
    const to = from + step;
    if (to < 0 || to >= order.length) return;
    const [entry] = order.splice(from, 1);
    entry.tied = false;
    order.splice(to, 0, entry);
    changed(entry.place);
  }

  function join(at) {
    if (at < 1) return;
    order[at].tied = !order[at].tied;
    changed(order[at].place);
  }

  // Followed on the document, since a card that moves in the list loses the pointer.
  function drag(event, place) {
    event.preventDefault();
    const { element } = cards.get(place);
    element.classList.add("dragged");
    const follow = ({ clientY }) => {
      const from = order.findIndex((entry) => entry.place === place);
      const middle = (i) => {
        const box = cards.get(order[i].place).element.getBoundingClientRect();
        return (box.top + box.bottom) / 2;
      };
      if (from > 0 && clientY < middle(from - 1)) move(from, -1);
      else if (from < order.length - 1 && clientY > middle(from + 1)) move(from, 1);
    };
    const drop = () => {
      document.removeEventListener("pointermove", follow);
      document.removeEventListener("pointerup", drop);
      document.removeEventListener("pointercancel", drop);
      element.classList.remove("dragged");
    };
    document.addEventListener("pointermove", follow);
    document.addEventListener("pointerup", drop);
    document.addEventListener("pointercancel", drop);
  }

  const keep = button("The order is right as it is", "k", () => changed());
  draw();
  return {
    element: make(
      "fieldset",
      { className: "question" },
      make("legend", {}, question.text || "Rank the answers, the best first."),
      make("p", { className: "hint" }, "Drag ⠿, or choose a card with ↑ ↓ and move it with Shift; = ties it with the one above."),
      list,
      said,
      keep,
    ),
    value() {
      if (!touched) return null;
      const ranks = [];
      for (const { place, rank } of order) ranks[place] = rank;
      return { ranks };
    },
    set({ ranks }) {
      order.sort((a, b) => ranks[a.place] - ranks[b.place]);
      order.forEach((entry, i) => (entry.tied = i > 0 && ranks[entry.place] === ranks[order[i - 1].place]));
      changed();
    },
    key(event) {
      const focused = document.activeElement?.closest?.("li.card");
      const at = order.findIndex(({ place }) => cards.get(place).element === focused);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (step && event.shiftKey && at >= 0) move(at, step);
      else if (step) cards.get(order[at < 0 ? 0 : Math.min(Math.max(at + step, 0), order.length - 1)].place).element.focus();
      else if (event.key === "=" && at > 0) join(at);
      else if (event.key === "k") changed();
      else return false;
      return true;
    },
  };
}

function ratings(question, item, onchange) {
  const scales = question.scales.map((scale) => {
    const count = scale.high - scale.low + 1;
    if (Number.isInteger(scale.low) && Number.isInteger(scale.high) && count <= 11) {
      const options = Array.from({ length: count }, (_, i) => ({ value: scale.low + i, text: String(scale.low + i) }));
      const made = choices(`${question.name}-${scale.name}`, scale.name, options, onchange);
      return { name: scale.name, low: scale.low, ...made };
    }
    return { name: scale.name, low: scale.low, ...slider(question, scale, onchange) };
  });
  return {
    element: make(
      "fieldset",
      { className: "question" },
      make("legend", {}, question.text || "How good is the answer?"),
      ...scales.map((scale) => scale.element),
    ),
    value() {
      const said = Object.fromEntries(scales.map((scale) => [scale.name, scale.value()]));
      return Object.values(said).includes(null) ? null : said;
    },
    set(value) {
      scales.forEach((scale) => scale.set(value[scale.name]));
      onchange();
    },
    key(event) {
      const at = digit(event);
      if (at === null) return false;
      const focused = scales.find((scale) => scale.element.contains(document.activeElement) && scale.value() === null);
      const scale = focused || scales.find((one) => one.value() === null) || scales.at(-1);
      return Boolean(scale.choose) && scale.choose(at - scale.low);
    },
  };
}

function slider(question, scale, onchange) {
  const number = make("input", { type: "number", min: scale.low, max: scale.high, step: scale.step || "any" });
  number.addEventListener("input", onchange);
  const label = make("label", { className: "number" }, `${scale.name} (${scale.low} to ${scale.high}) `, number);
  return {
    element: label,
    value() {
      const said = number.valueAsNumber;
      return Number.isFinite(said) && said >= scale.low && said <= scale.high ? said : null;
    },
    set(value) {
      number.value = value;
    },
  };
}

function classes(question, item, onchange) {
  const options = question.classes.map((text, i) => ({ value: text, text, keys: i < 9 ? String(i + 1) : "" }));
  const made = choices(question.name, question.text || "How good is the answer?", options, onchange);
  return {
    element: made.element,
    value: () => (made.value() === null ? null : { class: made.value() }),
    set: (value) => (made.set(value.class), onchange()),
    key: (event) => Boolean(digit(event)) && made.choose(digit(event) - 1),
  };
}

function marks(question, item, onchange) {
  const options = [
    { value: true, text: "Right", keys: "r" },
    { value: false, text: "Wrong", keys: "w" },
  ];
  const made = choices(question.name, question.text || "Is the answer right?", options, onchange);
  return {
    element: made.element,
    value: () => (made.value() === null ? null : { label: made.value() }),
    set: (value) => (made.set(value.label), onchange()),
    key: (event) => ["r", "w"].includes(event.key) && made.choose(event.key === "r" ? 0 : 1),
  };
}

// A passage is chosen by mouse, or word by word with the arrow keys, and given a category by its button or digit.
function spans(question, item, onchange) {
  const text = item.source;
  // The page counts UTF-16 units, the server characters.
  const characters = (units) => Array.from(text.slice(0, units)).length;
  const unitsOf = (count) => Array.from(text).slice(0, count).join("").length;
  const words = Array.from(text.matchAll(/\S+/gu), (found) => [found.index, found.index + found[0].length]);
  let marked = [];
  let chosen = null;
  let anchor = 0;
  let cursor = 0;
  let touched = false;
  const page = make("div", { className: "source", tabIndex: 0, role: "textbox", dir: "auto", "aria-readonly": "true", "aria-multiline": "true", "aria-label": "The answer; choose words with the arrow keys, Shift extends" });
  const list = make("ul", { className: "spans", "aria-label": "Marked passages" });
  const buttons = question.categories.map((name, i) => button(name, i < 9 ? String(i + 1) : "", () => mark(i)));
  const nothing = button("Nothing to mark", "n", () => changed(() => (marked = [])));

  function draw() {
    const edges = new Set([0, text.length]);
    for (const { start, end } of marked) edges.add(start).add(end);
    if (chosen) edges.add(chosen[0]).add(chosen[1]);
    const places = [...edges].sort((a, b) => a - b);
    page.replaceChildren(
      ...places.slice(0, -1).map((start, i) => {
        const end = places[i + 1];
        const over = marked.filter((span) => span.start < end && span.end > start);
        const inside = chosen && chosen[0] < end && chosen[1] > start;
        const names = over.map(({ label }) => `mark-${question.categories.indexOf(label) % 6}`);
        const part = make(over.length ? "mark" : "span", { className: [...names, inside ? "chosen" : ""].join(" ") }, text.slice(start, end));
        if (over.length) part.title = over.map(({ label }) => label).join(", ");
        return part;
      }),
    );
    list.replaceChildren(
      ...marked.map((span, i) =>
        make(
          "li",
          {},
          make("q", { dir: "auto" }, text.slice(span.start, span.end)),
          ` ${span.label} `,
          make("button", { type: "button", ariaLabel: `Remove the mark ${span.label} on ${text.slice(span.start, span.end)}`, onclick: () => changed(() => marked.splice(i, 1)) }, "✕"),
        ),
      ),
    );
  }

  function changed(change) {
    change();
    touched = true;
    chosen = null;
    draw();
    onchange();
  }

  function mark(category) {
    if (!chosen || category >= question.categories.length) return false;
    const [start, end] = chosen;
    changed(() => marked.push({ start, end, label: question.categories[category] }));
    return true;
  }

  const offset = (node, at) => {
    const range = document.createRange();
    range.selectNodeContents(page);
    range.setEnd(node, at);
    return range.toString().length;
  };
  document.addEventListener("selectionchange", () => {
    const selection = getSelection();
    if (!page.isConnected || selection.isCollapsed || !page.contains(selection.anchorNode) || !page.contains(selection.focusNode)) return;
    const ends = [offset(selection.anchorNode, selection.anchorOffset), offset(selection.focusNode, selection.focusOffset)];
    chosen = [Math.min(...ends), Math.max(...ends)];
  });
  page.addEventListener("pointerup", () => {
    if (chosen && !getSelection().isCollapsed) draw();
  });
  draw();
  return {
    element: make(
      "fieldset",
      { className: "question" },
      make("legend", {}, question.text || "Mark what is wrong in the answer."),
      make("p", { className: "hint" }, "Choose words with the mouse, or with ← → (Shift extends), then give them a category; Backspace removes the last mark."),
      page,
      make("div", { className: "row" }, ...buttons, nothing),
      list,
    ),
    value() {
      if (!touched) return null;
      const parts = marked.map(({ start, end, label }) => ({ start: characters(start), end: characters(end), label }));
      return { spans: parts };
    },
    set(value) {
      changed(() => (marked = value.spans.map((s) => ({ ...s, start: unitsOf(s.start), end: unitsOf(s.end) }))));
    },
    key(event) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && words.length) {
        cursor = chosen ? Math.min(Math.max(cursor + step, 0), words.length - 1) : cursor;
        if (!event.shiftKey || !chosen) anchor = cursor;
        chosen = [words[Math.min(anchor, cursor)][0], words[Math.max(anchor, cursor)][1]];
        getSelection().removeAllRanges();
        draw();
        return true;
      }
      if (event.key === "n") return changed(() => (marked = [])), true;
      if (event.key === "Backspace" && marked.length) return changed(() => marked.pop()), true;
      return Boolean(digit(event)) && mark(digit(event) - 1);
    },
  };
}

function corrections(question, item, onchange) {
  const area = make("textarea", { value: item.source, rows: 8, dir: "auto", spellcheck: true, ariaLabel: "The answer, to be corrected" });
  const changes = make("div", { className: "diff", dir: "auto", ariaLabel: "What changes" });
  let touched = false;
  const keep = button("It is right as it is", "k", () => {
    area.value = item.source;
    changed();
  });
  function changed() {
    touched = true;
    draw();
    onchange();
  }
  function draw() {
    const tags = { same: "span", removed: "del", added: "ins" };
    changes.replaceChildren(...diff(item.source, area.value).map(({ kind, text }) => make(tags[kind], {}, text)));
  }
  area.addEventListener("input", changed);
  draw();
  return {
    element: make(
      "fieldset",
      { className: "question" },
      make("legend", {}, question.text || "Correct the answer."),
      area,
      changes,
      keep,
    ),
    value: () => (touched && area.value.trim() ? { text: area.value } : null),
    set(value) {
      area.value = value.text;
      changed();
    },
    key(event) {
      if (event.key === "e") area.focus();
      else if (event.key === "k") keep.click();
      else return false;
      return true;
    },
  };
}

function steps(question, item, onchange) {
  const labels = item.steps.map(() => null);
  const rows = item.steps.map((text, i) => {
    const set = (label) => () => mark(i, labels[i] === label ? null : label);
    const right = make("button", { type: "button", onclick: set(true), ariaLabel: `Step ${i + 1} is right` }, "right");
    const wrong = make("button", { type: "button", onclick: set(false), ariaLabel: `Step ${i + 1} is wrong` }, "wrong");
    const element = make(
      "li",
      { className: "step", tabIndex: 0, "aria-label": `Step ${i + 1}` },
      make("span", { className: "step-text", dir: "auto" }, text),
      right,
      wrong,
    );
    return { element, right, wrong };
  });
  function mark(i, label) {
    labels[i] = label;
    draw();
    onchange();
  }
  function draw() {
    rows.forEach(({ element, right, wrong }, i) => {
      right.setAttribute("aria-pressed", String(labels[i] === true));
      wrong.setAttribute("aria-pressed", String(labels[i] === false));
      element.classList.toggle("is-right", labels[i] === true);
      element.classList.toggle("is-wrong", labels[i] === false);
    });
  }
  draw();
  return {
    element: make(
      "fieldset",
      { className: "question" },
      make("legend", {}, question.text || "Which steps are right?"),
      make("p", { className: "hint" }, "Choose a step with ↑ ↓, then r for right or w for wrong."),
      make("ol", { className: "steps" }, ...rows.map(({ element }) => element)),
    ),
    value: () => (labels.every((label) => label === null) ? null : { labels: [...labels] }),
    set(value) {
      value.labels.forEach((label, i) => (labels[i] = label));
      draw();
      onchange();
    },
    key(event) {
      const focused = document.activeElement?.closest?.("li.step");
      const at = rows.findIndex(({ element }) => element === focused);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (step) rows[at < 0 ? 0 : Math.min(Math.max(at + step, 0), rows.length - 1)].element.focus();
      else if (["r", "w"].includes(event.key)) {
        const next = at < 0 ? labels.indexOf(null) : at;
        if (next < 0) return false;
        mark(next, event.key === "r");
        rows[Math.min(next + 1, rows.length - 1)].element.focus();
      } else return false;
      return true;
    },
  };
}

export const FORMS = { pairs, rankings, ratings, classes, marks, spans, corrections, steps };

// Forms whose widget shows the answers itself.
export const SHOWS_ANSWERS = ["pairs", "rankings", "spans", "steps"];
