// Elements made by script, with text that is always text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// The turns of a conversation, rendered and made harmless by the server.
export function conversation(turns) {
  return make("div", { className: "conversation" }, ...turns.map(turn));
}

function turn({ role, html }) {
  const content = make("div", { className: "content", dir: "auto", innerHTML: html });
  const known = ["user", "assistant", "system"].includes(role) ? role : "other";
  return make(
    "div",
    { className: role ? `turn ${known}` : "turn" },
    role ? make("div", { className: "role" }, role) : null,
    content,
  );
}

export function button(text, keys, action) {
  const made = make("button", { type: "button" }, text);
  if (keys) {
    made.append(" ", make("kbd", {}, keys));
    made.setAttribute("aria-keyshortcuts", keys);
  }
  made.addEventListener("click", action);
  return made;
}

// One of several, as radio buttons: {element, value, set}.
export function choices(name, legend, options, onchange) {
  const inputs = options.map(({ value }) =>
    make("input", { type: "radio", name, value: String(value) }),
  );
  const labels = options.map(({ text, keys }, i) =>
    make("label", { className: "choice" }, inputs[i], make("span", {}, text), keys ? make("kbd", {}, keys) : ""),
  );
  const element = make("fieldset", { className: "choices" }, make("legend", {}, legend), ...labels);
  element.addEventListener("change", onchange);
  return {
    element,
    value() {
      const at = inputs.findIndex((input) => input.checked);
      return at < 0 ? null : options[at].value;
    },
    set(value) {
      inputs.forEach((input, i) => (input.checked = options[i].value === value));
    },
    choose(at) {
      if (!inputs[at]) return false;
      inputs[at].checked = true;
      inputs[at].focus();
      onchange();
      return true;
    },
  };
}
