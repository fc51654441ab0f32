// Calls of native/web/page/engine.js for the tests, in the lines of engine_driver.cc.
// node engine_web.mjs PAGE MODULE BUNDLE OPTIONS THREADS
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [page, wasm, folder, given, threads] = process.argv.slice(2);
const { Engine } = await import(pathToFileURL(`${page}/engine.js`));
const { diskFiles, startThread } = await import(pathToFileURL(`${page}/disk.js`));
const { MemoryFile } = await import(pathToFileURL(`${page}/wasi.js`));

const hex = (bytes) => Buffer.from(bytes).toString("hex") || "-";
const text = (word) => (word === "-" ? "" : Buffer.from(word, "hex").toString());
const say = (status, said, pieces = "") => console.log(`${status} ${hex(said)}${pieces}`);

if (threads === "0") { // a browser that shares no memory
  const Memory = WebAssembly.Memory;
  WebAssembly.Memory = function (limits) {
    if (limits.shared) throw new TypeError("Shared memory is not enabled");
    return new Memory(limits);
  };
}

let cancel = false;
const files = diskFiles(folder);
const engine = await Engine.of(readFileSync(wasm), files, {
  cancelled: () => cancel,
  threads: Number(threads) || 1,
  startThread,
});

function answer(verb, asked, options, most, cancels) {
  let pieces = "";
  let left = Number(most) || Infinity;
  cancel = false;
  engine[verb](JSON.parse(asked), JSON.parse(options || "{}"), (kind, said) => {
    const bytes = kind === "token" ? new Uint8Array(Int32Array.of(said).buffer) : said;
    pieces += ` ${["thinking", "answer", "token"].indexOf(kind)} ${hex(bytes)}`;
    if (--left > 0) return false;
    cancel = Boolean(cancels);
    return !cancel;
  });
  return ["", pieces];
}

const VERBS = {
  tokenize: (asked) => [JSON.stringify(engine.tokenize(asked))],
  prompt: (messages, options) => [JSON.stringify(engine.prompt(JSON.parse(messages), JSON.parse(options)))],
  info: () => [JSON.stringify(engine.info())],
  stats: () => [JSON.stringify(engine.stats())],
  chat: (...asked) => answer("chat", ...asked),
  generate: (...asked) => answer("generate", ...asked),
  truncate: (length) => [engine.truncate(Number(length)) ?? ""],
  save: (path) => [writeFileSync(path, engine.save()) ?? ""],
};

function attempt(call) {
  try {
    say(0, ...call());
    return true;
  } catch (error) {
    if (!error.status) throw error;
    say(error.status, error.message);
    return false;
  }
}

const options = JSON.parse(given);
if (options.resume) {
  files.set("session", new MemoryFile(new Uint8Array(readFileSync(options.resume))));
  options.resume = "/session";
}
if (attempt(() => [engine.open("/bundle", options) ?? ""])) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, ...words] = line.split(" ");
    attempt(() => VERBS[verb](...words.map(text)));
  }
}
