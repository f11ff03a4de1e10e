// The controls for a verdict, a row for each dimension, on the pages for raters and for adjudicators.

import { element } from "./common.js";

const PAIR = [
  { key: "1", verdict: { outcome: "first", strength: 3 }, words: "much better" },
  { key: "2", verdict: { outcome: "first", strength: 2 }, words: "better" },
  { key: "3", verdict: { outcome: "first", strength: 1 }, words: "slightly better", short: "slightly" },
  { key: "4", verdict: { outcome: "tie" }, words: "tie" },
  { key: "5", verdict: { outcome: "second", strength: 1 }, words: "slightly better", short: "slightly" },
  { key: "6", verdict: { outcome: "second", strength: 2 }, words: "better" },
  { key: "7", verdict: { outcome: "second", strength: 3 }, words: "much better" },
  { key: "0", verdict: { outcome: "both_bad" }, words: "both bad" },
];
const SCORES = ["very bad", "bad", "fair", "good", "very good"].map((words, at) => (
  { key: String(at + 1), verdict: { value: at + 1 }, words }));

const SIDES = { first: ["Left", "Upper"], second: ["Right", "Lower"] };
const PLACES = "ABDEHIJLMNOPQTVWXYZ"; // the letters that are not commands

/** Return the names of the answers: Left and Right (Upper and Lower on a narrow page), or letters that are also keys. */
export function labels(kind, count) {
  if (kind === "pair") return [SIDES.first, SIDES.second];
  if (kind === "score") return [["Answer", "Answer"]];
  const letters = count > PLACES.length ? [...Array(count).keys()].map((n) => String(n + 1)) : [...PLACES.slice(-count)];
  return letters.map((letter) => [letter, letter]);
}

/** Return one name for a wide page and another for a narrow one, with answers below each other. */
export const sided = ([wide, narrow]) => wide === narrow ? [wide]
  : [element("span", { class: "wide" }, wide), element("span", { class: "narrow" }, narrow)];

/** Return a verdict in words: "Left much better". */
export function inWords(kind, verdict, names) {
  if (kind === "ranking") return orderInWords(verdict.ranks, names.map(([wide]) => wide));
  if (kind === "score") return SCORES[verdict.value - 1] ? `${verdict.value}, ${SCORES[verdict.value - 1].words}` : String(verdict.value);
  const place = PAIR.find((one) => one.verdict.outcome === verdict.outcome && one.verdict.strength === verdict.strength);
  const side = { first: names[0], second: names[1] }[verdict.outcome];
  const narrow = matchMedia("(max-width: 720px)").matches ? 1 : 0;
  return [side?.[narrow], place?.words ?? "better"].filter(Boolean).join(" ");
}

function orderInWords(ranks, letters) {
  const tiers = new Map();
  ranks.forEach((rank, at) => tiers.set(rank, [...(tiers.get(rank) ?? []), letters[at]]));
  return [...tiers].sort(([a], [b]) => a - b).map(([, names]) => names.join(" = ")).join(" › ");
}

const ROW = 54; // height of a row in pixels
const SHARE = 0.22; // share of the window's height that rows may take

let made = 0; // number of panels on this page, for unique names

/** Rows of controls in `box`; `changed(dimension, verdict)` is called after each choice. */
export class Verdicts {
  constructor(box, { kind, count, dimensions, changed = () => {} }) {
    Object.assign(this, { box, kind, changed, names: labels(kind, count), many: dimensions.length > 1, said: {} });
    const id = `v${made++}`;
    const Row = kind === "ranking" ? RankingRow : ChoiceRow;
    this.rows = dimensions.map((dimension, at) => new Row(this, dimension, `${id}-${at}`));
    this.pager = this.many ? this.makePager() : null;
    this.chips = this.many ? this.rows.map((row, at) => this.chip(row, at)) : [];
    const chips = element("div", { class: "chips", role: "group", "aria-label": "Dimensions" }, ...this.chips);
    box.replaceChildren(...(this.many ? [chips] : []), ...this.rows.map((row) => row.node), ...(this.many ? [this.pager] : []));
    box.dataset.kind = kind;
    box.dataset.rows = this.rows.length;
    this.activate(0);
  }

  get active() { return this.rows[this.at]; }
  get missing() { return this.rows.filter((row) => !this.said[row.name]); }
  get complete() { return this.missing.length === 0; }

  /** Return the verdicts by dimension as the server takes them. */
  value() { return structuredClone(this.said); }

  /** Show earlier verdicts; unknown dimensions are left out. */
  set(said) {
    for (const row of this.rows) if (said?.[row.name]) row.set(said[row.name]);
    this.drawChips();
    this.activate(Math.max(0, this.rows.findIndex((row) => !this.said[row.name])));
  }

