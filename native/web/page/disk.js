// A bundle's files for an engine in Node.js, where a page has those of files.js.

import { fstatSync, openSync, readdirSync, readSync } from "node:fs";

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
