// Texts of a decoder: it continues a prompt or answers a chat, and each token is shown as it comes.

import * as api from "./api.js";
import {byId, element, number} from "./dom.js";
import * as snippets from "./snippets.js";
import {pieces} from "./stream.js";
import {forget, tokenView} from "./tokens.js";

const LIKELY = 5; // tokens that are listed with each
const SEEDS = 2 ** 31;
const NEAR = 40; // pixels from its end at which a log stays at its end

const WORDS = {
  complete: {title: "Prompt", label: "Text to continue", button: "Write", written: "Text", keys: ["Ctrl", "Enter"]},
  chat: {title: "Message", label: "Your message", button: "Send", written: "Chat", keys: ["Enter"]},
};
const ENDS = {stop: "ended by itself", length: "ended at the limit of tokens", stopped: "stopped", failed: "failed"};

export const writes = (model) => model.operations.includes("complete");

// Connects the form with the service. `say` tells what happens, `show` shows an error, `showCode` a request as code.
export function writing({say, show, showCode}) {
  const state = {model: null, mode: "complete", running: null, finished: Promise.resolve(), messages: []};
  const drafts = {complete: "", chat: ""};
  const logs = {complete: element("div", {}), chat: element("ol", {class: "messages"})};
  const prompt = byId("prompt");
  const isChat = () => state.mode === "chat";

  // A model is chosen, or a newer version of it.
  function open(model) {
    const before = state.model;
    state.model = model;
    byId("max-tokens").max = model.limits.max_length;
    if (before?.name === model.name && `${before.operations}` === `${model.operations}`) return;
    stop();
    const chats = model.operations.includes("chat");
    radio("chat").disabled = !chats;
    empty();
    enter(chats ? "chat" : "complete");
  }

  const radio = (mode) => document.querySelector(`input[name="writing-mode"][value="${mode}"]`);

  function enter(mode) {
    stop();
    drafts[state.mode] = prompt.value;
    state.mode = mode;
    prompt.value = drafts[mode];
    const words = WORDS[mode];
    radio(mode).checked = true;
    byId("ask-title").textContent = words.title;
    byId("prompt-label").textContent = words.label;
    byId("write").textContent = words.button;
    byId("written-title").textContent = words.written;
    byId("send-keys").replaceChildren(...words.keys.flatMap((key) => [element("kbd", {}, key), " "]));
    byId("clear").hidden = !isChat();
    byId("log").replaceChildren(logs[mode]);
    // A chat is read from top to bottom: what was said, then what to say.
    byId("writing-columns")[isChat() ? "prepend" : "append"](byId("written"), byId("token-card"));
    byId("writing-columns").classList.toggle("chat", isChat());
    byId("code").hidden = true;
    forget();
    show(null);
  }

  function stop() {
    state.running?.abort();
  }

  function empty() {
    state.messages = [];
    logs.chat.replaceChildren();
    logs.complete.replaceChildren(element("p", {class: "muted empty"}, "The text appears here, token by token."));
  }

  async function clear() {
    stop();
    await state.finished;
    empty();
    forget();
    show(null);
    prompt.focus();
  }

  // A text is asked for; one that is still being written ends as it is.
  async function write() {
    stop();
    await state.finished;
    if (state.running) return;
    state.running = new AbortController();
    let done;
    state.finished = new Promise((resolve) => (done = resolve));
    byId("stop").disabled = false;
    show(null);
    try {
      const settings = read();
      if (isChat()) await answer(settings);
      else await complete(settings);
    } catch (error) {
      say("");
      show(error);
    }
    if (document.activeElement === byId("stop")) byId("write").focus(); // which can't have the focus when disabled
    byId("stop").disabled = true;
    state.running = null;
    done();
  }

  function read() {
    const seed = setting("seed") ?? Math.floor(Math.random() * SEEDS);
    return {max_tokens: setting("max-tokens"), temperature: setting("temperature"), top_p: setting("top-p"), seed};
  }

  async function complete(settings) {
    const body = {model: state.model.name, prompt: prompt.value, ...settings};
    const view = answerOf(element("span", {class: "prompt"}, prompt.value));
    logs.complete.replaceChildren(view.element);
    await stream("v1/completions", body, {logprobs: LIKELY}, view);
  }

  async function answer(settings) {
    const content = prompt.value;
    const before = state.messages;
    if (content.trim() === "") throw new Error("Type a message first.");
    const messages = [...before, {role: "user", content}];
    const view = answerOf();
    const items = [
      message("user", "You", element("div", {class: "words"}, content)),
      message("assistant", state.model.name, view.element),
    ];
    logs.chat.append(...items);
    toEnd(true);
    prompt.value = "";
    const body = {model: state.model.name, messages, ...settings};
    try {
      await stream("v1/chat/completions", body, {logprobs: true, top_logprobs: LIKELY}, view);
    } finally {
      if (!view.count) { // the message can be sent again
        for (const item of items) item.remove();
        if (isChat()) prompt.value ||= content;
        else drafts.chat ||= content;
      } else if (state.messages === before) { // else another model was chosen
        state.messages = [...messages, {role: "assistant", content: view.text}];
      }
    }
  }

  const message = (role, who, content) => element("li", {class: role}, element("h3", {}, who), content);

  // Shows the text of a request as it comes. Returns when it is whole, or stopped; raises other errors.
  async function stream(path, body, listing, view) {
    const {signal} = state.running;
    const began = performance.now();
    const asked = {...body, ...listing, stream: true, stream_options: {include_usage: true}};
    let [first, last, prompted, end] = [null, null, null, null];
    const facts = () => view.facts({
      count: view.count, first: first - began, pace: (1000 * (view.count - 1)) / (last - first), prompted, end, seed: body.seed,
    });
    forget();
    say("Writing");
    try {
      for await (const piece of pieces(await api.write(path, asked, signal))) {
        const follows = atEnd();
        if (piece.token) [first, last] = [first ?? performance.now(), performance.now()];
        view.add(piece);
        prompted = piece.usage?.prompt_tokens ?? prompted;
        end = piece.finish ?? end;
        if (view.count) facts();
        if (follows) toEnd();
      }
    } catch (error) {
      end = error.name === "AbortError" ? "stopped" : "failed";
      if (end === "failed") throw error;
    } finally {
      if (view.count) facts();
      view.end();
    }
    if (byId("writing").hidden || !byId("log").contains(view.element)) return; // another model or mode was chosen
    say(`${ENDS[end]}: ${view.text}`);
    showCode(snippets.curlOf(path, body, api.hasKey()), snippets.pythonOf(path, body, api.hasKey()));
  }

  const atEnd = () => byId("log").scrollHeight - byId("log").scrollTop - byId("log").clientHeight < NEAR;
  const toEnd = () => (byId("log").scrollTop = byId("log").scrollHeight);

  for (const mode of Object.keys(WORDS)) radio(mode).addEventListener("change", () => enter(mode));
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  byId("ask").addEventListener("keydown", (event) => {
    const sends = event.ctrlKey || event.metaKey || (isChat() && event.target === prompt && !event.shiftKey);
    if (event.key === "Enter" && sends && !event.isComposing) {
      event.preventDefault();
      write();
    }
  });
  byId("stop").addEventListener("click", stop);
  byId("clear").addEventListener("click", clear);
  byId("show-probabilities").addEventListener("change", (event) => {
    byId("written").classList.toggle("plain", !event.target.checked);
    forget();
  });
  return {open, stop};
}

// The number in a field; undefined if it is empty, for which the service has a usual one.
function setting(id) {
  const field = byId(id);
  if (field.validity.badInput) throw new Error(`${document.querySelector(`label[for="${id}"]`).textContent} is not a number.`);
  return field.value === "" ? undefined : Number(field.value);
}

// A text with its tokens, after `start`, and what is known of it.
function answerOf(start = null) {
  const view = tokenView();
  const list = element("ul", {class: "facts muted"});
  view.element = element("div", {class: "answer-text"}, element("div", {class: "words"}, start, ...view.words), list, view.table);
  view.facts = ({count, first, pace, prompted, end, seed}) => list.replaceChildren(
    ...[
      `${count} ${count === 1 ? "token" : "tokens"}`,
      count > 1 ? `${number(pace, 3)} tokens/s` : null,
      `first after ${number(first / 1000, 2)} s`,
      prompted ? `prompt of ${prompted} tokens` : null,
      `seed ${seed}`,
      ENDS[end] ?? null,
    ].filter(Boolean).map((item) => element("li", {}, item)));
  return view;
}
