// engine_probe.cc in Node.js: node engine_probe.mjs PAGE MODULE [BUNDLE]; it finds the bundle at /bundle.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, wasm, folder] = process.argv.slice(2);
const { load } = await import(pathToFileURL(`${page}/module.js`));
const { System } = await import(pathToFileURL(`${page}/wasi.js`));
const { diskFiles } = await import(pathToFileURL(`${page}/disk.js`));
const { module, memory } = await load(readFileSync(wasm));
const system = new System(folder ? diskFiles(folder) : new Map(), { memory });
const { exports } = await WebAssembly.instantiate(module, {
  env: { memory },
  wasi_snapshot_preview1: system.imports(),
});
exports._initialize();

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const bytes = new TextEncoder().encode(line);
  const place = exports.malloc(bytes.length + 1);
  const copy = new Uint8Array(memory.buffer, place, bytes.length + 1);
  copy.set(bytes);
  copy[bytes.length] = 0;
  const said = exports.answer(place); // which may move the memory
  const text = new Uint8Array(memory.buffer, said);
  console.log(new TextDecoder().decode(text.slice(0, text.indexOf(0))));
  exports.free(place);
}
