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

// The response, or a ServiceError that a person understands.
async function request(path, options = {}) {
  const headers = {...options.headers};
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {...options, headers, cache: "no-store"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service can't be reached. Is it still running?", 0);
  }
  if (response.ok) return response;
  const reason = REASONS[response.status] ?? `The service answered with status ${response.status}`;
  const {error} = await json(response);
  const said = error?.message ?? error; // OpenAI's errors are objects
  const detail = typeof said === "string" ? `: ${said}` : "";
  const wait = response.headers.get("Retry-After");
  const later = wait ? ` (try again in ${wait} s)` : "";
  throw new ServiceError(`${reason}${detail}${later}.`, response.status);
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return {};
  }
}

const ask = async (path, options) => json(await request(path, options));

function posted(body, signal) {
  return {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal};
}

export const models = () => ask("models");

// The prediction for one input, with the milliseconds until the answer was here.
export async function predict(model, input, signal) {
  const began = performance.now();
  const found = await ask(`models/${encodeURIComponent(model)}/predict`, posted({inputs: [input]}, signal));
  return {...found.predictions[0], milliseconds: performance.now() - began};
}

// What adds to the score of a class, or to a number if `label` is null.
export function explain(model, input, label, signal) {
  const body = label === null ? {inputs: [input]} : {inputs: [input], label};
  return ask(`models/${encodeURIComponent(model)}/explain`, posted(body, signal));
}

// The response to a request for a text, whose body is the text's events.
export const write = (path, body, signal) => request(path, posted(body, signal));
