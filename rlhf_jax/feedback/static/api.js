// Requests to the server, with the token of the invitation link. The token stands after # in that link, moves into this tab's storage
// and out of the address, and is sent in a header alone.

export function token() {
  const given = decodeURIComponent(location.hash.slice(1));
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Status 0 is a server that cannot be reached.
export async function call(path, body) {
  const headers = { authorization: `Bearer ${token()}` };
  const options = { headers, cache: "no-store" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(`/api/${path}`, options);
  } catch {
    throw new Failed("The server cannot be reached.", 0);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Failed(said.error || `The server answered ${answer.status}.`, answer.status);
}

// A key of 128 random bits: a request that is sent again with its key is stored once.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
