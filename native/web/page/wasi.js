// The system that the engine runs on in a page: WASI preview 1, as far as the engine asks for it, over files that
// somebody else keeps. A file is {size, read(at, bytes) -> count}; what the engine writes stays in memory.

const OK = 0, BADF = 8, INVAL = 28, NOENT = 44, NOTSUP = 58;
const FOLDER = 3, FILE = 4; // types of files
const ROOT = 3; // the descriptor of /
const CREATE = 1, TRUNCATE = 8; // flags of path_open
const MONOTONIC = 1;

/** Bytes in memory, as a file. */
export class MemoryFile {
  #bytes;
  constructor(bytes = new Uint8Array(0)) {
    this.#bytes = bytes;
    this.size = bytes.length;
  }
  get bytes() {
    return this.#bytes.subarray(0, this.size);
  }
  read(at, into) {
    const part = this.bytes.subarray(at, at + into.length);
    into.set(part);
    return part.length;
  }
  write(at, from) {
    const end = at + from.length;
    if (end > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(end, 2 * this.#bytes.length));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes.set(from, at);
    this.size = Math.max(this.size, end);
  }
}

/** The process ended itself, as it does where its memory is corrupt. */
export class Exit extends Error {}

export class System {
  #open = new Map(); // descriptor -> {file, at}
  #next = ROOT + 1;

  /** `files`: path without a leading slash -> file. `tick` is called whenever the engine reads the clock, as it does
   * before and after each step. */
  constructor(files, { tick = () => {}, print = console.error, memory } = {}) {
    Object.assign(this, { files, tick, print, memory });
  }

  get #view() {
    return new DataView(this.memory.buffer);
  }

  #bytes(at, size) {
    return new Uint8Array(this.memory.buffer, at >>> 0, size);
  }

  #path(at, size) {
    const path = new TextDecoder().decode(this.#bytes(at, size).slice()); // of shared memory it decodes nothing
    return path.split("/").filter((part) => part && part !== ".").join("/");
  }

  #isFolder(path) {
    return path === "" || [...this.files.keys()].some((name) => name.startsWith(path + "/"));
  }

  /** The 64 bytes that tell of a file. */
  #tell(at, type, size) {
    this.#bytes(at, 64).fill(0);
    this.#view.setUint8((at >>> 0) + 16, type);
    this.#view.setBigUint64((at >>> 0) + 32, BigInt(size), true);
    return OK;
  }

  #word(at, value) {
    this.#view.setUint32(at >>> 0, value, true);
    return OK;
  }

  /** Calls move(bytes) for each buffer of a list until one is not filled; writes how many bytes were moved. */
  #each(list, count, moved, move) {
    let sum = 0;
    for (let i = 0; i < count; ++i) {
      const [at, size] = [0, 4].map((offset) => this.#view.getUint32((list >>> 0) + 8 * i + offset, true));
      const n = move(this.#bytes(at, size), sum);
      sum += n;
      if (n < size) break;
    }
    return this.#word(moved, sum);
  }

  #clock(id) {
    this.tick();
    return BigInt(Math.round((id === MONOTONIC ? performance.now() : Date.now()) * 1e6));
  }

  /** The functions of the module wasi_snapshot_preview1. */
  imports() {
    const opened = (fd, use) => (this.#open.has(fd) ? use(this.#open.get(fd)) : BADF);
    const named = (path, use) => (this.files.has(path) ? use(this.files.get(path)) : NOENT);
    return {
      fd_prestat_get: (fd, at) => (fd === ROOT ? this.#word(at, 0) || this.#word(at + 4, 1) : BADF),
      fd_prestat_dir_name: (fd, at, size) => {
        if (fd !== ROOT || size < 1) return INVAL;
        this.#bytes(at, 1)[0] = "/".charCodeAt(0);
        return OK;
      },
      fd_fdstat_get: (fd, at) => {
        this.#bytes(at, 24).fill(0);
        this.#bytes(at, 1)[0] = fd === ROOT ? FOLDER : FILE;
        this.#bytes(at + 8, 16).fill(0xff); // all rights
        return fd <= ROOT || this.#open.has(fd) ? OK : BADF;
      },
      fd_fdstat_set_flags: () => OK,
      fd_filestat_get: (fd, at) => opened(fd, ({ file }) => this.#tell(at, FILE, file.size)),
      path_filestat_get: (fd, flags, at, size, told) => {
        const path = this.#path(at, size);
        if (this.#isFolder(path)) return this.#tell(told, FOLDER, 0);
        return named(path, (file) => this.#tell(told, FILE, file.size));
      },
      path_open: (fd, follow, at, size, flags, rights, inherited, more, result) => {
        const path = this.#path(at, size);
        if (flags & TRUNCATE || (flags & CREATE && !this.files.has(path))) this.files.set(path, new MemoryFile());
        return named(path, (file) => {
          this.#open.set(this.#next, { file, at: 0 });
          return this.#word(result, this.#next++);
        });
      },
      fd_close: (fd) => (this.#open.delete(fd) ? OK : BADF),
      fd_read: (fd, list, count, moved) =>
        opened(fd, (one) =>
          this.#each(list, count, moved, (bytes) => {
            const n = one.file.read(one.at, bytes);
            one.at += n;
            return n;
          }),
        ),
      fd_pread: (fd, list, count, offset, moved) =>
        opened(fd, ({ file }) =>
          this.#each(list, count, moved, (bytes, done) => file.read(Number(offset) + done, bytes)),
        ),
      fd_write: (fd, list, count, moved) => {
        if (fd === 1 || fd === 2) {
          return this.#each(list, count, moved, (bytes) => {
            this.print(new TextDecoder().decode(bytes.slice()));
            return bytes.length;
          });
        }
        return opened(fd, (one) => {
          if (!one.file.write) return NOTSUP;
          return this.#each(list, count, moved, (bytes) => {
            one.file.write(one.at, bytes);
            one.at += bytes.length;
            return bytes.length;
          });
        });
      },
      fd_seek: (fd, offset, from, result) =>
        opened(fd, (one) => {
          one.at = Number(offset) + [0, one.at, one.file.size][from];
          this.#view.setBigUint64(result >>> 0, BigInt(one.at), true);
          return OK;
        }),
      fd_sync: () => OK,
      path_rename: (fd, at, size, other, newAt, newSize) =>
        named(this.#path(at, size), (file) => {
          this.files.delete(this.#path(at, size));
          this.files.set(this.#path(newAt, newSize), file);
          return OK;
        }),
      path_unlink_file: (fd, at, size) => (this.files.delete(this.#path(at, size)) ? OK : NOENT),
      path_remove_directory: () => NOENT,
      clock_time_get: (id, precision, at) => {
        this.#view.setBigUint64(at >>> 0, this.#clock(id), true);
        return OK;
      },
      random_get: (at, size) => {
        const bytes = new Uint8Array(size); // shared or not, the module's memory is no place to draw into
        for (let i = 0; i < size; i += 65536) crypto.getRandomValues(bytes.subarray(i, i + 65536));
        this.#bytes(at, size).set(bytes);
        return OK;
      },
      environ_sizes_get: (count, size) => this.#word(count, 0) || this.#word(size, 0),
      environ_get: () => OK,
      sched_yield: () => OK,
      proc_exit: (code) => {
        throw new Exit(`the engine ended with ${code}`);
      },
    };
  }
}
