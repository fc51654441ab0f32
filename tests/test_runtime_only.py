"""What a phone runs: a bundle and the runtime, with neither the compiler nor torch nor transformers
to import.
"""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import sys

REFUSED = {"torch", "transformers", "tvm", "minicpm_mlc.compile", "minicpm_mlc.ops"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"} or name in REFUSED:
            raise ImportError(f"{name} is not on this device")

def real_spec_of_tvm(find_spec):
    # the runtime library is looked up beside tvm's package, which is not imported
    return lambda name, package=None: original if name == "tvm" else find_spec(name, package)

import importlib.util
original = importlib.util.find_spec("tvm")
importlib.util.find_spec = real_spec_of_tvm(importlib.util.find_spec)
sys.meta_path.insert(0, Refuse())
from minicpm_mlc import Engine
with Engine(sys.argv[1], context=256) as engine:
    ids = engine.tokenize("hello")
    answer = engine.generate(ids, max_tokens=5, temperature=0)
    print(len(answer) >= 0, engine.logits(ids).shape[0] == len(ids))
print([name for name in sorted(REFUSED) if sys.modules.get(name)])
"""


def test_a_bundle_runs_without_compiler_torch_and_transformers(tiny_bundle):
    bundle = tiny_bundle("MiniCPM5-1B").path
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle)], capture_output=True, text=True, check=False
    )
    assert result.stdout.split("\n")[:2] == ["True True", "[]"], result.stderr


INSTALLED_ALONE = """
import importlib.metadata, importlib.util, json, sys
from pathlib import Path
from minicpm_mlc.bundle import tvm_runtime
from minicpm_mlc.runtime_py import tvm_files

ABSENT = {"tvm", "ziglang", "starlette", "huggingface_hub", "torch", "transformers"}
GONE = {"minicpm-mlc", "apache-tvm", "ziglang"}
find, version = importlib.util.find_spec, importlib.metadata.version
tvm = Path(find("tvm").submodule_search_locations[0])
carried = Path(sys.argv[1])  # what wheels of the runtime carry
(carried / "VERSION").write_text(version("apache-tvm"))
(carried / "libtvm_runtime.so").symlink_to(tvm / "lib" / "libtvm_runtime.so")
tvm_files.CARRIED = tvm_runtime.CARRIED = carried

def installed(name):
    if name in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return "1" if name == "minicpm-mlc-runtime" else version(name)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else find(name)
importlib.metadata.version = installed
sys.meta_path.insert(0, Refuse())
from click.testing import CliRunner
from minicpm_mlc.cli import main
for line in sys.stdin:
    done = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([done.exit_code, done.output]))
"""
COMPILER = "this takes TVM's compiler, which is not installed; try: pip install minicpm-mlc\n"
TAKES_MORE = [  # a verb without its bundle, what it says
    (["compile", "openbmb/MiniCPM4-0.5B"], COMPILER),
    (["run", "openbmb/MiniCPM4-0.5B", "--prompt", "Hi"], COMPILER),
    (["bench", "--attention-only"], COMPILER),
    (["frspec", "build", "--text", ".", "--tokenizer", "BUNDLE"], COMPILER),
    (["quality", "BUNDLE", "--reference", "BUNDLE"], COMPILER),
    (["bench", "BUNDLE", "--operators"], COMPILER),
    (["tune", "BUNDLE"], COMPILER),
    (["package", "BUNDLE", "--for", "linux", "--engine"], COMPILER),
    (["serve", "BUNDLE"], "pip install 'minicpm-mlc-runtime[serve]'\n"),
    (["pull", "openbmb/MiniCPM4-0.5B"], "pip install 'minicpm-mlc-runtime[hub]'\n"),
]
RUN_ALONE = [
    (["devices"], "can't compile yet; first: pip install minicpm-mlc\n"),
    (["inspect", "BUNDLE"], "runs here"),
    (["chat", "BUNDLE", "--prompt", "Hi", "--max-tokens", "2"], "cut at 2 tokens"),
    (["verify", "BUNDLE"], "ok"),
    (["bench", "BUNDLE", "--depth", "0", "--prompt-tokens", "8", "--new-tokens", "2"], "decode"),
    (["package", "BUNDLE", "--for", "linux", "-o", "FOLDER/bundle.tar"], "wrote"),
]


def test_the_runtime_alone_runs_bundles_and_says_what_more_takes(tiny_bundle, tmp_path):
    bundle, carried = str(tiny_bundle("MiniCPM5-1B").path), tmp_path / "carried"
    carried.mkdir()
    verbs = [(args, 1, said) for args, said in TAKES_MORE]
    verbs += [(args, 0, said) for args, said in RUN_ALONE]
    typed = [
        [word.replace("BUNDLE", bundle).replace("FOLDER", str(tmp_path)) for word in args]
        for args, _, _ in verbs
    ]
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED_ALONE, str(carried)],
        input="".join(f"{json.dumps(args)}\n" for args in typed),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(verbs), done.stderr
    for (args, status, said), line in zip(verbs, lines, strict=True):
        code, shown = json.loads(line)
        assert code == status and said in shown, (args, shown)
        assert "Traceback" not in shown and (status == 0 or shown.count("error: ") == 1)
