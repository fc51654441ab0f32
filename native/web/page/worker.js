// The thread of a page that holds the model. Requests: {verb: "open"}, {verb: "chat", messages, options, leash}; it answers
// with messages, the last of which is {kind: "done"} or {kind: "error"}.

import { Engine } from "./engine.js";
import { checkFeatures } from "./features.js";
import { loadBundle } from "./files.js";
import { MemoryFile } from "./wasi.js";

const SESSION = "session";
const HALF = Math.max(1, navigator.hardwareConcurrency >> 1); // processors: mostly two are one core
const OFTEN = 50; // milliseconds between two looks at the leash

let engine = null;
let bundle = null;
let leash = null;
let looked = 0;

/** Whether the page has taken the leash's address away. A worker that computes gets no messages, but may ask for an address
 * and wait. */
function cancelled() {
  if (!leash || performance.now() - looked < OFTEN) return false;
  looked = performance.now();
  try {
    const request = new XMLHttpRequest();
    request.open("GET", leash, false);
    request.send();
    return false;
  } catch {
    return true;
  }
}

function say(text) {
  postMessage({ kind: "progress", text });
}

async function fetched(name, read) {
  const reply = await fetch(new URL(name, import.meta.url));
  if (!reply.ok) throw new Error(`${name} is not there (status ${reply.status}); serve the whole folder of the package`);
  return reply[read]();
}

async function open() {
  say("loading the engine");
  const app = await fetched("app.json", "json");
  checkFeatures(app.features);
  const bytes = await fetched("minicpm.wasm", "arrayBuffer");
  bundle = await loadBundle(new URL(`../${encodeURIComponent(app.bundle)}/`, import.meta.url), say);
  const files = new Map([...bundle.files].map(([name, file]) => [`bundle/${name}`, file]));
  const threads = self.crossOriginIsolated ? (app.options.threads ?? HALF) : 1; // else no worker shares its memory
  engine = await Engine.of(bytes, files, { cancelled, threads });
  say(bundle.checked ? "opening the model" : "checking the model");
  const options = { ...app.options, threads, linked: app.linked, sha256: bundle.sha256, check: !bundle.checked };
  const session = await bundle.kept(SESSION);
  if (session) files.set(SESSION, new MemoryFile(session));
  try {
    engine.open("/bundle", session ? { ...options, resume: `/${SESSION}` } : options);
  } catch (error) {
    if (!session) {
      await bundle.forget(); // what was loaded is damaged
      throw error;
    }
    await bundle.keep(SESSION, null); // the session is not of use: all is computed again
    engine.open("/bundle", options);
  }
  await bundle.isChecked();
  return { info: engine.info() };
}

async function chat(request) {
  leash = request.leash;
  try {
    engine.chat(request.messages, request.options, (kind, text) => postMessage({ kind, text }));
  } finally {
    leash = null;
  }
  await bundle.keep(SESSION, engine.save(SESSION));
  return { stats: engine.stats() };
}

const VERBS = { open, chat };

onmessage = async ({ data }) => {
  try {
    postMessage({ kind: "done", ...(await VERBS[data.verb](data)) });
  } catch (error) {
    postMessage({ kind: "error", message: error.message });
  }
};
