// Requests to the service, and its errors in words.

let key = "";

export function useKey(value) {
  key = value;
}

export const hasKey = () => key !== "";

export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const REASONS = {
  401: "The service needs a valid API key",
  404: "The service has no such model any more",
  408: "The request took too long to arrive",
  413: "The input is too large",
  422: "The service can't read the input",
  424: "The model can't do this",
  429: "The service is busy",
  503: "The model is not ready",
};

// The answer's JSON, or a ServiceError that a person understands.
async function ask(path, options = {}) {
  const headers = {...options.headers};
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {...options, headers, cache: "no-store"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service can't be reached. Is it still running?", 0);
  }
  let found = {};
  try {
    found = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok) return found;
  const reason = REASONS[response.status] ?? `The service answered with status ${response.status}`;
  const detail = typeof found.error === "string" ? `: ${found.error}` : "";
  const wait = response.headers.get("Retry-After");
  const later = wait ? ` (try again in ${wait} s)` : "";
  throw new ServiceError(`${reason}${detail}${later}.`, response.status);
}

function post(path, body, signal) {
  return ask(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal});
}

export const models = () => ask("models");

// The prediction for one input, with the milliseconds until the answer was here.
export async function predict(model, input, signal) {
  const began = performance.now();
  const found = await post(`models/${encodeURIComponent(model)}/predict`, {inputs: [input]}, signal);
  return {...found.predictions[0], milliseconds: performance.now() - began};
}

// What adds to the score of a class, or to a number if `label` is null.
export function explain(model, input, label, signal) {
  const body = label === null ? {inputs: [input]} : {inputs: [input], label};
  return post(`models/${encodeURIComponent(model)}/explain`, body, signal);
}
