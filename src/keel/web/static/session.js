// Signing in by a personal token, which comes from a field, or from a link that carries it behind `#token=`.

import { request } from "./common.js";

const ARRIVED = "keel-arrived"; // who has just come in by a link, told once on the page that comes next

/** The token of a personal link, or of its end; null where the text is none. */
const linked = (text) => new URLSearchParams(text.slice(text.indexOf("#") + 1)).get("token")?.trim() || null;

/** What somebody has pasted: the token, or the whole link. */
export const tokenOf = (pasted) => linked(pasted) ?? pasted.trim();

/** {name} of whom the token belongs to, who is then signed in; else {problem} in words, and all stays as it was. */
export async function signIn(token) {
  try {
    const { status, body } = await request("POST", "/api/sign-in", { token });
    return status === 200 ? { name: body.name } : { problem: body.error ?? `The server answered ${status}. Try again in a moment.` };
  } catch {
    return { problem: "There is no connection to the server. Try again in a moment." };
  }
}

/** Calls `act(token)` when a personal link is followed, into this page or while it is open. No token stays in the address. */
export function onLink(act) {
  const look = () => {
    const token = linked(location.hash);
    if (!token) return false;
    history.replaceState(null, "", location.pathname + location.search);
    act(token);
    return true;
  };
  addEventListener("hashchange", look);
  return look();
}

/** Signs in by a link where somebody is signed in already: the page comes anew as theirs. Returns only a problem, in words. */
export async function become(token, name, leave = () => {}) {
  const found = await signIn(token);
  if (found.problem) return `${found.problem.replace(/\.?$/, ".")} You are still ${name}.`;
  leave(found.name);
  sessionStorage.setItem(ARRIVED, found.name);
  location.replace("/");
  return new Promise(() => {}); // nothing is done here any more
}

/** Who has just come in by a link; null the second time. */
export function arrived() {
  const name = sessionStorage.getItem(ARRIVED);
  sessionStorage.removeItem(ARRIVED);
  return name;
}
