// The tokens of a text, each shaded by its probability, and what else was likely in its place.

import {bar, byId, element, percent} from "./dom.js";

const probability = (logprob) => Math.exp(logprob);

// A token alone, where its spaces and line breaks must be seen.
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(empty)";

// The same for those who hear it.
function spoken(text) {
  if (text.trim() !== "") return text.trim();
  return text.includes("\n") ? "line break" : text === "" ? "empty" : "space";
}

const code = (text) => element("code", {}, visible(text));

let views = 0;
let selected = null; // the option whose alternatives are shown

// A text that is being written: its elements `words` and `table`, its `text` and the `count` of its tokens so far; `add`
// takes the next piece, `end` is called after the last. One of the tokens is selected, by the pointer or the arrow keys.
// The same as plain text stands beside them, and styles show one of both.
export function tokenView() {
  const prefix = `token-${++views}`;
  const tokens = [];
  const options = [];
  let at = 0; // the option that was selected last
  const plain = element("span", {class: "plain-text"});
  const list = element("span", {
    class: "tokens", role: "listbox", tabindex: 0, "aria-label": "Tokens", "aria-orientation": "horizontal", hidden: true,
  });
  const table = element("details", {class: "token-table", hidden: true}, element("summary", {}, "Every token as a table"));
  const view = {words: [plain, list], table, text: "", count: 0, add, end};

  function add({text, token}) {
    view.text += text;
    plain.append(text);
    if (!token) return;
    const option = optionOf(token, `${prefix}-${tokens.length}`);
    tokens.push(token);
    options.push(option);
    list.append(option);
    if (list.hidden) {
      list.hidden = table.hidden = false;
      forget();
    }
    view.count = tokens.length;
  }

  // What may be done once the text has all its tokens.
  function end() {
    if (table.open) fill();
  }

  function select(i) {
    selected?.setAttribute("aria-selected", "false");
    at = i;
    selected = options[i];
    selected.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", selected.id);
    byId("token-title").textContent = `Token ${i + 1} of ${tokens.length}`;
    byId("token").replaceChildren(...alternatives(tokens[i]));
  }

  function fill() {
    table.replaceChildren(table.firstChild, tableOf(tokens));
  }

  for (const name of ["pointerover", "click"]) {
    list.addEventListener(name, ({target}) => options.includes(target) && select(options.indexOf(target)));
  }
  list.addEventListener("focus", () => options.includes(selected) || select(at));
  list.addEventListener("keydown", (event) => {
    if (event.key === "Escape") forget();
    const i = moved(event.key, at, options);
    if (i === null) return;
    event.preventDefault();
    select(i);
    options[i].scrollIntoView({block: "nearest"});
  });
  table.addEventListener("toggle", () => table.open && fill());
  return view;
}

function optionOf(token, id) {
  const surprises = token.likely.length > 0 && token.likely[0][1] > token.logprob + 1e-6;
  const share = probability(token.logprob);
  const option = element("span", {
    id, role: "option", class: surprises ? "surprise" : "", "aria-selected": "false",
    "aria-label": `${spoken(token.text)}, ${percent(share)}`,
  }, token.text.replaceAll("\n", "↵\n"));
  option.style.setProperty("--strength", 1 - share);
  return option;
}

// Where a key leads from option `i`: to its neighbours, to the lines above and below, to both ends; null if nowhere.
function moved(key, i, options) {
  const last = options.length - 1;
  const places = {ArrowLeft: Math.max(i - 1, 0), ArrowRight: Math.min(i + 1, last), Home: 0, End: last};
  if (key in places) return places[key];
  return key === "ArrowUp" ? inNextLine(options, i, -1) : key === "ArrowDown" ? inNextLine(options, i, 1) : null;
}

function inNextLine(options, i, step) {
  const box = (j) => options[j].getClientRects()[0];
  const {top, left} = box(i);
  let best = i;
  for (let j = i + step; j in options; j += step) {
    if (Math.abs(box(j).top - top) < 4) continue;
    if (best !== i && Math.abs(box(j).top - box(best).top) >= 4) break;
    if (best === i || Math.abs(box(j).left - left) < Math.abs(box(best).left - left)) best = j;
  }
  return best;
}

// The most likely tokens of a place, and the one that was written, wherever it stands among them.
function ranked(token) {
  const place = token.likely.findIndex(([text, logprob]) => text === token.text && Math.abs(logprob - token.logprob) < 1e-4);
  const rows = token.likely.map(([text, logprob], i) => ({text, logprob, written: i === place}));
  return place < 0 ? [...rows, {text: token.text, logprob: token.logprob, written: true}] : rows;
}

function alternatives(token) {
  const rows = ranked(token).map(({text, logprob, written}) =>
    element("li", {class: written ? "first" : ""},
      element("span", {}, code(text), written ? " written" : ""),
      element("span", {class: "value"}, percent(probability(logprob))),
      bar(0, probability(logprob))));
  return [
    element("ol", {class: "bars", "aria-label": "The most likely tokens in this place"}, ...rows),
    element("p", {class: "muted"}, "Probabilities are those before temperature and top-p."),
  ];
}

function tableOf(tokens) {
  const heads = ["Token", "Others that were likely", "Probability"];
  const rows = tokens.map((token) => {
    const others = ranked(token).filter((row) => !row.written);
    const said = others.flatMap(({text, logprob}, i) => [i ? ", " : "", code(text), ` ${percent(probability(logprob))}`]);
    return element("tr", {},
      element("td", {}, code(token.text)), element("td", {}, ...said), element("td", {}, percent(probability(token.logprob))));
  });
  return element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {scope: "col"}, head)))),
    element("tbody", {}, ...rows));
}

const HINT = "Point at a token, or focus the text and use the arrow keys, to see what else was likely.";

// Nothing is selected any more, as after another text has begun.
export function forget() {
  selected?.setAttribute("aria-selected", "false");
  selected = null;
  byId("token-title").textContent = "Token";
  byId("token").replaceChildren(element("p", {class: "muted"}, HINT));
  byId("token-card").hidden = !document.querySelector("#written:not(.plain) .tokens:not([hidden])");
}
