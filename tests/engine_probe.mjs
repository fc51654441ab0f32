// engine_probe.cc in Node.js: node engine_probe.mjs PAGE MODULE [BUNDLE]; it finds the bundle at /bundle.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, wasm, folder] = process.argv.slice(2);
const { System } = await import(pathToFileURL(`${page}/wasi.js`));
const { diskFiles } = await import(pathToFileURL(`${page}/disk.js`));
const system = new System(folder ? diskFiles(folder) : new Map());
const { exports } = await WebAssembly.instantiate(await WebAssembly.compile(readFileSync(wasm)), {
  wasi_snapshot_preview1: system.imports(),
});
system.memory = exports.memory;
exports._initialize();

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const bytes = new TextEncoder().encode(line);
  const place = exports.malloc(bytes.length + 1);
  const copy = new Uint8Array(exports.memory.buffer, place, bytes.length + 1);
  copy.set(bytes);
  copy[bytes.length] = 0;
  const said = exports.answer(place); // which may move the memory
  const text = new Uint8Array(exports.memory.buffer, said);
  console.log(new TextDecoder().decode(text.slice(0, text.indexOf(0))));
  exports.free(place);
}