  activate(at) {
    this.at = Math.min(Math.max(at, 0), this.rows.length - 1);
    this.rows.forEach((row, place) => row.node.classList.toggle("active", place === this.at));
    this.drawChips();
    if (this.pager) {
      const [back, where, on] = this.pager.children;
      where.textContent = `${this.at + 1} of ${this.rows.length}`;
      back.disabled = this.at === 0;
      on.disabled = this.at === this.rows.length - 1;
    }
    this.shown?.(this.active);
  }

  /** Return the chip of a row, shown if there is no room for all rows: its verdict so far, and a way to the row. */
  chip(row, at) {
    const one = element("button", { type: "button", class: "chip" }, element("span", {}, row.name), element("span", { class: "told" }));
    one.addEventListener("click", () => { this.activate(at); this.active.focus(); });
    return one;
  }

  drawChips() {
    this.chips.forEach((chip, at) => {
      const verdict = this.said[this.rows[at].name];
      chip.setAttribute("aria-current", String(at === this.at));
      chip.lastChild.textContent = verdict ? inWords(this.kind, verdict, this.names) : "";
    });
  }

  /** Show only the active row, and the others as chips, if all rows would exceed their share of the window. */
  fit() { this.box.classList.toggle("compact", this.many && this.rows.length * ROW > SHARE * innerHeight); }

  makePager() {
    const button = (words, by) => {
      const one = element("button", { type: "button" }, words);
      one.addEventListener("click", () => this.activate(this.at + by));
      return one;
    };
    return element("div", { class: "pager" }, button("‹ Back", -1), element("span", {}), button("Next ›", 1));
  }

  /** Store a row's verdict; `onwards` goes to the next row, if there is one. */
  chosen(row, verdict, onwards) {
    this.said[row.name] = verdict;
    this.activate(this.rows.indexOf(row) + (onwards ? 1 : 0));
    this.changed(row.name, verdict);
    if (onwards && this.box.contains(document.activeElement)) this.active.focus();
  }

  /** Pass a key to the active row; return "chosen", "again" if that was chosen already, "" if the row has no such key. */
  key(key, shift) { return this.active.key(key, shift); }

  /** Go up or down between rows; return whether there was a row to go to. */
  step(by) {
    const to = this.at + by;
    if (to < 0 || to >= this.rows.length) return false;
    this.activate(to);
    this.active.focus();
    return true;
  }
}

function heading(row, id) {
  const { name, question } = row.dimension;
  return element("div", { class: "asked", id: `${id}-asked` },
    row.panel.many || name !== "overall" ? element("span", { class: "dimension" }, name) : null,
    question ? element("span", { class: "question" }, question) : null);
}

class ChoiceRow {
  constructor(panel, dimension, id) {
    Object.assign(this, { panel, dimension, name: dimension.name });
    this.places = panel.kind === "pair" ? PAIR : SCORES;
    this.choices = this.places.map((place) => this.choice(place, id));
    const sides = panel.kind === "pair" ? this.sides() : [];
    this.node = element("div", { class: `row ${panel.kind}`, role: "radiogroup", "aria-labelledby": `${id}-asked` },
      heading(this, id), element("div", { class: "scale" }, ...sides, ...this.choices.map(({ label }) => label)));
  }

  sides() {
    return ["first", "second"].map((side) => element("span", { class: `side ${side}`, "aria-hidden": "true" },
      element("span", {}, ...sided(this.panel.names[side === "first" ? 0 : 1]), " is")));
  }

  choice(place, id) {
    const input = element("input", { type: "radio", name: id, value: place.key });
    const side = SIDES[place.verdict.outcome];
    const label = element("label", { class: `choice ${place.verdict.outcome ?? "score"}`, "data-key": place.key, "data-strength": place.verdict.strength ?? 0 },
      input, element("kbd", { "aria-hidden": "true" }, place.key),
      element("span", { class: "words" },
        side ? element("span", { class: "heard" }, ...sided(side), " ") : null,
        ...sided([place.words, place.short ?? place.words])));
    input.addEventListener("change", () => this.choose(place, false));
    input.addEventListener("focus", () => this.panel.active !== this && this.panel.activate(this.panel.rows.indexOf(this)));
    return { place, input, label };
  }

  choose(place, onwards) {
    const found = this.choices.find((choice) => choice.place === place);
    found.input.checked = true;
    this.panel.chosen(this, { ...place.verdict }, onwards);
  }

