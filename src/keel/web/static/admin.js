// The page for those who lead a team: figures that update themselves, and disagreements to decide.

import { byId, conversation, element, keyOf, length, reachable, request, say, signOut, whole, write } from "./common.js";
import { become, onLink } from "./session.js";
import { Verdicts, inWords, labels, sided } from "./verdict.js";

const EVERY = 5_000; // milliseconds between two updates
const DASH = "–";

let latest = null; // when the figures came

// --- formatted figures

const two = (value) => (value == null || Number.isNaN(value) ? DASH : value.toFixed(2).replace(/^-(?=0\.00$)/, "").replace("-", "−"));
const interval = (e) => (e?.mean != null ? `${two(e.mean)} [${two(e.low)}, ${two(e.high)}]` : DASH);

function span(seconds) {
  if (seconds == null) return DASH;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3_600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

// --- tables that change in place

/** Set the rows of `body` to `rows`, each {key, cells}; keep rows that stay, and set only texts that differ. */
function fill(body, rows, none) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const wide = body.parentElement.tHead.rows[0].cells;
  const wanted = rows.length ? rows : [{ key: "none", cells: [none] }];
  wanted.forEach(({ key, cells }, at) => {
    const row = old.get(key) ?? blank(key, cells, wide);
    old.delete(key);
    cells.forEach((text, place) => say(row.children[place], text));
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
  });
  for (const row of old.values()) row.remove();
}

function blank(key, cells, wide) {
  const alone = cells.length === 1;
  return element("tr", { "data-key": key }, ...cells.map((_, at) => element(at || alone ? "td" : "th",
    { scope: at || alone ? null : "row", class: alone ? "muted" : wide[at].className, colspan: alone ? wide.length : null })));
}

function showTiles(progress) {
  const { judged, wanted, tasks, skipped, flagged } = progress;
  const share = wanted ? `${Math.floor((100 * judged) / wanted)} %` : DASH;
  const tiles = [["Done", share], ["Judged", `${whole(judged)} of ${whole(wanted)}`], ["Tasks", whole(tasks)], ["Skipped", whole(skipped)], ["Flagged", whole(flagged)]];
  const box = byId("tiles");
  if (!box.children.length) box.append(...tiles.map(([name]) => element("div", {}, element("dt", {}, name), element("dd", {}))));
  tiles.forEach(([, text], at) => say(box.children[at].lastChild, text));
  byId("judged-bar").max = Math.max(wanted, 1);
  byId("judged-bar").value = judged;
}

function showFigures(admin) {
  showTiles(admin.progress);
  fill(byId("agreement"), admin.agreement.map((one) => ({
    key: one.dimension, cells: [one.dimension, whole(one.shared), interval(one.agree), interval(one.alpha), two(one.fleiss)] })),
  "No task has been judged by two raters yet.");
  fill(byId("rater-pairs"), admin.agreement.flatMap((one) => (one.raters ?? []).map((pair) => ({
    key: JSON.stringify([one.dimension, pair.first, pair.second]),
    cells: [one.dimension, `${pair.first}, ${pair.second}`, whole(pair.shared), rate(pair.agree), rate(pair.kappa)] }))),
  "No two raters share a task yet.");
  fill(byId("raters"), admin.raters.map((one) => ({ key: one.name, cells: [
    one.role === "rater" || !one.role ? one.name : `${one.name} (${one.role})`, whole(one.judged), whole(one.today), whole(one.per_hour), span(one.median_seconds), interval(one.gold), whole(one.skipped), whole(one.flagged), one.last == null ? DASH : `${span(one.last)} ago`] })),
  "Nobody has been invited yet: `keel raters add` makes tokens.");
}

/** Format a figure with or without an interval. */
const rate = (value) => (value && typeof value === "object" ? interval(value) : two(value));

// --- disagreements

const cases = new Map(); // by task: {node, panel, votes}

