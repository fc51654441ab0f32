// A worker in the engine's memory: it runs loops of compiled code with the engine's thread, and nothing else.

import { System } from "./wasi.js";

const port = globalThis.postMessage ? globalThis : (await import("node:worker_threads")).parentPort;

port.onmessage = async ({ data: { module, memory, index, stack, variables } }) => {
  const { exports } = await WebAssembly.instantiate(module, {
    env: { memory },
    wasi_snapshot_preview1: new System(new Map(), { memory }).imports(),
    minicpm: { piece: () => 1 },
  });
  exports.__stack_pointer.value = stack;
  exports.__wasm_init_tls(variables);
  port.postMessage("ready");
  exports.minicpm_pool_work(index); // until the page ends
};
