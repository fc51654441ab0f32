"""What a phone runs: a bundle and the runtime, with neither the compiler nor torch nor transformers
to import.
"""

from __future__ import annotations

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
