// minicpm.h in JavaScript: an engine in the thread that makes it. native/engine/include/minicpm.h describes the calls,
// their options and their results.

import { load } from "./module.js";
import { System } from "./wasi.js";

const VERSION = 1; // MINICPM_VERSION
const STACK = 1 << 20; // bytes of a thread's
const OUT_OF_MEMORY = 4, FAILED = 6; // of minicpm_status
const KINDS = ["thinking", "answer", "token"];

/** A thread of a page: thread.js in a worker, once it is ready for work. */
function startWorker(message) {
  const worker = new Worker(new URL("thread.js", import.meta.url), { type: "module" });
  worker.postMessage(message);
  return new Promise((ready, fail) => {
    worker.onmessage = () => ready(worker);
    worker.onerror = (event) => fail(new Error(event.message || "a thread doesn't start"));
  });
}

/** What the engine refuses or can't do; `status` is one of minicpm_status. */
export class EngineError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Engine {
  #calls; // the module's functions
  #memory;
  #system;
  #engine = 0; // the pointer to it
  #onPiece = null;
  #cancelled = null;

  /** The bytes of minicpm.wasm over files, as wasi.js has them. `cancelled()` is asked before each step of a call; true
   * ends it. More than one of `threads` takes a page that is cross-origin isolated, or Node.js and disk.js's
   * `startThread`. */
  static async of(bytes, files, { cancelled = () => false, print, threads = 1, startThread = startWorker } = {}) {
    const engine = new Engine();
    const { module, memory } = await load(bytes);
    engine.#cancelled = cancelled;
    engine.#system = new System(files, { tick: () => engine.#tick(), print, memory });
    engine.#memory = memory;
    const instance = await WebAssembly.instantiate(module, {
      env: { memory },
      wasi_snapshot_preview1: engine.#system.imports(),
      minicpm: { piece: (kind, at, size) => engine.#piece(kind, at, size) },
    });
    engine.#calls = instance.exports;
    engine.#calls._initialize();
    await engine.#start(module, threads - 1, startThread);
    return engine;
  }

  /** Workers in the engine's memory, each with a stack and variables of its own. */
  async #start(module, workers, startThread) {
    const { malloc, __tls_size, minicpm_web_use_workers } = this.#calls;
    const messages = Array.from({ length: workers }, (_, i) => {
      const stack = ((malloc(STACK) >>> 0) + STACK) & ~15;
      return { module, memory: this.#memory, index: i + 1, stack, variables: malloc(__tls_size.value) };
    });
    await Promise.all(messages.map((message) => startThread(message)));
    minicpm_web_use_workers(workers);
  }

  /** Opens the bundle in a folder of the files. */
  open(folder, options = {}) {
    const place = this.#calls.malloc(4);
    try {
      this.#checked(
        this.#with([folder, JSON.stringify(options)], (...texts) => this.#calls.minicpm_open(VERSION, ...texts, place)),
      );
      this.#engine = new DataView(this.#memory.buffer).getUint32(place >>> 0, true);
    } finally {
      this.#calls.free(place);
    }
  }

  /** Answers a conversation. `onPiece(kind, text)` gets "thinking" and "answer", or with the option `tokens` "token" and
   * an id; true ends the answer. */
  chat(messages, options = {}, onPiece = () => false) {
    this.#answer(this.#calls.chat, messages, options, onPiece);
  }

  /** Goes on from a text or a list of token ids. */
  generate(prompt, options = {}, onPiece = () => false) {
    this.#answer(this.#calls.generate, prompt, options, onPiece);
  }

  tokenize(text) {
    return this.#json(this.#with([text], (at) => this.#calls.minicpm_tokenize(this.#engine, at)));
  }

  /** The token ids that the engine makes of a conversation. */
  prompt(messages, options = {}) {
    const texts = [JSON.stringify(messages), JSON.stringify(options)];
    return this.#json(this.#with(texts, (...at) => this.#calls.minicpm_prompt(this.#engine, ...at)));
  }

  truncate(length) {
    this.#checked(this.#calls.minicpm_truncate(this.#engine, length));
  }

  /** What is computed, for `open`'s "resume": as bytes, or as a file among those that the engine was made with. */
  save(path = "session") {
    this.#checked(this.#with([`/${path}`], (at) => this.#calls.minicpm_save(this.#engine, at)));
    return this.#system.files.get(path).bytes;
  }

  info() {
    return this.#json(this.#calls.minicpm_info(this.#engine));
  }

  stats() {
    return this.#json(this.#calls.minicpm_stats(this.#engine));
  }

  close() {
    this.#calls.minicpm_close(this.#engine);
    this.#engine = 0;
  }

  #answer(call, asked, options, onPiece) {
    this.#onPiece = onPiece;
    const texts = [JSON.stringify(asked), JSON.stringify(options)];
    this.#checked(this.#with(texts, (...at) => call(this.#engine, ...at)));
  }

  #piece(kind, at, size) {
    const bytes = new Uint8Array(this.#memory.buffer, at >>> 0, size).slice();
    const said = KINDS[kind] === "token" ? new DataView(bytes.buffer).getInt32(0, true) : new TextDecoder().decode(bytes);
    return this.#onPiece(KINDS[kind], said) ? 1 : 0;
  }

  #tick() {
    if (this.#engine && this.#cancelled()) this.#calls.minicpm_cancel(this.#engine);
  }

  /** Calls use(pointer, ...) with these texts in the module's memory. */
  #with(texts, use) {
    const places = texts.map((text) => this.#copied(text));
    try {
      return use(...places);
    } finally {
      places.forEach((place) => this.#calls.free(place));
    }
  }

  #copied(text) {
    const bytes = new TextEncoder().encode(text);
    const place = this.#calls.malloc(bytes.length + 1);
    if (!place) throw new EngineError(OUT_OF_MEMORY, "the page is out of memory; open the bundle with a smaller context");
    const memory = new Uint8Array(this.#memory.buffer, place >>> 0, bytes.length + 1);
    memory.set(bytes);
    memory[bytes.length] = 0;
    return place;
  }

  #text(at) {
    const bytes = new Uint8Array(this.#memory.buffer, at >>> 0);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  #json(at) {
    if (!at) this.#checked(FAILED);
    const text = this.#text(at);
    this.#calls.minicpm_free(at);
    return JSON.parse(text);
  }

  #checked(status) {
    if (status) throw new EngineError(status, this.#text(this.#calls.minicpm_error()));
  }
}
