// The page for raters: one task at a time, everything by keyboard, no verdict lost and none given twice.

import { byId, conversation, element, keyOf, length, overflows, reachable, request, say, signOut, sleep, whole, write } from "./common.js";
import { arrived, become, onLink } from "./session.js";
import { Verdicts, inWords, labels, sided } from "./verdict.js";

const DRAFT = "keel-draft", SINGLE_KEYS = "keel-single-keys";
const WARN = 60; // seconds before a lease ends; at most a quarter of it
const LOOK_AGAIN = 60_000;

let turn = null; // what the server gave last
let panel = null; // the controls of its task
let busy = false; // a request is under way: no key may act twice
let ends = 0; // Date.now() at which the lease ends
let warned = ""; // the last warning of its end: "", "soon" or "over"
let raw = false; // show texts as they were written
let seconds = 0, since = null; // time at this task while the page was visible
let hurry = null; // ends a wait between two tries

// --- telling

/** Say something to screen readers only. */
function announce(text) {
  byId("status").textContent = "";
  requestAnimationFrame(() => { byId("status").textContent = text; });
}

const notice = { kind: "" };

/** Show a message above the task. A lost connection is not replaced by the end of a lease. */
function tell(kind, text, action = null, words = "") {
  if (notice.kind === "network" && kind === "lease") return;
  notice.kind = kind;
  byId("notice").hidden = false;
  byId("notice").dataset.kind = kind;
  say(byId("notice-text"), text);
  byId("notice-do").hidden = !action;
  byId("notice-do").replaceChildren(...[words].flat());
  byId("notice-do").onclick = action;
  byId("notice-close").hidden = ["network", "lease", "signed-out"].includes(kind);
}

function hush(...kinds) {
  if (kinds.length && !kinds.includes(notice.kind)) return;
  if (byId("notice").contains(document.activeElement)) byId("title").focus();
  notice.kind = "";
  byId("notice").hidden = true;
}

// --- the server

/** Send a request until the server answers; `kept` says what is safe meanwhile. */
async function persist(method, path, body, kept) {
  for (let tries = 0; ; tries++) {
    try {
      const reply = await request(method, path, body);
      if (reply.status < 500 && reply.status !== 429) {
        hush("network");
        return reply;
      }
    } catch { /* no answer: try again */ }
    if (tries === 0) announce(`No connection to the server. ${kept}`);
    await countdown(Math.min(30, 2 ** tries) * (0.75 + Math.random() / 2), kept);
  }
}

async function countdown(wait, kept) {
  const until = Date.now() + 1000 * wait;
  let now = false;
  hurry = () => { now = true; };
  while (!now && Date.now() < until) {
    const left = Math.ceil((until - Date.now()) / 1000);
    tell("network", `No connection to the server. ${kept} Trying again in ${left} s.`, () => hurry?.(), "Try now");
    await sleep(100);
  }
  hurry = null;
}

/** Run `act` unless another is under way. */
async function once(act) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  const slow = setTimeout(() => document.body.classList.add("slow"), 400);
  try {
    await act();
  } finally {
    clearTimeout(slow);
    busy = false;
    document.body.classList.remove("busy", "slow");
    refresh();
  }
}

