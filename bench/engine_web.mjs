// One answer of an engine in Node.js, for engine_web.py: prints the figures as JSON.
// node engine_web.mjs PAGE MODULE BUNDLE LINKED PROMPT TOKENS
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, wasm, folder, linked, prompt, tokens] = process.argv.slice(2);
const { Engine } = await import(pathToFileURL(`${page}/engine.js`));
const { diskFiles } = await import(pathToFileURL(`${page}/disk.js`));

const engine = await Engine.of(await WebAssembly.compile(readFileSync(wasm)), diskFiles(folder));
engine.open("/bundle", { linked, context: 1024 });
const messages = [{ role: "user", content: prompt }];
for (const most of [8, Number(tokens)]) { // the first warms up what the engine was compiled to
  engine.truncate(0);
  engine.chat(messages, { temperature: 0, max_tokens: most });
}
console.log(JSON.stringify(engine.stats()));
