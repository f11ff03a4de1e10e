// Sign-in by a token: pasted alone, pasted as a whole link, or in the address after `#token=`.

import { byId } from "./common.js";
import { onLink, signIn, tokenOf } from "./session.js";

const form = byId("form"), field = byId("token"), problem = byId("problem"), button = byId("go");

async function enter(token) {
  button.disabled = true;
  problem.textContent = "";
  const found = await signIn(token);
  if (found.name) return location.replace("/");
  button.disabled = false;
  problem.textContent = found.problem;
  field.setAttribute("aria-invalid", "true");
  field.focus();
  field.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const token = tokenOf(field.value);
  if (token) enter(token);
  else {
    problem.textContent = "Paste your token first.";
    field.focus();
  }
});
field.addEventListener("input", () => field.removeAttribute("aria-invalid"));
button.disabled = false; // disabled until here: a form sent by the browser itself would put the token into the address
onLink(enter);
