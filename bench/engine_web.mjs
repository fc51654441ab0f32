// Answers of an engine in Node.js, for engine_web.py: pieces on standard output, figures as JSON on standard error.
// node engine_web.mjs PAGE MODULE BUNDLE LINKED PROMPT TOKENS THREADS
import { readFileSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [page, wasm, folder, linked, prompt, tokens, threads] = process.argv.slice(2);
const { Engine } = await import(pathToFileURL(`${page}/engine.js`));
const { diskFiles, startThread } = await import(pathToFileURL(`${page}/disk.js`));

const engine = await Engine.of(readFileSync(wasm), diskFiles(folder), {
  threads: Number(threads),
  startThread,
});
engine.open("/bundle", { linked, context: 1024 });
const messages = [{ role: "user", content: prompt }];
for (const most of [8, Number(tokens)]) { // the first warms up what the engine was compiled to
  engine.truncate(0);
  const show = (kind, text) => void writeSync(kind === "answer" ? 1 : 2, text);
  engine.chat(messages, { temperature: 0, max_tokens: most, speculate: "off" }, show);
}
console.error("\n" + JSON.stringify(engine.stats()));
