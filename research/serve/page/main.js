// The page: choose a model, give an input, see the prediction, or the text if the model writes one.

import * as api from "./api.js";
import {byId, element} from "./dom.js";
import {explanation} from "./explanation.js";
import {areAlike, inputOf} from "./inputs.js";
import {answer, facts, inWords} from "./result.js";
import * as snippets from "./snippets.js";
import {writes, writing} from "./writing.js";

const HISTORY = 20;
const WAIT = 2000; // milliseconds until a service without models is asked again
const REFRESH = 10000; // until it is asked for newer ones

const page = {models: [], input: null, running: null, history: [], timer: 0};

const model = () => page.models.find((each) => each.name === byId("model").value);
const other = () => page.models.find((each) => each.name === byId("other").value) ?? null;

function say(text) {
  byId("status").textContent = text;
}

function show(error, place = "error") {
  const needsKey = error?.status === 401;
  byId(place).textContent = error && !needsKey ? error.message : "";
  if (!needsKey) return;
  byId("key").hidden = false;
  if (api.hasKey()) byId("key-hint").textContent = "The service does not know this key.";
  byId("key-value").focus();
}

const option = (name, text = name) => element("option", {value: name}, text);

async function load() {
  const before = document.activeElement;
  clearTimeout(page.timer);
  let found;
  try {
    found = await api.models();
  } catch (error) {
    if (error.status !== 401) later(page.models.length ? REFRESH : WAIT);
    if (page.models.length && byId("key").hidden) return; // what is on the page stays
    byId("about").textContent = error.status === 401 ? "" : error.message;
    show(error);
    return;
  }
  later(found.length ? REFRESH : WAIT);
  if (!page.models.length || !byId("key").hidden) {
    byId("key").hidden = true;
    show(null);
  }
  if (JSON.stringify(found) !== JSON.stringify(page.models)) update(found);
  if (!found.length) byId("about").textContent = "No model is ready yet. This page looks again every two seconds.";
  if (before === byId("key-value")) focusInput();
}

const focusInput = () => byId(model() && writes(model()) ? "prompt" : "fields").focus();

// Asks for the models again, but not while nobody looks at the page.
function later(milliseconds) {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => document.hidden || load(), milliseconds);
}

// Shows other models, or other versions of them; what was chosen and typed stays where it fits.
function update(found) {
  const [before, compared] = [model(), other()];
  page.models = found;
  if (!found.length) return;
  byId("model").replaceChildren(...found.map((each) => option(each.name)));
  byId("model").disabled = byId("predict").disabled = false;
  byId("pickers").hidden = false;
  const after = found.find((each) => each.name === before?.name);
  if (!after || !areAlike(before, after)) {
    choose();
    return;
  }
  byId("model").value = after.name;
  listOthers(compared?.name);
  byId("about").textContent = described(after);
  if (writes(after)) text.open(after);
}

// Another model is chosen: its input, and the models that can be compared with it.
function choose() {
  const chosen = model();
  byId("work").hidden = byId("compare").hidden = writes(chosen);
  byId("writing").hidden = !writes(chosen);
  document.querySelector(".skip").href = writes(chosen) ? "#prompt" : "#fields";
  byId("about").textContent = described(chosen);
  byId("code").hidden = true;
  if (writes(chosen)) {
    text.open(chosen);
    return;
  }
  text.stop();
  listOthers();
  page.input = inputOf(chosen);
  byId("fields").replaceChildren(page.input.element);
  byId("results").replaceChildren(element("p", {class: "muted empty"}, "The prediction appears here."));
  show(null);
}

// The models that can be compared with the chosen one; `name` stays chosen if it is one of them.
function listOthers(name = "") {
  const chosen = model();
  const alike = page.models.filter((each) => each !== chosen && areAlike(chosen, each));
  byId("other").replaceChildren(option("", alike.length ? "none" : "no model alike"), ...alike.map((each) => option(each.name)));
  byId("other").disabled = !alike.length;
  if (alike.some((each) => each.name === name)) byId("other").value = name;
}

function described(found) {
  const {limits} = found;
  const computes = `Computes in ${found.compute}, version ${found.version}.`;
  if (writes(found)) {
    const does = found.operations.includes("chat") ? "Continues texts and chats" : "Continues texts, but has no template for chats";
    return `${does}: at most ${limits.max_length} ${limits.unit} with the prompt. ${computes}`;
  }
  const kinds = {
    text: "a text", text_pair: "two texts", features: `${limits.features} features`,
    table: `${found.inputs.length} columns`,
    image: found.image ? `an image of ${found.image.width} × ${found.image.height} pixels` : "an image",
  };
  const length = limits.max_length ? ` of at most ${limits.max_length} ${limits.unit}` : "";
  const names = found.labels ?? [];
  const labels = names.length ? ` Classes: ${names.slice(0, 12).join(", ")}${names.length > 12 ? ", …" : ""}.` : "";
  return `Reads ${kinds[found.kind] ?? found.kind}${length}.${labels} ${computes}`;
}

