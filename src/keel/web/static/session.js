// Sign-in by a personal token from a field, or from a link that has it after `#token=`.

import { request } from "./common.js";

const ARRIVED = "keel-arrived"; // who has just signed in by a link; the next page says so once

/** Return the token of a personal link, or of its end; null if the text is none. */
const linked = (text) => new URLSearchParams(text.slice(text.indexOf("#") + 1)).get("token")?.trim() || null;

/** Return the token of a pasted text, which is the token or the whole link. */
export const tokenOf = (pasted) => linked(pasted) ?? pasted.trim();

/** Sign in the owner of a token: return {name}, or {problem} in words, with nothing changed. */
export async function signIn(token) {
  try {
    const { status, body } = await request("POST", "/api/sign-in", { token });
    return status === 200 ? { name: body.name } : { problem: body.error ?? `The server answered ${status}. Try again in a moment.` };
  } catch {
    return { problem: "There is no connection to the server. Try again in a moment." };
  }
}

/** Call `act(token)` when a personal link opens this page or is followed on it; the token is taken out of the address. */
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

/** Sign in by a link while somebody is signed in, and load the page anew; return only if there is a problem, in words. */
export async function become(token, name, leave = () => {}) {
  const found = await signIn(token);
  if (found.problem) return `${found.problem.replace(/\.?$/, ".")} You are still ${name}.`;
  leave(found.name);
  sessionStorage.setItem(ARRIVED, found.name);
  location.replace("/");
  return new Promise(() => {}); // wait for the new page
}

/** Return the name of whoever has just signed in by a link; null the second time. */
export function arrived() {
  const name = sessionStorage.getItem(ARRIVED);
  sessionStorage.removeItem(ARRIVED);
  return name;
}
