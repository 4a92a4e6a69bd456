// Buttons that act: one POST each, sent once however often it has to be sent, and told in words to everybody.

/** Keys of requests that got no answer: the next try sends the same one, so nothing is done twice. */
const unanswered = new Map();

function newKey() {
  // randomUUID needs a secure context, which plain http from another machine is not
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function tell(text, tone) {
  const line = document.getElementById("action-status");
  line.textContent = text;
  line.dataset.tone = tone;
}

/** What an answer means to the person who pressed the button. */
function sentence(label, answer) {
  if ("changed" in answer) {
    const refused = answer.refused ? `, ${answer.refused} refused` : "";
    const left = answer.left ? `, ${answer.left} more to do` : "";
    return `${label}: ${answer.changed} changed${refused}${left}.`;
  }
  const asked = answer.cancel_requested ? ", asked to stop" : answer.pause_requested ? ", asked to pause" : "";
  return `${label}: it is ${answer.state}${asked}.`;
}

function refusal(label, status, problem) {
  if (status === 401) return `${label}: log in first.`;
  if (status === 403 && problem.type?.endsWith(":scope-missing")) return `${label}: this needs a token that may write.`;
  return `${label}: ${problem.detail ?? `the server answered ${status}`}`;
}

async function act(button, onDone) {
  const { url, body, question } = button.dataset;
  const label = button.getAttribute("aria-label") ?? button.textContent.trim();
  if (button.getAttribute("aria-disabled") === "true" || (question && !window.confirm(question))) return;
  // not `disabled`, which would take the keyboard's focus away
  button.setAttribute("aria-disabled", "true");
  tell(`${label}…`, "quiet");
  const wish = `${url} ${body ?? ""}`;
  const key = unanswered.get(wish) ?? newKey();
  unanswered.set(wish, key);
  try {
    const headers = { Accept: "application/json", "Idempotency-Key": key };
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(url, { method: "POST", headers, body: body || undefined, credentials: "same-origin" });
    unanswered.delete(wish);
    const answer = await response.json().catch(() => ({}));
    const made = response.headers.get("Location")?.match(/^\/api\/v1(\/studies\/[^/]+)$/);
    if (response.ok && made) location.assign(made[1]); // something new, with a page of its own
    else if (response.ok) tell(sentence(label, answer), "good");
    else tell(refusal(label, response.status, answer), "bad");
  } catch {
    tell(`${label}: the server does not answer. Press again: it will not be done twice.`, "bad");
  } finally {
    button.removeAttribute("aria-disabled");
    onDone();
  }
}

/** Listens for the whole page: buttons come and go with its live parts. */
export function startActions(root, onDone) {
  root.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-action]");
    if (button) act(button, onDone);
  });
}