/** Show the turn in a reply, or the refusal that came instead. */
async function take({ status, body }, then = "") {
  if (status === 200) return show(body, then);
  if (status === 401 || status === 403) return signedOut(body.error);
  const text = body.error ?? `The server answered ${status}.`;
  announce(text);
  if (status !== 409 && status !== 404) return tell("error", text);
  forget();
  const next = await persist("GET", "/api/task", null, "");
  if (next.status !== 200) return take(next);
  show(next.body);
  tell("gone", `${capital(text)}. ${next.body.task ? "Here is your next task." : ""}`.replace("..", "."));
  announce(byId("notice-text").textContent);
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function signedOut(why) {
  keep();
  tell("signed-out", `${capital(why ?? "you are signed out")}. What you chose is kept on this page.`.replace("..", "."), () => location.assign("/"), "Sign in again");
  announce(byId("notice-text").textContent);
  byId("notice-do").focus();
}

const path = (act = "") => `/api/task/${encodeURIComponent(turn.task.key)}${act}`;

function load() {
  return once(async () => take(await persist("GET", "/api/task", null, "")));
}

function submit() {
  if (!turn?.task) return;
  if (!panel.complete) return askForMissing();
  return once(async () => {
    keep();
    const body = { verdicts: panel.value(), comment: byId("comment").value.trim(), seconds: Math.round(spent() * 100) / 100 };
    document.body.classList.add("sending");
    try {
      const reply = await persist("POST", path(), body, "Your verdict is kept here.");
      if (reply.status === 200) forget();
      await take(reply, "Saved.");
    } finally {
      document.body.classList.remove("sending");
    }
  });
}

function leave(act, body, words) {
  if (!turn?.task) return;
  return once(async () => {
    const reply = await persist("POST", path(act), body, "");
    if (reply.status === 200) forget();
    await take(reply, words);
  });
}

/** Undo the last verdict. A second try could undo two, so after a lost reply the current task shows whether it was done. */
function undo() {
  if (!turn?.progress.can_undo) return announce("There is nothing to undo.");
  return once(async () => {
    const before = turn.task?.key;
    let reply = null;
    try {
      reply = await request("POST", "/api/undo");
    } catch { /* the request below shows whether it arrived */ }
    if (reply && reply.status < 500) {
      if (reply.status === 409) return tell("error", `${capital(reply.body.error)}.`.replace("..", ".")), announce(reply.body.error);
      forget();
      return take(reply);
    }
    reply = await persist("GET", "/api/task", null, "");
    await take(reply);
    if (reply.status === 200 && reply.body.task?.key === before) {
      tell("error", "Nothing was undone, since the connection failed. Press u to try again.");
      announce("Nothing was undone, since the connection failed.");
    }
  });
}

/** Ask for the current task, which starts its lease anew. */
function extend() {
  return once(async () => {
    const before = turn.task?.key;
    const reply = await persist("GET", "/api/task", null, "Your verdict is kept here.");
    if (reply.status !== 200) return take(reply);
    if (reply.body.task?.key !== before) {
      show(reply.body);
      tell("gone", "Your time for the task was over, and others have taken it. Here is your next one.");
      return announce(byId("notice-text").textContent);
    }
    started(reply.body.task.seconds_left);
    hush("lease");
    announce("The task stays with you.");
  });
}

// --- somebody else's link

/** Sign in the link's owner; a request that is under way is finished first, in the former rater's name. */
async function follow(token) {
  while (busy) await sleep(50);
  const me = document.body.dataset.name;
  let problem = "";
  await once(async () => {
    problem = await become(token, me, (name) => {
      if (name === me) return;
      turn = null; // keep nothing of it for the next rater
      forget();
    });
  });
  if (!turn) await load();
  tell("link", capital(problem));
  announce(capital(problem));
}

function greet() {
  const name = arrived();
  if (!name) return;
  tell("link", `You are signed in as ${name}.`);
  announce(byId("notice-text").textContent);
}

// --- time

function started(left) {
  ends = Date.now() + 1000 * left;
  warned = "";
  turn.warn = Math.min(WARN, left / 4);
}

function tick() {
  if (!turn?.task || busy) return;
  const left = (ends - Date.now()) / 1000;
  if (left > turn.warn) return;
  const over = left <= 0;
  const text = over ? "Your time for this task is over; others may get it. You can still submit while nobody has taken it."
    : `Your time for this task ends in ${Math.ceil(left)} s.`;
  tell("lease", text, extend, ["Keep it ", element("kbd", {}, "k")]);
  const state = over ? "over" : "soon";
  if (warned !== state) announce(`${text} Press k to keep it.`);
  warned = state;
}

function watch() {
  if (document.hidden && since !== null) {
    seconds += (performance.now() - since) / 1000;
    since = null;
    keep();
  } else if (!document.hidden && since === null) since = performance.now();
}

const spent = () => seconds + (since === null ? 0 : (performance.now() - since) / 1000);

// --- drafts: kept until sent, through a reload or a new sign-in

function keep() {
  if (!turn?.task || !panel) return;
  const draft = { key: turn.task.key, verdicts: panel.value(), comment: byId("comment").value, seconds: spent() };
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  } catch { /* storage is full: the page itself still holds it */ }
}

const forget = () => sessionStorage.removeItem(DRAFT);

function draft() {
  try {
    const found = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    return found?.key === turn.task.key ? found : null;
  } catch {
    return null;
  }
}

// --- showing

function show(next, words = "") {
  turn = next;
  hush("lease", "gone", "error", "network", "link");
  showProgress(turn.progress);
  byId("loading").hidden = true;
  for (const id of ["task", "verdict"]) byId(id).hidden = !turn.task;
  byId("nothing").hidden = Boolean(turn.task);
  if (turn.task) showTask(turn.task, words);
  else showNothing(words);
}

