"""The README of a package: what it holds and how it is loaded on its platform."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import CPU_MANIFEST, CPU_PART, Manifest

_PYTHON = """## With Python

    pip install minicpm-mlc
    minicpm-mlc verify {name} --trust    # every kernel against exact answers, on this device
    minicpm-mlc chat {name}

    from minicpm_mlc import Engine
    with Engine("{name}", sha256="{sha256}") as engine:
        print(engine.chat([{{"role": "user", "content": "Why is the sky blue?"}}]))
"""
_ENGINE = """## Without Python

`minicpm-run` answers on a command line{where}:

{commands}
`native/` is the same engine for an app: C++17 behind `native/engine/include/minicpm.h`, with the
sources of TVM's runtime that it is built on.

    wheels=$PWD/native/wheels
    cmake -S native/engine -B build -DTVM=$wheels/tvm -DTVM_FFI=$wheels/tvm_ffi{devices}
    cmake --build build
"""
_WHERE = {
    "linux": "; it needs the C library alone, glibc 2.17 or later",
    "android": ". It is static and has the model's code in it, not its weights",
}
_COMMANDS = {
    "linux": """    ./minicpm-run {name} --prompt "Why is the sky blue?"
    ./minicpm-run --help
""",
    "android": """    adb push minicpm-run {name} /data/local/tmp/
    adb shell /data/local/tmp/minicpm-run /data/local/tmp/{name} --prompt Hello
""",
}
_WEB = """## In a page

This folder is a page that chats: serve it, and open it in a browser of 2023 or later.

    python -m http.server 8000    # then http://localhost:8000

Elsewhere than on localhost browsers want https. The first visit loads `{name}` into the browser's
private files and checks it; later ones read it from there. Nothing that is typed leaves the
browser. `page/app.json` says which bundle is opened, with which options of minicpm.h.

A page of your own takes `page/engine.js` and `page/wasi.js` in a worker, and `page/minicpm.wasm`:

    const engine = await Engine.of(bytes, files);
    engine.open("/bundle", {{ linked: "{prefix}" }});
    engine.chat([{{ role: "user", content: "Hello" }}], {{}}, (kind, text) => show(text));
"""
_IOS = """## In an app

This folder is a Swift package: in Xcode, File > Add Package Dependencies > Add Local, and add
`{name}/` to the app as a folder reference. `Example/ChatView.swift` is a screen that chats.

    import Minicpm
    let engine = try Engine(bundle: Bundle.main.url(forResource: "{name}", withExtension: nil)!)
    try engine.chat([["role": "user", "content": "Hello"]]) {{ piece in
      if case .answer(let text) = piece {{ print(text, terminator: "") }}
      return false
    }}

`native/` holds the engine's sources and those of TVM's runtime, `MinicpmModel.xcframework` the
model's code for phones (the simulator has none). **Apple's compiler has not seen this package.**
"""
_ANDROID = """
`native/android` is a Gradle project: `:minicpm` is `org.minicpm.Engine` with the engine and the
model's code, for the app's own NDK to build, `:app` an app that chats. Open it in Android Studio
(SDK 35, NDK 27 or later, CMake 3.24 or later), run it, and copy the weights beside it:

    adb push {name} /sdcard/Android/data/org.minicpm.chat/files/

**Android's tools have not built it.**
"""
_RUNTIME = """## With TVM's runtime alone

`{library}` needs TVM's runtime {tvm} and no Python. Load the module, ask it for
`vm_load_executable`, initialise the virtual machine with `vm_initialization`, and call `prefill`
and `decode`: their arguments, and the tensors that hold all state, are described in
docs/architecture.md of minicpm-mlc. `manifest.json` lists the weights in the order that they take
(`params`); `tensor-cache.json` says where each lies.
"""
_APP = """## In an MLC app

`mlc-chat-config.json`, `tensor-cache.json` and the tokenizer's files are in MLC's layout, so the
app's own code reads them. The library's functions are minicpm-mlc's, not those of MLC's engine: the
app links `{library}`{static} with TVM's runtime and drives it as described below.
"""
_SECOND = """A second library is for the processor: the engine runs it where the GPU can't answer,
Python with `--device cpu`.
"""
_STATIC = " (statically: {archives})"
_ORDER = {
    "linux": (_PYTHON, _RUNTIME),
    "macos": (_PYTHON, _RUNTIME),
    "windows": (_PYTHON, _RUNTIME),
    "android": (_APP, _RUNTIME),
    "ios": (_APP, _RUNTIME),
    "web": (_RUNTIME,),
}
_ENGINES = {"linux": _ENGINE, "android": _ENGINE + _ANDROID, "ios": _IOS, "web": _WEB}


def readme(name: str, manifest: Manifest, platform: str, sha256: str, engine: bool = False) -> str:
    """Markdown, for the bundle in folder `name` of the package; `sha256` is its manifest's.
    `engine`: whether the engine is in it.
    """
    target = manifest.target
    named = (file for file in sorted(manifest.files) if not file.startswith(CPU_PART))
    archives = [file for file in named if file.endswith((".a", ".tar"))]
    others = [file for file in archives if file != manifest.library]
    static = _STATIC.format(archives=", ".join(others)) if others else ""
    head = f"""# {manifest.name} for {platform}

Weights {manifest.scheme}, up to {manifest.max_context} tokens.
Device {target["device"]}, {target["triple"]}, processor {target["cpu"]}.
{_SECOND if CPU_MANIFEST in manifest.files else ""}
- `{name}/`: the bundle, copied to the device as it is
- `SHA256SUMS`: check the copy with `sha256sum -c SHA256SUMS`. It tells a damaged copy, not who made
  it
- `licenses/`: of minicpm-mlc, and of TVM and its FFI, which run the library. The weights have the
  licence of their model.

**A bundle is a program.** `{manifest.library}` runs with all rights of whoever loads it, in `chat`,
`bench` and `verify` too. Run it only if you trust who gave it to you; else compile the model's
checkpoint yourself, whose weights are data. `minicpm-mlc inspect {name}` and
`minicpm-mlc verify {name} --files-only` run nothing of it.
"""
    device = target["device"]
    commands = _COMMANDS.get(platform, "").format(name=name)
    parts = (
        part.format(
            name=name,
            where=_WHERE.get(platform, ""),
            commands=commands,
            library=manifest.library,
            tvm=manifest.tvm,
            static=static,
            sha256=sha256,
            prefix=manifest.symbol_prefix,
            devices="" if device == "cpu" else f" -DMINICPM_DEVICES={device}",
        )
        for part in (*([_ENGINES[platform]] if engine else []), *_ORDER[platform])
    )
    return "\n".join([head, *parts])
