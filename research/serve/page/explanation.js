// What adds to a prediction: words marked in the text, a map over the image, bars of features.

import {bar, element, number, percent, signed} from "./dom.js";
import {shown} from "./picture.js";

// `found`: the service's explanation; `read`: the input, as its `read` found it.
export function explanation(found, read) {
  const parts = found.tokens ? words(found.tokens, read.texts) : found.map ? [saliency(found.map, read.preview)] : features(found.features);
  return [...parts, legend(found), summed(found)];
}

// Below this share of the largest attribution, nothing is marked.
const FAINT = 0.05;

const side = (value) => (value < 0 ? "against" : "for");

// Tokens of one word are marked together. Offsets count characters, JavaScript's strings have half ones for some.
function words(tokens, texts) {
  const byWord = new Map();
  for (const {input, start, stop, word, attribution} of tokens) {
    const known = byWord.get(word) ?? {input, start, stop, attribution: 0};
    byWord.set(word, {...known, stop: Math.max(stop, known.stop), attribution: known.attribution + attribution});
  }
  const found = [...byWord.values()];
  const largest = Math.max(...found.map((word) => Math.abs(word.attribution)), 1e-12);
  const marked = Object.entries(texts).map(([input, text]) => {
    const characters = [...text];
    const line = element("p", {class: "words"});
    let end = 0;
    for (const word of found.filter((each) => each.input === input)) {
      const strength = Math.abs(word.attribution) / largest;
      const name = strength < FAINT ? "span" : "mark";
      const mark = element(name, {class: side(word.attribution), title: signed(word.attribution)});
      mark.style.setProperty("--strength", strength);
      mark.append(characters.slice(word.start, word.stop).join(""));
      line.append(characters.slice(end, word.start).join(""), mark);
      end = word.stop;
    }
    line.append(characters.slice(end).join(""));
    return line;
  });
  const ranked = found.map(({input, start, stop, attribution}) => [[...texts[input]].slice(start, stop).join(""), attribution]);
  return [...marked, table("Every word", "Word", ranked)];
}

function table(title, what, rows) {
  const sorted = [...rows].sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]));
  return element(
    "details", {}, element("summary", {}, `${title}, largest first`),
    element("table", {},
      element("thead", {}, element("tr", {}, element("th", {scope: "col"}, what), element("th", {scope: "col"}, "Adds"))),
      element("tbody", {}, ...sorted.map(([name, value]) =>
        element("tr", {}, element("td", {}, name), element("td", {}, signed(value)))))),
  );
}

// The map over the image, which is grey and dimmed: blocks of pixels in the colours of both sides.
function saliency(map, preview) {
  const canvas = element("canvas", {width: preview.width, height: preview.height});
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1) brightness(0.5)";
  context.drawImage(preview, 0, 0);
  context.filter = "none";
  const style = getComputedStyle(document.documentElement);
  // A few pixels may be far stronger than all others: these are drawn like the hundredth part of them.
  const sizes = map.flat().map(Math.abs).sort((one, other) => other - one);
  const large = Math.max(sizes[Math.floor(sizes.length / 100)], 1e-12);
  // Blocks are of the same size, except the last.
  const high = Math.ceil(preview.height / map.length);
  const wide = Math.ceil(preview.width / map[0].length);
  map.forEach((row, y) => row.forEach((value, x) => {
    context.globalAlpha = Math.min(1, Math.abs(value) / large);
    context.fillStyle = style.getPropertyValue(value < 0 ? "--against" : "--accent");
    context.fillRect(x * wide, y * high, wide, high);
  }));
  return shown(canvas, "The image, with the pixels marked that add to the score and those that take from it");
}

function features(found) {
  const sorted = [...found].sort((one, other) => Math.abs(other.attribution) - Math.abs(one.attribution));
  const largest = Math.max(...sorted.map((each) => Math.abs(each.attribution)), 1e-12);
  const items = sorted.map(({name, attribution}) => {
    const reach = attribution / largest / 2;
    return element(
      "li", {class: side(attribution)},
      element("span", {}, name), element("span", {class: "value"}, signed(attribution)),
      bar(0.5 + Math.min(reach, 0), 0.5 + Math.max(reach, 0)),
    );
  });
  return [element("ol", {class: "bars", "aria-label": "What each feature adds"}, ...items)];
}

const legend = (found) =>
  element("p", {class: "legend muted"},
    element("span", {class: "for"}, found.label === null ? "raises the number" : `speaks for ${found.label}`),
    element("span", {class: "against"}, found.label === null ? "lowers it" : "speaks against it"));

const BASELINES = {tokens: "the same text without its words", map: "a black image", features: "the mean of every number and no category"};

function summed(found) {
  const [kind] = Object.keys(BASELINES).filter((name) => name in found);
  const difference = found.score - found.baseline;
  const share = Math.abs(found.gap) / Math.max(Math.abs(difference), 1e-12);
  return element("p", {class: "muted"},
    `Integrated gradients: the score is ${number(found.score)}, and ${number(found.baseline)} for ${BASELINES[kind]}. ` +
    `The parts add up to ${number(difference - found.gap)} of the difference, ${number(difference)}: a gap of ` +
    `${percent(share)} with ${found.points} points.`);
}
