// The search page: asks the API as one types, and shows what it says.

import { clearSketch, redraw, select, showSketch, showTokens } from "/page/sketch.js";

const TOP_K = 10;
const EXPLAIN_AFTER = 160; // milliseconds without a key, until the server is asked why
const RETRY_AFTER = 1500; // milliseconds, while the server does not answer
const WEAK = 0.001; // below this a score is not told apart from 0

const number = new Intl.NumberFormat("en");
const byId = (id) => document.getElementById(id);
const input = byId("query");
const root = document.documentElement;

let model = null;
let answer = { query: "", labels: [], scores: [], why: null };
let selected = -1;
let asking = null; // the request in flight
let explainTimer = 0, retryTimer = 0, toastTimer = 0;

// --- the API ---

class Problem extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = sessionStorage.getItem("machxc-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await fetch(path, options);
  const content = await response.json();
  if (!response.ok) throw new Problem(content.error.message, response.status, Number(response.headers.get("Retry-After")));
  return content;
}

// --- asking ---

function ask() {
  const query = input.value;
  asking?.abort();
  clearTimeout(explainTimer);
  clearTimeout(retryTimer);
  history.replaceState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
  if (!query.trim()) return clear();
  asking = new AbortController();
  search(query, false, asking.signal);
  explainTimer = setTimeout(search, EXPLAIN_AFTER, query, true, asking.signal);
}

async function search(query, explain, signal) {
  try {
    if (!model) await loadModel();
    const started = performance.now();
    const found = await call("/v1/search", { queries: [parsed(query)], top_k: TOP_K, explain }, signal);
    if (signal.aborted || (!explain && answer.query === query && answer.why)) return;
    if (found.model !== model.number) await loadModel();
    solved();
    show(query, found, performance.now() - started);
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) failed(error);
  }
}

function parsed(query) {
  if (model.takes === "texts") return query;
  const pairs = query.trim().split(/[\s,]+/).map((pair) => pair.split(":").map(Number));
  if (!pairs.every(([index, value = 1]) => Number.isInteger(index) && Number.isFinite(value))) {
    throw new Problem("This model takes features: type them as index:value, such as 3:1 17:0.5", 422);
  }
  return { indices: pairs.map(([index]) => index), values: pairs.map(([, value = 1]) => value) };
}

// --- showing ---

function show(query, found, roundTrip) {
  const result = found.results[0];
  const same = answer.query === query && answer.labels.join("\n") === result.labels.join("\n");
  answer = { query, ...result, why: result.why ?? null };
  if (!same) {
    selected = answer.labels.length ? 0 : -1;
    byId("results").replaceChildren(...answer.labels.map(item));
    input.setAttribute("aria-expanded", String(answer.labels.length > 0));
    byId("hint").hidden = answer.labels.length > 0;
    byId("hint").textContent = "No label: the query says nothing that was met in training.";
    mark();
  }
  if (!answer.why) byId("timing").textContent = `${found.milliseconds.toFixed(1)} ms in the server, ${Math.round(roundTrip)} ms here`;
  root.classList.toggle("stale", false);
  if (answer.why && answer.labels.length) {
    showSketch(answer.why, model, Math.max(0, selected));
    showTokens(answer.why.tokens, answer.labels[0]);
  } else if (!answer.labels.length) clearSketch();
}

function item(label, i) {
  const score = answer.scores[i];
  const element = document.createElement("li");
  element.id = `label-${i}`;
  element.setAttribute("role", "option");
  element.classList.toggle("weak", score < WEAK);
  const name = document.createElement("span");
  name.className = "name";
  name.dir = "auto";
  name.textContent = label;
  const value = document.createElement("span");
  value.className = "score";
  value.textContent = score >= WEAK ? score.toFixed(3) : score < 0 ? score.toFixed(3) : "<0.001";
  value.title = String(score);
  const track = document.createElement("span");
  track.className = "track";
  const bar = document.createElement("i");
  bar.style.width = `${100 * Math.max(0, score / Math.max(1, answer.scores[0]))}%`;
  track.append(bar);
  element.append(name, value, track);
  element.addEventListener("click", () => { selected = i; mark(); });
  return element;
}

function mark() {
  [...byId("results").children].forEach((element, i) => element.setAttribute("aria-selected", String(i === selected)));
  if (selected < 0) return input.removeAttribute("aria-activedescendant");
  input.setAttribute("aria-activedescendant", `label-${selected}`);
  byId(`label-${selected}`).scrollIntoView({ block: "nearest" });
  select(selected);
}

function clear() {
  answer = { query: "", labels: [], scores: [], why: null };
  selected = -1;
  byId("results").replaceChildren();
  byId("timing").textContent = "";
  byId("hint").hidden = false;
  byId("hint").textContent = "The likeliest labels appear here as you type.";
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
  solved();
  clearSketch();
}