async function predict() {
  page.running?.abort();
  page.running = new AbortController();
  const {signal} = page.running;
  const asked = [model(), other()].filter(Boolean);
  byId("results").classList.add("stale");
  show(null);
  say("Predicting");
  try {
    const reads = await Promise.all(asked.map((each) => page.input.read(each)));
    const found = await Promise.all(asked.map((each, i) => api.predict(each.name, reads[i].value, signal)));
    const entry = {model: asked[0].name, other: asked[1]?.name ?? "", state: page.input.state(), input: page.input, asked, reads, found};
    present(entry);
    remember(entry);
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    show(error);
    byId("results").classList.remove("stale");
  }
}

function present({asked, reads, found}) {
  const results = byId("results");
  results.classList.remove("stale");
  results.classList.toggle("two", asked.length > 1);
  results.replaceChildren(...asked.map((each, i) => result(each, reads[i], found[i], asked.length > 1)));
  say(asked.map((each, i) => `${asked.length > 1 ? `${each.name}: ` : ""}${inWords(found[i])}`).join("; "));
  showCode(...[snippets.curl, snippets.python].map((code) => code(asked[0].name, reads[0], api.hasKey())));
}

function showCode(curl, python) {
  byId("code").hidden = false;
  byId("curl").textContent = curl;
  byId("python").textContent = python;
}

function result(asked, read, found, named) {
  return element(
    "article", {class: "result", "aria-label": `Prediction of ${asked.name}`},
    named ? element("h3", {}, asked.name) : null,
    ...answer(found), facts(found, asked), why(asked, read, found),
  );
}

// The button that explains a prediction, and what it found.
function why(asked, read, found) {
  const place = element("div", {class: "explanation fields", "aria-live": "polite"});
  const names = found.scores ? Object.keys(found.scores) : [];
  const label = names.length
    ? element("select", {"aria-label": "The class to explain"}, ...names.map((name) => option(name)))
    : null;
  if (label) label.value = found.label;
  const button = element("button", {type: "button", onclick: explain}, label ? "Explain" : "Explain the number");
  async function explain() {
    button.disabled = true;
    place.replaceChildren(element("p", {class: "muted"}, "Computing. The first time the model is compiled for it, which may take a while."));
    try {
      place.replaceChildren(...explanation(await api.explain(asked.name, read.value, label?.value ?? null), read));
    } catch (error) {
      place.replaceChildren(element("p", {class: "error", role: "alert"}, error.message));
      if (error.status === 401) show(error);
    }
    button.disabled = false;
  }
  return element("div", {class: "why"}, element("div", {class: "row"}, button, label), place);
}

function remember(entry) {
  page.history = [entry, ...page.history].slice(0, HISTORY);
  list();
}

function list() {
  byId("history").hidden = !page.history.length;
  byId("entries").replaceChildren(...page.history.map((entry) =>
    element("li", {},
      element("button", {type: "button", onclick: () => recall(entry)},
        element("span", {class: "what"}, entry.reads[0].title),
        element("span", {class: "found"}, `${entry.found.map(inWords).join(" / ")} · ${[entry.model, entry.other].filter(Boolean).join(", ")}`)))));
}

// Shows an earlier input with its prediction; the service is not asked again.
function recall(entry) {
  byId("model").value = entry.model;
  choose();
  byId("other").value = entry.other;
  page.input = entry.input;
  byId("fields").replaceChildren(entry.input.element);
  entry.input.restore(entry.state);
  present(entry);
  focusInput();
}

async function copy(event) {
  const button = event.currentTarget;
  const code = byId(button.dataset.copy);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch { // without https there is no clipboard: the text is selected instead
    getSelection().selectAllChildren(code);
    button.textContent = "Selected: copy it with Ctrl C";
  }
  say(button.textContent);
  setTimeout(() => (button.textContent = before), 2000);
}

const text = writing({say, show: (error) => show(error, "writing-error"), showCode});
byId("model").addEventListener("change", choose);
byId("other").addEventListener("change", () => show(null));
byId("input").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
byId("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("predict").disabled) {
    event.preventDefault();
    predict();
  }
});
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(byId("key-value").value.trim());
  load();
});
byId("forget").addEventListener("click", () => {
  page.history = [];
  list();
  byId("model").focus();
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
document.addEventListener("visibilitychange", () => document.hidden || load());
load();
