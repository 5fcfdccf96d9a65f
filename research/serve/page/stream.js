// A text as it is written: server-sent events of OpenAI's interface, read piece by piece.

import {ServiceError} from "./api.js";

const CUT = "The answer ended early: the service was stopped, or the connection was lost.";

// The pieces of a response: {text, token, finish, usage}. `token` is {text, logprob, likely}, or null for a piece without
// one; `likely` has the most likely tokens, [[text, logprob], …]; `usage` comes last, without a text.
export async function* pieces(response) {
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const found = JSON.parse(data);
    if (found.error) throw new ServiceError(`The text could not be finished: ${found.error.message}.`, 0);
    const [choice] = found.choices;
    if (choice) {
      const text = choice.text ?? choice.delta?.content ?? "";
      yield {text, token: tokenOf(choice.logprobs), finish: choice.finish_reason, usage: null};
    } else {
      yield {text: "", token: null, finish: null, usage: found.usage};
    }
  }
  throw new ServiceError(CUT, 0);
}

// Chats list tokens as objects, completions as columns.
function tokenOf(logprobs) {
  if (logprobs?.content?.length) {
    const [{token, logprob, top_logprobs: top}] = logprobs.content;
    return {text: token, logprob, likely: top.map((each) => [each.token, each.logprob])};
  }
  if (logprobs?.tokens?.length) {
    const likely = Object.entries(logprobs.top_logprobs[0]).sort((one, other) => other[1] - one[1]);
    return {text: logprobs.tokens[0], logprob: logprobs.token_logprobs[0], likely};
  }
  return null;
}

// The data of each event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await next(reader);
    if (done) return;
    const found = (rest + value).split("\n\n");
    rest = found.pop();
    yield* found.filter((each) => each.startsWith("data: ")).map((each) => each.slice("data: ".length));
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(CUT, 0);
  }
}