// --- what goes wrong ---

function failed(error) {
  root.classList.add("stale");
  if (error.status === 401) return askForKey();
  const problem = byId("problem");
  problem.hidden = false;
  problem.classList.toggle("busy", error.status === 429 || error.status === 503);
  if (error.status === 422 || error.status === 413) {
    problem.textContent = error.message;
    return;
  }
  const away = error.status === undefined;
  problem.textContent = away ? "The server does not answer. Trying again …" : `${error.message}. Trying again …`;
  retryTimer = setTimeout(ask, Math.max(RETRY_AFTER, 1000 * (error.retryAfter || 0)));
}

function solved() {
  byId("problem").hidden = true;
  byId("key-form").hidden = true;
  root.classList.remove("stale");
}

function askForKey() {
  byId("problem").hidden = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("machxc-key", byId("key").value);
  byId("key-form").hidden = true;
  begin();
});

// --- the model's facts ---

async function loadModel() {
  model = await call("/v1/model");
  document.title = `machxc · ${model.name}`;
  byId("model-name").textContent = model.name;
  input.placeholder = model.takes === "texts" ? "Type a query, in any script" : "Features, as 3:1 17:0.5";
  if (model.takes === "texts") input.maxLength = model.limits.max_text;
  byId("facts").replaceChildren(...facts());
  byId("examples").hidden = model.examples.length === 0;
  byId("examples").replaceChildren("Try ", ...model.examples.map(exampleButton));
}

function facts() {
  const { answered, expected } = model.repetitions;
  const found = [
    fact(number.format(model.n_labels), "labels"),
    fact(number.format(answered), `${answered === 1 ? "repetition" : "repetitions"} of ${number.format(model.n_buckets)} buckets`),
    fact(number.format(model.n_samples), "samples learnt"),
    fact((model.bytes / 1e6).toPrecision(3), "MB on disk"),
  ];
  if (answered < expected) {
    const missing = fact(`${answered} of ${expected}`, "repetitions answer: less precise than it could be");
    missing.className = "warn";
    found.push(missing);
  }
  return found;
}

function fact(value, words) {
  const element = document.createElement("span");
  const strong = document.createElement("b");
  strong.textContent = value;
  element.append(strong, ` ${words}`);
  return element;
}

function exampleButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.dir = "auto";
  button.textContent = text;
  button.addEventListener("click", () => { input.value = text; ask(); input.focus(); });
  return button;
}

// --- keys, themes, beginning ---

function move(step) {
  if (!answer.labels.length) return;
  selected = (selected + step + answer.labels.length) % answer.labels.length;
  mark();
}

async function copy() {
  const label = answer.labels[selected];
  if (label === undefined) return;
  const done = await navigator.clipboard?.writeText(String(label)).then(() => true, () => false);
  toast(done ? `Copied: ${label}` : String(label));
}

function toast(text) {
  clearTimeout(toastTimer);
  byId("toast").textContent = text;
  byId("toast").hidden = false;
  toastTimer = setTimeout(() => { byId("toast").hidden = true; }, 1800);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target instanceof HTMLInputElement;
  const actions = {
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    Enter: () => (event.target === input ? copy() : null),
    Escape: () => { input.value = ""; ask(); input.focus(); },
    "/": () => (typing ? null : input.focus()),
    "?": () => (typing && input.value ? null : byId("help").showModal()),
  };
  const action = event.target.id === "key" ? undefined : actions[event.key];
  if (!action || (event.key === "/" && typing) || (event.key === "?" && typing && input.value)) return;
  if (event.key === "Enter" && event.target !== input) return;
  event.preventDefault();
  action();
});

const THEMES = ["auto", "light", "dark"];
const preference = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const theme = localStorage.getItem("machxc-theme") ?? "auto";
  root.toggleAttribute("data-dark", theme === "dark" || (theme === "auto" && preference.matches));
  byId("theme").textContent = `Theme: ${theme}`;
  redraw();
}

byId("theme").addEventListener("click", () => {
  const theme = localStorage.getItem("machxc-theme") ?? "auto";
  localStorage.setItem("machxc-theme", THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  applyTheme();
});
byId("help-button").addEventListener("click", () => byId("help").showModal());
preference.addEventListener("change", applyTheme);
addEventListener("resize", redraw);
input.addEventListener("input", ask);

async function begin() {
  try {
    await loadModel();
    ask();
  } catch (error) {
    failed(error);
    if (error.status !== 401) retryTimer = setTimeout(begin, RETRY_AFTER);
  }
}

applyTheme();
input.value = new URLSearchParams(location.search).get("q") ?? "";
begin();