function showProgress({ mine, mine_today: today, team, total }) {
  byId("progress").hidden = false;
  for (const [id, count] of Object.entries({ mine, today, "of-team": team, total })) say(byId(id), whole(count));
  byId("team").max = Math.max(total, 1);
  byId("team").value = team;
}

function showNothing(words) {
  panel = null;
  document.title = "Nothing left · Keel";
  say(byId("title"), "Nothing left for you");
  const { mine, mine_today: today } = turn.progress;
  say(byId("nothing-words"), mine ? `You have judged everything that is waiting for you: ${whole(mine)} in all, ${whole(today)} today. Thank you.`
    : "There is nothing to judge at the moment.");
  announce(`${words} ${byId("nothing-words").textContent}`);
  setTimeout(() => { if (turn && !turn.task && !document.hidden) load(); }, LOOK_AGAIN);
}

function showTask(task, words) {
  started(task.seconds_left);
  [seconds, since] = [0, document.hidden ? null : performance.now()];
  const names = labels(task.kind, task.answers.length);
  byId("turns").replaceChildren(...conversation(task.prompt, raw));
  byId("answers").replaceChildren(...task.answers.map((answer, at) => card(task, answer, names[at], at)));
  Object.assign(byId("answers").dataset, { kind: task.kind, count: task.answers.length });
  panel = new Verdicts(byId("controls"), { kind: task.kind, count: task.answers.length, dimensions: task.dimensions, changed });
  panel.shown = badges;
  restore(task);
  const title = { pair: "Two answers to compare", score: "An answer to score", ranking: `${task.answers.length} answers to rank` }[task.kind];
  say(byId("title"), title);
  document.title = `${title} · Keel`;
  byId("title").focus({ preventScroll: true });
  scrollTo(0, 0);
  byId("answers").scrollTo(0, 0);
  fit();
  openPrompt();
  badges();
  refresh();
  announce(`${words} ${title}. ${task.said ? "Your earlier verdict is shown; change it or submit it again." : ""}`.trim());
  writeLegend(task);
}

function restore(task) {
  const kept = draft();
  byId("comment").value = kept?.comment ?? "";
  seconds = kept?.seconds ?? 0;
  panel.set(kept?.verdicts ?? task.said ?? {});
  openComment(Boolean(byId("comment").value));
}

function card(task, answer, name, at) {
  const id = `answer-${at}`;
  const title = task.kind === "ranking" ? [element("span", { class: "heard" }, "Answer "), element("kbd", {}, name[0])]
    : task.kind === "pair" ? [...sided(name), element("span", { class: "heard" }, " answer")] : ["Answer"];
  return element("section", { class: `answer place-${at}`, "aria-labelledby": id },
    element("header", {}, element("h2", { id }, ...title), element("span", { class: "badge" }),
      element("span", { class: "length muted" }, length(answer.characters))),
    write(element("div", { class: "prose body", tabindex: "0", role: "region", "aria-labelledby": id }), answer, raw));
}

/** Scroll a chat to its last question, which the answers belong to; a single turn to its start. */
function openPrompt() {
  const turns = [...byId("turns").children];
  const last = turns.findLast((one) => one.classList.contains("user")) ?? turns.at(-1);
  byId("prompt").scrollTop = 0;
  byId("prompt").scrollTop = last.getBoundingClientRect().top - turns[0].getBoundingClientRect().top;
}

/** Switch between rendered Markdown and texts as they were written. */
function toggleRaw() {
  raw = !raw;
  byId("raw").setAttribute("aria-pressed", String(raw));
  announce(raw ? "Texts are shown as they were written." : "Texts are shown as Markdown.");
  if (!turn?.task) return;
  const { prompt, answers } = turn.task;
  for (const [where, texts] of [["#turns .prose", prompt], [".answer .body", answers]]) {
    document.querySelectorAll(where).forEach((node, at) => write(node, texts[at], raw));
  }
  fit();
}

/** Show each answer's rank in the active dimension. */
function badges() {
  if (turn?.task?.kind !== "ranking") return;
  const ranks = panel?.said[panel.active.name]?.ranks;
  document.querySelectorAll(".answer .badge").forEach((badge, at) => say(badge, ranks ? `rank ${ranks[at]}` : ""));
}

/** Let the Tab key stop only at texts that scroll. */
function fit() {
  panel?.fit();
  for (const node of [byId("prompt"), ...document.querySelectorAll(".answer .body")]) {
    if (overflows(node)) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
    node.classList.toggle("overflowing", overflows(node));
  }
  reachable(byId("task"));
}

