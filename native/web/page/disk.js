// A bundle's files and the threads for an engine in Node.js, where a page has those of files.js and engine.js.

import { fstatSync, openSync, readdirSync, readSync } from "node:fs";
import { Worker } from "node:worker_threads";

class DiskFile {
  #file;
  constructor(path) {
    this.#file = openSync(path);
    this.size = fstatSync(this.#file).size;
  }
  read(at, into) {
    return readSync(this.#file, into, 0, into.length, at);
  }
}

/** The files of a folder, below a name: what `Engine.of` takes. */
export function diskFiles(folder, below = "bundle") {
  return new Map(readdirSync(folder).map((name) => [`${below}/${name}`, new DiskFile(`${folder}/${name}`)]));
}

/** A thread, once it is ready for work: what `Engine.of` takes. The process ends without waiting for it. */
export function startThread(message) {
  const worker = new Worker(new URL("thread.js", import.meta.url));
  worker.postMessage(message);
  return new Promise((ready, fail) => worker.once("message", () => ready(worker.unref())).once("error", fail));
}
