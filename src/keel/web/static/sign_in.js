// Signing in by a token that is pasted, or that stands in the address behind `#token=`.

import { byId, request } from "./common.js";

const form = byId("form"), field = byId("token"), problem = byId("problem"), button = byId("go");

async function signIn(token) {
  button.disabled = true;
  problem.textContent = "";
  let said = "There is no connection to the server. Try again in a moment.";
  try {
    const { status, body } = await request("POST", "/api/sign-in", { token });
    if (status === 200) return location.replace("/");
    said = body.error ?? `The server answered ${status}. Try again in a moment.`;
  } catch { /* said above */ }
  button.disabled = false;
  problem.textContent = said;
  field.setAttribute("aria-invalid", "true");
  field.focus();
  field.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const token = field.value.trim();
  if (token) signIn(token);
  else {
    problem.textContent = "Paste your token first.";
    field.focus();
  }
});
field.addEventListener("input", () => field.removeAttribute("aria-invalid"));

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", location.pathname); // no token stays in the history
  signIn(given.trim());
}