  set(verdict) {
    const same = ({ verdict: one }) => one.outcome === verdict.outcome && one.value === verdict.value && (one.strength ?? 0) === (verdict.strength ?? 0);
    const found = this.choices.find(({ place }) => same(place));
    if (!found) return;
    found.input.checked = true;
    this.panel.said[this.name] = { ...found.place.verdict };
  }

  key(key) {
    const place = this.places.find((one) => one.key === key);
    if (!place) return "";
    const again = this.choices.find((choice) => choice.place === place).input.checked;
    this.choose(place, true);
    return again ? "again" : "chosen";
  }

  focus() {
    (this.choices.find(({ input }) => input.checked) ?? this.choices[0]).input.focus();
  }
}

/** Answers in tiers, the best first. A key or a button moves one up: out of a tie, or into a tie with those above. */
class RankingRow {
  constructor(panel, dimension, id) {
    Object.assign(this, { panel, dimension, name: dimension.name });
    this.letters = panel.names.map(([letter]) => letter);
    this.tiers = [this.letters.map((_, at) => at)];
    this.touched = new Set(); // answers moved since all were equal
    this.places = this.letters.map((letter, at) => this.place(letter, at));
    this.order = element("output", { class: "order" });
    this.equal = element("button", { type: "button", class: "equal", "aria-keyshortcuts": "=" }, "All equal ", element("kbd", { "aria-hidden": "true" }, "="));
    this.equal.addEventListener("click", () => this.key("="));
    this.node = element("div", { class: "row ranking", role: "group", tabindex: "-1", "aria-labelledby": `${id}-asked` }, heading(this, id),
      element("div", { class: "scale" }, ...this.places.map(({ node }) => node), this.equal, this.order));
    this.node.addEventListener("focusin", () => this.panel.active !== this && this.panel.activate(this.panel.rows.indexOf(this)));
    this.draw(false);
  }

  place(letter, at) {
    const button = (words, sign, by) => {
      const one = element("button", { type: "button", "aria-label": words }, sign);
      one.addEventListener("click", () => this.move(at, by));
      return one;
    };
    const rank = element("b", { class: "rank" });
    const up = button(`Move ${letter} up`, "▲", -1), down = button(`Move ${letter} down`, "▼", 1);
    return { rank, node: element("div", { class: "place" }, element("kbd", {}, letter), rank, up, down) };
  }

  get ranks() {
    const ranks = [];
    let rank = 1;
    for (const tier of this.tiers) {
      for (const at of tier) ranks[at] = rank;
      rank += 1; // ties leave no gap: 1, 1, 2
    }
    return ranks;
  }

  move(at, by) {
    this.touched.add(at);
    const from = this.tiers.findIndex((tier) => tier.includes(at));
    const rest = this.tiers[from].filter((other) => other !== at);
    if (rest.length) this.tiers.splice(from, 1, ...(by < 0 ? [[at], rest] : [rest, [at]]));
    else if (this.tiers[from + by]) {
      this.tiers[from + by] = [...this.tiers[from + by], at].sort((a, b) => a - b);
      this.tiers.splice(from, 1);
    }
    this.tell();
  }

  /** Say whether an answer is last already: typing all letters from best to worst must not tie the last two. */
  isLast(at) {
    return !this.touched.has(at) && this.tiers.length > 1 && this.tiers.at(-1).length === 1 && this.tiers.at(-1)[0] === at;
  }

  tell() {
    this.draw(true);
    this.panel.chosen(this, { ranks: this.ranks }, false);
  }

  draw(answered) {
    const ranks = this.ranks;
    this.places.forEach(({ rank, node }, at) => {
      rank.textContent = answered ? ranks[at] : "–";
      node.classList.toggle("best", answered && ranks[at] === 1);
    });
    this.order.textContent = answered ? orderInWords(ranks, this.letters) : "";
  }

  set({ ranks }) {
    if (ranks?.length !== this.letters.length) return;
    const sorted = [...new Set(ranks)].sort((a, b) => a - b);
    this.tiers = sorted.map((rank) => ranks.flatMap((one, at) => (one === rank ? [at] : [])));
    this.touched = new Set(ranks.keys());
    this.draw(true);
    this.panel.said[this.name] = { ranks: this.ranks };
  }

  key(key, shift) {
    if (key === "=") {
      this.tiers = [this.letters.map((_, at) => at)];
      this.touched.clear();
      this.tell();
      return "chosen";
    }
    const at = this.letters.indexOf(key.toUpperCase());
    if (at < 0) return "";
    if (!shift && this.isLast(at)) this.touched.add(at);
    else this.move(at, shift ? 1 : -1);
    return "chosen";
  }

  /** Focus the row itself rather than a button, so that Enter submits. */
  focus() { this.node.focus(); }
}
