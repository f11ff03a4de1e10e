// Shared by the pages: elements, requests, formatted numbers.

export const byId = (id) => document.getElementById(id);

/** Return an element with attributes (`class`, `aria-…`; true is an empty attribute, false or null none) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Write a text into `node`: HTML made safe by the server or, if `raw`, the text as written; "(empty)" if it is blank. */
export function write(node, { html, text }, raw = false) {
  if (!(raw ? text : html).trim()) node.replaceChildren(element("p", { class: "muted" }, "(empty)"));
  else if (raw) node.replaceChildren(element("pre", { class: "plain raw", dir: "auto" }, text));
  else node.innerHTML = html;
  return node;
}

/** Set the text if it differs, so that nothing flickers and no selection is lost. */
export function say(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

const PATIENCE = 20_000; // milliseconds until a request counts as failed
const csrf = document.querySelector("meta[name=csrf]")?.content ?? "";

/** Return {status, body}; throw if no readable answer came. */
export async function request(method, path, body) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") Object.assign(headers, { "Content-Type": "application/json", "X-Keel-CSRF": csrf });
  const reply = await fetch(path, {
    method,
    headers,
    body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
    signal: AbortSignal.timeout(PATIENCE),
    cache: "no-store",
  });
  const answer = reply.json();
  return { status: reply.status, body: reply.ok ? await answer : await answer.catch(() => ({})) };
}

export async function signOut() {
  try {
    await request("POST", "/api/sign-out");
  } finally {
    sessionStorage.clear();
    location.assign("/");
  }
}

export const whole = (value) => Number(value).toLocaleString("en");
export const length = (characters) => `${whole(characters)} character${characters === 1 ? "" : "s"}`;
export const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** Say whether a node's content exceeds it; such nodes must be reachable by keyboard. */
export const overflows = (node) => node.scrollHeight > node.clientHeight + 1 || node.scrollWidth > node.clientWidth + 1;

/** Make code and tables that do not fit scrollable by keyboard. */
export function reachable(root) {
  for (const node of root.querySelectorAll("pre, .table")) {
    if (overflows(node)) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
  }
}

/** Return the turns of a prompt as elements; plain text has no role. */
export function conversation(turns, raw = false) {
  const names = { user: "User", assistant: "Assistant", system: "System" };
  return turns.map(({ role, ...text }) =>
    element("article", { class: `turn ${names[role] ? role : "plain"}`, "aria-label": names[role] ?? role ?? "" },
      role ? element("h3", { class: "role" }, names[role] ?? role) : null,
      write(element("div", { class: "prose" }), text, raw)));
}

/** Return the character of a key, on any keyboard layout. */
export function keyOf(event) {
  const { key, code, shiftKey } = event;
  if (!shiftKey && /^(Digit|Numpad)\d$/.test(code)) return code.at(-1);
  if (/^Key[A-Z]$/.test(code) && key.length === 1 && !/[a-z]/i.test(key)) return code.at(-1).toLowerCase();
  return key.length === 1 ? key.toLowerCase() : key;
}
