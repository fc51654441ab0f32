// The model in this page: it takes the place of the server's chat.js, and has the same functions. A worker computes.

const SETTINGS = { temperature: "temperature", top_p: "top_p", top_k: "top_k", max_tokens: "max_tokens", budget: "max_think_tokens" };

document.querySelector("[name=key]")?.closest("label").remove(); // nobody asks for one here

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
let receive = () => {}; // gets the worker's messages: {kind, ...}
worker.onmessage = ({ data }) => receive(data);
worker.onerror = (event) => receive({ kind: "error", message: event.message || "the worker doesn't start" });

/** Asks the worker; yields its messages until it has "done", and returns that one. Throws what it calls an "error". */
async function* ask(request) {
  const held = [];
  let wake = () => {};
  receive = (message) => {
    held.push(message);
    wake();
  };
  worker.postMessage(request);
  for (;;) {
    if (!held.length) await new Promise((done) => (wake = done));
    const message = held.shift();
    if (message.kind === "error") throw new Error(message.message);
    if (message.kind === "done") return message;
    yield message;
  }
}

let busy = Promise.resolve(); // the worker answers one after the other

/** The same, once all that was asked before is answered. */
async function* inTurn(request) {
  const before = busy;
  let leave;
  busy = new Promise((done) => (leave = done));
  await before;
  try {
    return yield* ask(request);
  } finally {
    leave();
  }
}

/** Loads the model: its `id` and `max_model_len`. `tell` gets how far it is. */
export async function model(settings, tell) {
  const messages = inTurn({ verb: "open" });
  try {
    for (;;) {
      const { value, done } = await messages.next();
      if (done) return { id: value.info.name, max_model_len: value.info.context };
      tell(value.text);
    }
  } catch (error) {
    tell(error.message);
    return null;
  }
}

/** Yields an answer as the server's chat.js does. An abort ends it before its next token. */
export async function* answer(messages, settings, signal) {
  const leash = URL.createObjectURL(new Blob(["go on"])); // the worker stops once this address is gone
  const cut = () => URL.revokeObjectURL(leash);
  signal.addEventListener("abort", cut);
  const pieces = inTurn({ verb: "chat", messages: conversation(messages, settings), options: options(settings), leash });
  try {
    for (;;) {
      const { value, done } = await pieces.next();
      yield done ? ended(value.stats) : piece(value);
      if (done) break;
    }
    signal.throwIfAborted();
  } finally {
    cut();
  }
}

function conversation(messages, settings) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  return [...system, ...messages.map(({ role, content }) => ({ role, content }))];
}

function options(settings) {
  const given = Object.entries(SETTINGS).filter(([name]) => settings[name]);
  const numbers = given.map(([name, option]) => [option, Number(settings[name])]);
  return { ...Object.fromEntries(numbers), ...(settings.think ? { think: settings.think === "on" } : {}) };
}

function piece({ kind, text }) {
  const delta = kind === "thinking" ? { reasoning_content: text } : { content: text };
  return { choices: [{ delta, finish_reason: null }] };
}

function ended(stats) {
  const timings = {
    cache_n: stats.cached_tokens,
    prompt_n: stats.prompt_tokens - stats.cached_tokens,
    predicted_n: stats.generated_tokens,
    predicted_per_second: stats.decode_steps / (stats.decode_seconds || Infinity),
  };
  return { choices: [{ delta: {}, finish_reason: stats.finish_reason }], timings };
}