function showDisagreements(admin) {
  const open = admin.disagreements.filter((one) => !one.adjudicated);
  say(byId("open-count"), whole(open.length));
  const box = byId("disagreements");
  const ids = new Set(open.map((one) => one.task));
  for (const [task, held] of cases) {
    if (ids.has(task) || inUse(held)) continue;
    held.node.remove();
    cases.delete(task);
  }
  for (const one of open) {
    if (!cases.has(one.task)) {
      cases.set(one.task, makeCase(one));
      box.append(cases.get(one.task).node);
    }
    showVotes(cases.get(one.task), one);
  }
  byId("disagreements").classList.toggle("none", !cases.size);
}

/** Say whether somebody is working on a case, which must not vanish meanwhile. */
const inUse = ({ node, panel, done }) => !done && (node.contains(document.activeElement) || Object.keys(panel?.said ?? {}).length > 0);

function makeCase(one) {
  const id = `case-${one.task}`;
  const held = { task: one.task, votes: element("ul", { class: "votes" }), body: element("div", { class: "case" }), panel: null, done: false };
  held.node = element("details", { class: "disagreement", id },
    element("summary", {}, element("span", { class: "what", dir: "auto" }, firstWords(one.prompt)), held.summary = element("span", { class: "muted tally" })), held.body);
  held.node.addEventListener("toggle", () => { if (held.node.open && !held.panel) build(held, one); });
  return held;
}

function firstWords(prompt) {
  const last = prompt.findLast((turn) => turn.role === "user") ?? prompt.at(-1);
  const text = new DOMParser().parseFromString(last?.html ?? "", "text/html").body.textContent.trim().replace(/\s+/g, " ");
  return text.length > 140 ? `${text.slice(0, 139)}…` : text || "(empty prompt)";
}

function answersOf({ kind, answers }) {
  const names = labels(kind, answers.length);
  const cards = answers.map((answer, at) => element("section", { class: `answer place-${at}`, "aria-label": `${names[at][0]} answer` },
    element("header", {}, element("h3", {}, ...sided(names[at])), element("span", { class: "length muted" }, length(answer.characters))),
    write(element("div", { class: "prose body", tabindex: "0", role: "region", "aria-label": `Text of the ${names[at][0]} answer` }), answer)));
  return element("div", { class: "answers", "data-kind": kind, "data-count": answers.length }, ...cards);
}

/** Build a case's content when it is opened: fifty tasks with long answers are heavy. */
function build(held, one) {
  const controls = element("div", { class: "controls" });
  const comment = element("textarea", { rows: "2", maxlength: "4000", id: `reason-${one.task}`, dir: "auto" });
  const problem = element("p", { class: "problem", role: "alert" });
  const decide = element("button", { type: "button", class: "primary" }, "Decide");
  held.panel = new Verdicts(controls, { kind: one.kind, count: one.answers.length, dimensions: one.dimensions });
  controls.addEventListener("keydown", (event) => onKey(event, held));
  decide.addEventListener("click", () => adjudicate(held, comment, problem, decide));
  held.body.append(element("div", { class: "turns", role: "region", tabindex: "0", "aria-label": "Prompt" }, ...conversation(one.prompt)),
    answersOf(one), element("h3", {}, "What raters said"), held.votes, element("h3", {}, "Your decision"), controls,
    element("label", { for: comment.id }, "Reason (optional)"), comment, problem, decide);
  reachable(held.body);
}

function onKey(event, { panel }) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (step && panel.many ? panel.step(step) : panel.key(keyOf(event), event.shiftKey)) event.preventDefault();
}

function showVotes(held, one) {
  const names = labels(one.kind, one.answers.length);
  const said = new Map(), comments = new Map();
  for (const { rater, dimension, comment, ...verdict } of one.verdicts) {
    said.set(rater, [...(said.get(rater) ?? []), `${one.dimensions.length > 1 ? `${dimension}: ` : ""}${inWords(one.kind, verdict, names)}`]);
    comments.set(rater, comment);
  }
  const lines = [...said].map(([rater, words]) => element("li", {}, `${rater}: ${words.join("; ")}`,
    comments.get(rater) ? element("p", { class: "comment", dir: "auto" }, comments.get(rater)) : null));
  const texts = (nodes) => JSON.stringify(nodes.map((node) => node.textContent));
  if (texts(lines) !== texts([...held.votes.children])) held.votes.replaceChildren(...lines);
  say(held.summary, `${said.size} raters`);
}

