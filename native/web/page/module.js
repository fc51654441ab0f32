// minicpm.wasm and its memory, which its threads share where that is allowed.

const MEMORY = { initial: 1024, maximum: 65535 }; // pages of 64 KB, as the module was linked
const IMPORTS = 2; // a section's number
const FUNCTION = 0, OF_MEMORY = 2; // kinds of imports
const SHARED = 2; // a flag of a memory

/** The module of these bytes, and a memory for it. Some browsers share none outside of pages that are cross-origin
 * isolated. */
export async function load(bytes) {
  try {
    const memory = new WebAssembly.Memory({ ...MEMORY, shared: true });
    return { module: await WebAssembly.compile(bytes), memory };
  } catch {
    const memory = new WebAssembly.Memory(MEMORY);
    return { module: await WebAssembly.compile(unshared(new Uint8Array(bytes).slice())), memory };
  }
}

/** The bytes, changed to take a memory that is not shared. */
function unshared(bytes) {
  let at = 8; // behind the module's head
  const number = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  const skip = (size) => (at += size);
  for (let section = bytes[at++]; section !== IMPORTS; section = bytes[at++]) skip(number());
  number(); // its size
  for (let left = number(); left > 0; --left) {
    skip(number());
    skip(number());
    const kind = bytes[at++];
    if (kind === OF_MEMORY) {
      bytes[at] &= ~SHARED;
      return bytes;
    }
    if (kind !== FUNCTION) break;
    number();
  }
  throw new Error("minicpm.wasm imports no memory; take it and the page from one package");
}
