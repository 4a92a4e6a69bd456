// The SQL page: asks the console, shows its answer as text, tells its refusals.
const byId = (id) => document.getElementById(id);
const form = byId("sql-form");
const canned = byId("sql-canned");
const text = byId("sql-text");
const params = byId("sql-params");
const status = byId("sql-status");
const problem = byId("sql-problem");
const stop = byId("sql-stop");

/** The query that runs now; aborting it ends it on the server. Asking again takes its place, so no button is barred. */
let running = null;

/** Names of the parameters in the text, in order; what stands in quotes or comments is no parameter. */
function parameterNames(sql) {
  const bare = sql.replace(/'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|\/\*[\s\S]*?\*\//g, " ");
  return [...new Set([...bare.matchAll(/(?<![:\w]):([A-Za-z_]\w*)/g)].map((match) => match[1]))];
}

/** What the chosen question says of its parameters, by name. */
function known() {
  const list = JSON.parse(canned.selectedOptions[0]?.dataset.parameters ?? "[]");
  return Object.fromEntries(list.map((parameter) => [parameter.name, parameter]));
}

function startingValue(parameter) {
  if (parameter?.default === null || parameter?.default === undefined) return "";
  if (parameter.kind !== "time") return String(parameter.default);
  return new Date(Date.now() - parameter.default * 3_600_000).toISOString().slice(0, 19).replace("T", " ");
}

/** One input for each parameter of the text; what a person wrote stays. */
function showParameters({ fresh = false } = {}) {
  const written = fresh ? {} : values((input) => input.value);
  const described = known();
  params.replaceChildren(
    ...parameterNames(text.value).map((name) => {
      const field = document.createElement("div");
      field.className = "sql-field";
      const label = document.createElement("label");
      label.htmlFor = `sql-param-${name}`;
      label.textContent = described[name] ? `${name}: ${described[name].meaning}` : name;
      const input = document.createElement("input");
      input.id = label.htmlFor;
      input.dataset.name = name;
      input.spellcheck = false;
      input.value = written[name] ?? startingValue(described[name]);
      field.append(label, input);
      return field;
    }),
  );
  params.hidden = !params.children.length;
}

function values(of) {
  return Object.fromEntries([...params.querySelectorAll("input")].map((input) => [input.dataset.name, of(input)]));
}

/** Nothing is null, what looks like a number is one unless the question asks for a text. */
function asValue(input) {
  const kind = known()[input.dataset.name]?.kind;
  if (input.value === "") return null;
  const isNumber = /^-?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(input.value) && kind !== "text" && kind !== "time";
  return isNumber ? Number(input.value) : input.value;
}

function tell(words, failure = "") {
  const old = failure && !byId("sql-result").hidden;
  status.textContent = old ? "The rows below are those of the query before." : words;
  problem.textContent = failure;
  problem.hidden = !failure;
}

function setRunning(controller) {
  running = controller;
  stop.hidden = controller === null;
  byId("sql-result").setAttribute("aria-busy", String(controller !== null));
}

/** The console's answer to the query, or null after a refusal, which is told. */
async function ask(accept) {
  running?.abort();
  const controller = new AbortController();
  setRunning(controller);
  tell("running …");
  try {
    const response = await fetch("/api/v1/sql", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: accept },
      body: JSON.stringify({ query: text.value, params: values(asValue) }),
      signal: controller.signal,
    });
    if (response.ok) return accept === "text/csv" ? { blob: await response.blob(), response } : await response.json();
    const body = await response.json().catch(() => ({}));
    tell("", body.detail ?? `${response.status} ${response.statusText}`);
  } catch (error) {
    if (running !== controller) return null; // another query took its place
    if (error.name === "AbortError") tell("stopped");
    else tell("", "The server does not answer.");
  } finally {
    if (running === controller) setRunning(null);
  }
  return null;
}

function cell(value) {
  const element = document.createElement("td");
  if (value === null) {
    element.className = "missing";
    element.textContent = "null";
  } else if (typeof value === "number") {
    element.className = "num";
    element.textContent = Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
    element.title = String(value); // every digit; so has the CSV
  } else {
    element.textContent = typeof value === "object" ? JSON.stringify(value) : String(value);
  }
  return element;
}

function row(cells) {
  const element = document.createElement("tr");
  element.append(...cells);
  return element;
}

function show(answer) {
  const numeric = answer.columns.map((_, i) => answer.rows.some((cells) => typeof cells[i] === "number"));
  const head = document.createElement("thead");
  head.append(
    row(
      answer.columns.map((name, i) => {
        const element = document.createElement("th");
        element.scope = "col";
        element.textContent = name;
        if (numeric[i]) element.className = "num";
        return element;
      }),
    ),
  );
  const body = document.createElement("tbody");
  body.append(...answer.rows.map((cells) => row(cells.map(cell))));
  byId("sql-table").replaceChildren(head, body);
  byId("sql-result").hidden = false;
  const count = `${answer.rows.length.toLocaleString()} ${answer.rows.length === 1 ? "row" : "rows"}`;
  const cut = { rows: ", and there are more: use LIMIT and WHERE", bytes: ", then the answer grew too large" };
  tell(`${count} in ${answer.seconds.toFixed(2)} s${cut[answer.truncated] ?? ""}`);
}

async function run() {
  if (!text.value.trim()) {
    tell("", "There is nothing to run: write a SELECT.");
    text.focus();
    return;
  }
  const answer = await ask("application/json");
  if (answer) show(answer);
}

async function download() {
  const answer = await ask("text/csv");
  if (!answer) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(answer.blob);
  link.download = `${canned.value || "query"}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  const cut = answer.response.headers.get("x-truncated");
  tell(cut ? `downloaded; ${cut} were cut short` : "downloaded");
}

canned.addEventListener("change", () => {
  const { sql } = canned.selectedOptions[0].dataset;
  if (sql) text.value = sql;
  showParameters({ fresh: true });
});
text.addEventListener("input", () => showParameters());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("sql-csv").addEventListener("click", download);
stop.addEventListener("click", () => running?.abort());
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
// wherever the focus is: who pressed Run may be reading the rows
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
showParameters(); // a browser may have kept what was written