/** Update the hint and which buttons are enabled. */
function refresh() {
  byId("undo").disabled = byId("nothing-undo").disabled = busy || !turn?.progress.can_undo;
  for (const id of ["skip", "flag"]) byId(id).disabled = busy || !turn?.task;
  if (!panel) return;
  byId("submit").disabled = busy;
  byId("submit").classList.toggle("ready", panel.complete);
  byId("comment-toggle").classList.toggle("filled", Boolean(byId("comment").value.trim()));
  say(byId("hint"), hint());
  byId("hint").classList.remove("urgent");
}

function hint() {
  if (document.body.classList.contains("sending")) return "Saving…";
  const open = panel.missing.length;
  if (panel.many && open) return `${open} of ${panel.rows.length} to go`;
  if (turn.task.kind === "ranking" && !panel.many) return open && singleKeys() ? "Type the letters, best first; a letter again ties it with the one before" : "";
  if (open) return "";
  if (panel.many) return turn.task.said ? "Your earlier verdict; change it or submit" : "All answered";
  return capital(inWords(turn.task.kind, panel.said[panel.active.name], panel.names));
}

function changed(dimension, verdict) {
  keep();
  badges();
  refresh();
  const words = inWords(turn.task.kind, verdict, panel.names);
  announce(`${panel.many ? `${dimension}: ` : ""}${words}. ${panel.complete ? "Enter submits." : ""}`);
}

function askForMissing() {
  const first = panel.missing[0];
  panel.activate(panel.rows.indexOf(first));
  first.focus();
  const words = panel.many ? `Choose for ${first.name} first` : "Choose first";
  say(byId("hint"), words);
  byId("hint").classList.add("urgent");
  announce(words);
}

function openComment(open) {
  byId("comment-row").hidden = !open;
  byId("comment-toggle").setAttribute("aria-expanded", String(open));
}

// --- dialogs

/** Open or close a dialog. If the window is wide, guidelines open beside the task; all else is modal. */
function openDialog(id, focus = null) {
  const dialog = byId(id);
  if (dialog.open) return dialog.close();
  const beside = id === "guidelines" && matchMedia("(min-width: 1100px)").matches;
  dialog.opener = document.activeElement;
  document.body.classList.toggle("beside", beside);
  if (beside) dialog.show();
  else dialog.showModal();
  (focus ?? dialog.querySelector("h2")).focus();
  fit();
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    document.body.classList.remove("beside");
    if (dialog.opener?.isConnected && dialog.opener !== document.body) dialog.opener.focus();
    else byId("title").focus({ preventScroll: true });
    fit();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  for (const button of dialog.querySelectorAll("button.close")) button.addEventListener("click", () => dialog.close());
}

function openFlag() {
  if (!turn?.task || busy) return;
  byId("note").value = "";
  byId("note-problem").textContent = "";
  openDialog("flag-dialog", byId("note"));
}

function flag(event) {
  event?.preventDefault();
  const note = byId("note").value.trim();
  if (!note) {
    byId("note-problem").textContent = "Say in a few words what is wrong.";
    return byId("note").focus();
  }
  byId("flag-dialog").close();
  leave("/flag", { note }, "Flagged.");
}

function writeLegend(task) {
  const letters = labels("ranking", task.answers.length).map(([letter]) => letter);
  const verdicts = {
    pair: [["1 2 3", "left much better, better, slightly better"], ["4", "tie"], ["5 6 7", "right slightly better, better, much better"], ["0", "both bad"]],
    score: [["1 2 3 4 5", "very bad, bad, fair, good, very good"]],
    ranking: [[letters.join(" "), "type them in your order, the best answer first; those left out share the last place"],
      [`${letters.at(-1)} ${letters.at(-1)}`, "a letter once more ties it with the one before, and so on upwards"],
      [`Shift ${letters.at(-1)}`, "moves it down again"], ["=", "all equal"]],
  }[task.kind];
  const rows = panel.many ? [["↑ ↓", task.kind === "ranking" ? "the row above, the row below" : "the row above, the row below; a number goes on to the next by itself"]] : [];
  const commands = [["u", "undo my last"], ["s", "skip: leave it to others"], ["f", "flag, with a note"], ["c", "comment; Ctrl + Enter submits from there"],
    ["r", "texts as they were written, or as Markdown"], ["g", "guidelines"], ["k", "keep the task when its time ends"], ["?", "these keys"]];
  const again = panel.many || task.kind === "ranking" || !singleKeys() ? "" : "; pressing the number again does so, too";
  const lines = [...(singleKeys() ? verdicts : []), ...rows, ["Enter", `submit${again}`], ["Tab", "to texts that scroll, and to every button"], ...(singleKeys() ? commands : [])];
  byId("legend").replaceChildren(...lines.flatMap(([keys, words]) => [
    element("dt", {}, ...keys.split(" ").map((key) => element("kbd", {}, key))), element("dd", {}, words)]));
}

