// A prediction, as a person reads it.

import {bar, element, number, percent} from "./dom.js";

const SHOWN = 5; // classes

// Whether scores are probabilities; those of a linear SVM are not.
function areProbabilities(scores) {
  const values = Object.values(scores);
  return values.every((value) => value >= 0) && Math.abs(values.reduce((sum, value) => sum + value, 0) - 1) < 1e-3;
}

const score = (scores, value) => (areProbabilities(scores) ? percent(value) : number(value));

// "positive, 99.9 %", or a number.
export function inWords(found) {
  if (!found.scores) return number(found.prediction);
  return `${found.label}, ${score(found.scores, found.scores[found.label])}`;
}

export function answer(found) {
  if (!found.scores) return [element("p", {class: "answer"}, number(found.prediction))];
  const {label, scores} = found;
  return [
    element("p", {class: "answer"}, label, element("small", {}, score(scores, scores[label]))),
    ...bars(scores),
  ];
}

function bars(scores) {
  const ranked = Object.entries(scores).sort((one, other) => other[1] - one[1]);
  const largest = areProbabilities(scores) ? 1 : Math.max(...ranked.map(([, value]) => Math.abs(value)), 1e-12);
  const items = ranked.map(([name, value], i) =>
    element(
      "li", {class: i === 0 ? "first" : ""},
      element("span", {}, name), element("span", {class: "value"}, score(scores, value)), bar(0, Math.max(value, 0) / largest),
    ),
  );
  const list = (some, name) => element("ol", {class: "bars", "aria-label": name}, ...some);
  const what = areProbabilities(scores) ? "Probabilities" : "Decision values";
  if (items.length <= SHOWN + 1) return [list(items, what)];
  const rest = items.slice(SHOWN);
  return [
    list(items.slice(0, SHOWN), what),
    element("details", {}, element("summary", {}, `${rest.length} more classes`), list(rest, `${what} of the other classes`)),
  ];
}

// How the answer came about: its time, the cache, the tokens.
export function facts(found, model) {
  const unit = model.limits.unit;
  const items = [
    `${found.milliseconds < 10 ? found.milliseconds.toFixed(1) : Math.round(found.milliseconds)} ms`,
    found.cached ? "from the cache" : "computed now",
    unit in found ? `${found[unit]} ${found[unit] === 1 ? unit.replace(/s$/, "") : unit}` : null,
    `version ${found.version}`,
  ];
  const list = element("ul", {class: "facts muted"}, ...items.filter(Boolean).map((item) => element("li", {}, item)));
  if (found.truncated) {
    list.append(element("li", {class: "warning"}, `truncated: the model reads at most ${model.limits.max_length} ${unit}`));
  }
  return list;
}