async function adjudicate(held, comment, problem, decide) {
  problem.textContent = "";
  if (!held.panel.complete) {
    const first = held.panel.missing[0];
    held.panel.activate(held.panel.rows.indexOf(first));
    first.focus();
    problem.textContent = held.panel.many ? `Choose for ${first.name} first.` : "Choose first.";
    return;
  }
  decide.disabled = true;
  try {
    const body = { verdicts: held.panel.value(), comment: comment.value.trim() };
    const reply = await request("POST", `/api/admin/adjudicate/${held.task}`, body);
    if (reply.status !== 200) throw new Error(reply.body.error ?? `The server answered ${reply.status}.`);
    held.done = true;
    const next = held.node.nextElementSibling ?? held.node.previousElementSibling;
    showAll(reply.body);
    byId("status").textContent = "Decided.";
    (next?.isConnected ? next.querySelector("summary") : byId("main")).focus();
  } catch (error) {
    problem.textContent = error instanceof TypeError || error.name === "TimeoutError" ? "There is no connection to the server. Your decision stands here; press Decide again." : error.message;
  } finally {
    decide.disabled = false;
  }
}

// --- flags

function showFlags(admin) {
  say(byId("flag-count"), whole(admin.flags.length));
  const lines = admin.flags.map((flag) => ({ key: JSON.stringify([flag.task, flag.rater]), flag, texts: [flag.note || "(no note)", `${flag.rater}, on: ${flag.prompt_text}`] }));
  const old = new Map([...byId("flags").children].map((node) => [node.dataset.key, node]));
  lines.forEach(({ key, flag, texts }, at) => {
    const node = old.get(key) ?? element("li", { "data-key": key }, element("p", { dir: "auto" }), element("p", { class: "muted small", dir: "auto" }), flagged(flag));
    old.delete(key);
    texts.forEach((text, place) => say(node.children[place], text));
    if (byId("flags").children[at] !== node) byId("flags").insertBefore(node, byId("flags").children[at] ?? null);
  });
  for (const node of old.values()) node.remove();
}

/** Return the answers of a flagged task, built when they are opened. */
function flagged(flag) {
  const node = element("details", {}, element("summary", {}, flag.answers.length === 1 ? "The answer" : `The ${flag.answers.length} answers`));
  node.addEventListener("toggle", () => {
    if (!node.open || node.children.length > 1) return;
    node.append(answersOf(flag));
    reachable(node);
  });
  return node;
}

// --- updates

function showAll(admin) {
  latest = new Date();
  showFigures(admin);
  showDisagreements(admin);
  showFlags(admin);
  say(byId("fresh"), `As of ${latest.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`);
  byId("fresh").classList.remove("problem");
}

async function look() {
  try {
    const { status, body } = await request("GET", "/api/admin");
    if (status === 401 || status === 403) return location.assign("/");
    if (status === 200) showAll(body);
    else throw new Error(body.error);
  } catch {
    say(byId("fresh"), latest ? `No connection; figures of ${latest.toLocaleTimeString()}` : "No connection; trying again");
    byId("fresh").classList.add("problem");
  }
}

async function keepUp() {
  if (!document.hidden) await look();
  setTimeout(keepUp, EVERY);
}

/** Sign in by a personal link that is followed while this page is open. */
async function follow(token) {
  const problem = await become(token, document.body.dataset.name);
  say(byId("link-problem"), problem.charAt(0).toUpperCase() + problem.slice(1));
}

byId("sign-out").addEventListener("click", signOut);
onLink(follow);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
keepUp();