// --- keys and buttons

const singleKeys = () => byId("single-keys").checked;

/** Hide the keys that are switched off. */
function showKeys() {
  document.body.classList.toggle("keys-off", !singleKeys());
  refresh();
  if (panel) writeLegend(turn.task);
}

const COMMANDS = {
  u: undo, s: () => leave("/skip", {}, "Skipped."), f: openFlag, c: comment, g: () => openDialog("guidelines"),
  r: toggleRaw, "?": () => openDialog("keys"), k: () => { if (warned) extend(); },
};

function comment() {
  if (!turn?.task) return;
  openComment(true);
  byId("comment").focus();
}

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || event.altKey) return;
  const writing = event.target.matches("textarea, input:not([type=radio], [type=checkbox])");
  const sends = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (byId("flag-dialog").open) return sends ? flag(event) : undefined;
  if (document.querySelector("dialog:modal")) return closeByKey(event);
  if (event.key === "Escape") return escape(event);
  if (writing && !sends) return;
  if ((event.ctrlKey || event.metaKey) && !sends) return;
  if (event.key === "Enter") return enter(event, sends);
  if (event.key.startsWith("Arrow")) return arrow(event);
  if (!singleKeys() || event.repeat) return;
  const key = keyOf(event);
  const acts = act(key, event.shiftKey);
  if (acts) event.preventDefault();
}

function act(key, shift) {
  if (busy) return true;
  const said = turn?.task ? panel.key(key, shift) : "";
  if (said === "again" && !panel.many) submit();
  if (said) return true;
  if (shift && key !== "?") return false;
  COMMANDS[key]?.();
  return key in COMMANDS;
}

/** Close a dialog by the key that opened it. */
function closeByKey(event) {
  const own = { g: "guidelines", "?": "keys" }[keyOf(event)];
  if (!own || !byId(own).open || !singleKeys()) return;
  event.preventDefault();
  byId(own).close();
}

function escape(event) {
  if (event.target === byId("comment")) {
    if (!byId("comment").value.trim()) openComment(false);
    byId("title").focus({ preventScroll: true });
  } else if (byId("guidelines").open) byId("guidelines").close();
  else return;
  event.preventDefault();
}

function enter(event, sends) {
  if (event.repeat || busy) return event.preventDefault();
  if (!sends && event.target.closest("button, a, summary, [type=checkbox]") && !event.target.closest(".row")) return; // in a row, Space presses the button
  event.preventDefault();
  submit();
}

/** Move between rows by up and down. Left and right are the browser's inside a row; from outside they enter it. */
function arrow(event) {
  if (!panel || busy || event.shiftKey || event.target.closest("[tabindex='0']")) return; // scrollable texts scroll
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (by && panel.many) panel.step(by);
  else if (!by && !byId("controls").contains(event.target)) panel.active.focus();
  else return;
  event.preventDefault();
}

const CLICKS = {
  undo, submit, flag: openFlag, again: load, "nothing-undo": undo, "sign-out": () => { turn = null; signOut(); }, skip: COMMANDS.s,
  raw: toggleRaw, "open-guidelines": COMMANDS.g, "open-keys": COMMANDS["?"], "notice-close": () => hush(),
  "comment-toggle": () => { if (byId("comment-row").hidden) comment(); else openComment(false); },
};
for (const [id, act] of Object.entries(CLICKS)) byId(id).addEventListener("click", () => act());
byId("flag-form").addEventListener("submit", flag);
byId("comment").addEventListener("input", () => { keep(); refresh(); });
byId("single-keys").checked = localStorage.getItem(SINGLE_KEYS) !== "off";
byId("single-keys").addEventListener("change", ({ target }) => {
  localStorage.setItem(SINGLE_KEYS, target.checked ? "on" : "off");
  showKeys();
});
showKeys();
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", watch);
addEventListener("online", () => hurry?.());
addEventListener("resize", fit);
addEventListener("pagehide", keep);
setInterval(tick, 500);
if (!onLink(follow)) load().then(greet);
