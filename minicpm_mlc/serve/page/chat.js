// The server: its model, and answers as they stream. A page that holds the model has another file in this one's place
// (native/web/page/chat.js).

const OPTIONS = ["temperature", "top_p", "top_k", "max_tokens"];

/** The body of a request: the conversation and what the settings say. */
export function requestBody(messages, settings) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const body = {
    messages: [...system, ...messages.map(({ role, content }) => ({ role, content }))],
    stream: true,
    stream_options: { include_usage: true },
    block_reads: true,
  };
  for (const name of OPTIONS) {
    if (settings[name]) body[name] = Number(settings[name]);
  }
  if (settings.think) body.chat_template_kwargs = { enable_thinking: settings.think === "on" };
  if (settings.budget) body.reasoning_budget = Number(settings.budget);
  return body;
}

function headers(settings) {
  const key = settings.key ? { authorization: `Bearer ${settings.key}` } : {};
  return { "content-type": "application/json", ...key };
}

/** The model: its `id` and `max_model_len`. `tell` gets what is waited for; null where a key is wanted. */
export async function model(settings, tell) {
  for (;;) {
    const reply = await fetch("/v1/models", { headers: headers(settings) }).catch(() => null);
    if (reply?.ok) return (await reply.json()).data[0];
    const said = { 401: "the server wants an API key: Settings", 503: "the server loads its model" };
    tell(said[reply?.status] ?? "the server can't be reached");
    if (reply?.status === 401) return null;
    await new Promise((done) => setTimeout(done, 1000));
  }
}

/** Yields the objects of the stream. Throws an Error with the server's own words. */
export async function* answer(messages, settings, signal) {
  const reply = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(settings),
    body: JSON.stringify(requestBody(messages, settings)),
    signal,
  });
  if (!reply.ok) {
    const said = await reply.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the server answered with status ${reply.status}`);
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended the answer before its end");
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
