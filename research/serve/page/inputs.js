// What a person fills in. Each kind of input is an object with
//   element   what to show,
//   read      (model) -> a promise of {value, title, preview, column, file}: the input as that model reads it,
//   state     () -> what `restore` takes.

import {element, number} from "./dom.js";
import {pictureInput} from "./picture.js";

// The input of a model, as GET /models describes it.
export function inputOf(model) {
  if (model.kind === "image" && model.image) return pictureInput(model.image);
  if (model.features) return formInput(model);
  if (model.kind === "text" || model.kind === "text_pair") return textInput(model);
  return jsonInput(model);
}

// Whether both models read the same inputs.
export function areAlike(one, other) {
  if (one.kind !== other.kind || one.inputs.length !== other.inputs.length) return false;
  if (one.kind === "text" || one.kind === "text_pair") return true;
  if (one.kind === "image") return Boolean(one.image && other.image);
  const fields = (model) => JSON.stringify(model.features?.map((field) => field.name) ?? model.inputs);
  return fields(one) === fields(other);
}

const shortened = (text) => (text.length > 80 ? `${text.slice(0, 80)}…` : text);

function textInput(model) {
  const areas = model.inputs.map((name, i) =>
    element("textarea", {id: `text-${i}`, rows: model.inputs.length > 1 ? 3 : 4, autocomplete: "off"}),
  );
  const fields = model.inputs.map((name, i) =>
    element("div", {class: "field"}, element("label", {for: `text-${i}`}, readable(name)), areas[i]),
  );
  return {
    element: element("div", {class: "fields"}, ...fields),
    async read(reader) {
      const texts = areas.map((area) => area.value);
      if (texts.every((text) => text.trim() === "")) throw new Error("Type a text first.");
      const byName = Object.fromEntries(reader.inputs.map((name, i) => [name, texts[i]]));
      return {value: texts.length === 1 ? texts[0] : byName, title: shortened(texts.join(" · ")), texts: byName};
    },
    state: () => areas.map((area) => area.value),
    restore: (state) => state.forEach((text, i) => (areas[i].value = text)),
  };
}

// "sentence1" -> "Sentence 1"
function readable(name) {
  const words = name.replaceAll("_", " ").replace(/([a-z])(\d+)$/i, "$1 $2");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function formInput(model) {
  const controls = model.features.map(control);
  const fields = model.features.map((field, i) =>
    element(
      "div",
      {class: "field"},
      element("label", {for: controls[i].id}, field.name),
      controls[i],
      "mean" in field ? element("span", {class: "muted", id: `hint-${i}`}, usual(field)) : null,
    ),
  );
  // Only models of single features have one column for all of them.
  const isTable = model.kind === "table";
  return {
    element: element("div", {class: "fields numbers"}, ...fields),
    async read() {
      const values = controls.map((each, i) => valueOf(each, model.features[i]));
      const byName = Object.fromEntries(model.features.map((field, i) => [field.name, values[i]]));
      const title = shortened(model.features.map((field, i) => `${field.name} ${values[i] ?? "–"}`).join(", "));
      return {value: isTable ? byName : values, title};
    },
    state: () => controls.map((each) => each.value),
    restore: (state) => state.forEach((value, i) => (controls[i].value = value)),
  };
}

function control(field, i) {
  const id = `feature-${i}`;
  if (field.categories) {
    return element("select", {id}, ...field.categories.map((value) => element("option", {value}, value)));
  }
  if (!("mean" in field)) return element("input", {id, type: "text", autocomplete: "off"});
  const value = rounded(field.mean, field.std);
  return element("input", {
    id, value, type: "number", step: "any", inputmode: "decimal", autocomplete: "off", "aria-describedby": `hint-${i}`,
  });
}

// Two standard deviations around the mean: of normal values, nineteen of twenty.
function usual(field) {
  if (field.std === 0) return `always ${number(field.mean)} in training`;
  const ends = [-2, 2].map((times) => number(rounded(field.mean + times * field.std, field.std), 3));
  return `mostly ${ends.join(" to ")}`;
}

// Digits that are far smaller than the standard deviation say nothing.
function rounded(value, std) {
  if (std === 0) return value;
  const unit = 10 ** (Math.floor(Math.log10(std)) - 1);
  return Number((Math.round(value / unit) * unit).toPrecision(12)) + 0; // never −0
}

function valueOf(control, field) {
  if (!("mean" in field)) return control.value;
  if (control.value === "" && control.validity.badInput) throw new Error(`${field.name} is not a number.`);
  return control.value === "" ? null : Number(control.value);
}

// For models that tell nothing else of their inputs.
function jsonInput(model) {
  const area = element("textarea", {id: "json", rows: 5, spellcheck: "false"});
  return {
    element: element("div", {class: "field"}, element("label", {for: "json"}, `${model.inputs.join(", ")} as JSON`), area),
    async read() {
      try {
        return {value: JSON.parse(area.value), title: shortened(area.value)};
      } catch (error) {
        throw new Error(`This is not JSON: ${error.message}`);
      }
    },
    state: () => area.value,
    restore: (state) => (area.value = state),
  };
}
