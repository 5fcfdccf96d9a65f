// Elements without a framework. Text is always set as text, never as HTML.

// element("p", {class: "muted"}, "text", other) -> an element. A property that starts with "on" is a listener.
export function element(name, properties = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
    else if (value === true) found.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) found.setAttribute(key, value);
  }
  found.append(...children.filter((child) => child !== null));
  return found;
}

export const byId = (id) => document.getElementById(id);

// A bar from `start` to `end`, each a share of the track from 0 to 1; what it shows is beside it as text.
export function bar(start, end) {
  const fill = element("span", {class: "fill"});
  fill.style.left = `${100 * start}%`; // by script, as the page's policy forbids inline styles
  fill.style.width = `${100 * (end - start)}%`;
  return element("span", {class: "track", "aria-hidden": "true"}, fill);
}

// A number for people.
export function number(value, digits = 4) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(1);
  return value.toLocaleString("en", {maximumSignificantDigits: digits}).replace("-", "−");
}

export const signed = (value) => (value < 0 ? "−" : "+") + number(Math.abs(value), 3);

export function percent(share) {
  if (share > 0 && share < 0.0005) return "under 0.1\u00a0%";
  if (share < 1 && share > 0.9995) return "over 99.9\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}
