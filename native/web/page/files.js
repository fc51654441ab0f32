// A bundle's files in the browser's private file system: loaded once, then read from there piece by piece. Only a worker
// may read so.

import { MemoryFile } from "./wasi.js";

const FOLDER = "minicpm-bundles";
const CHECKED = "checked"; // a file that stands for: the hashes were right

/** A file of the private file system, open for reading. */
class KeptFile {
  #access;
  constructor(access) {
    this.#access = access;
    this.size = access.getSize();
  }
  read(at, into) {
    return this.#access.read(into, { at });
  }
  close() {
    this.#access.close();
  }
}

class Kept {
  constructor(folder, sha256) {
    Object.assign(this, { folder, sha256, files: new Map(), checked: false });
  }

  /** The bytes of a small file that was kept beside the bundle, or null. */
  async kept(name) {
    const handle = await this.folder.getFileHandle(name).catch(() => null);
    return handle && new Uint8Array(await (await handle.getFile()).arrayBuffer());
  }

  /** Keeps bytes beside the bundle, all or nothing; null takes them away. */
  async keep(name, bytes) {
    if (!bytes) return this.folder.removeEntry(name).catch(() => null);
    const writer = await (await this.folder.getFileHandle(name, { create: true })).createWritable();
    await writer.write(bytes);
    await writer.close();
  }

  async isChecked() {
    if (!this.checked) await this.keep(CHECKED, new Uint8Array(1));
    this.checked = true;
  }

  /** Nothing of it stays: the next page loads it again. */
  async forget() {
    this.files.forEach((file) => file.close?.());
    const all = await bundles();
    await all.removeEntry(this.sha256, { recursive: true }).catch(() => null);
  }
}

async function bundles() {
  if (!navigator.storage?.getDirectory) {
    throw new Error("this page may keep no files: open it by https or on localhost, in a browser of 2023 or later");
  }
  return (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER, { create: true });
}

/** The bundle at an address, loaded where it isn't yet; others that were kept are taken away. `say` gets how far it is. */
export async function loadBundle(address, say) {
  const manifest = await loaded(new URL("manifest.json", address), { cache: "no-cache" });
  const bytes = new Uint8Array(await manifest.arrayBuffer());
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const sha256 = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const all = await bundles();
  for await (const name of all.keys()) {
    if (name !== sha256) await all.removeEntry(name, { recursive: true }).catch(() => null); // another page has it open
  }
  const bundle = new Kept(await all.getDirectoryHandle(sha256, { create: true }), sha256);
  bundle.checked = (await bundle.kept(CHECKED)) !== null;
  const { name, files } = JSON.parse(new TextDecoder().decode(bytes));
  const sum = Object.values(files).reduce((total, file) => total + file.bytes, 0);
  let done = 0;
  for (const [file, { bytes: size }] of Object.entries(files)) {
    const count = (n) => say(`loading ${name}: ${megabytes(done + n)} of ${megabytes(sum)}`);
    bundle.files.set(file, await keptFile(bundle.folder, new URL(file, address), file, size, count));
    done += size;
  }
  bundle.files.set("manifest.json", new MemoryFile(bytes));
  return bundle;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

async function loaded(address, options = {}) {
  const reply = await fetch(address, options).catch(() => null);
  if (!reply?.ok) throw new Error(`${address.pathname} can't be loaded (${reply?.status ?? "no connection"}); try again`);
  return reply;
}

async function keptFile(folder, address, name, size, count) {
  const handle = await folder.getFileHandle(name, { create: true });
  if ((await handle.getFile()).size !== size) await load(handle, address, count);
  return new KeptFile(await opened(handle, "read-only"));
}

async function load(handle, address, count) {
  const reader = (await loaded(address)).body.getReader();
  const access = await opened(handle, "readwrite");
  try {
    access.truncate(0);
    let at = 0;
    for (let part; !(part = await reader.read()).done; at += part.value.length) {
      access.write(part.value, { at });
      count(at);
    }
    access.flush();
  } finally {
    access.close();
  }
}

async function opened(handle, mode) {
  try {
    return await handle.createSyncAccessHandle({ mode });
  } catch (error) {
    if (error.name !== "NoModificationAllowedError") throw error;
    throw new Error("another tab has the model open; close it, then load this page again");
  }
}
