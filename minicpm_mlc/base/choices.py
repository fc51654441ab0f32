"""What the options with a fixed set of values take. The command line offers these names, and the
functions behind it refuse others with them.
"""

from __future__ import annotations

DEFAULT_SCHEME = "w4a"  # of weights: the nearest of at most 5 bits, docs/quality.md
BUDGET_SCHEME = "w4k"  # what --bits starts from: the nearest of the fewest bits
ATTENTION = ("auto", "dense", "sparse")  # auto is sparse from the model's dense_len tokens on
COMPILED_ATTENTION = ("auto", "dense")  # dense leaves the sparse kernels out
KV_NAMES = ("f32", "f16", "bf16", "int8")  # how keys and values are stored (ops/formats/kv)
ACTIVATIONS = ("auto", "int8", "f32")  # what multiplies integer weights; auto is int8 where fast
SPECULATE = ("auto", "off", "eagle", "ngram", "draft")  # auto drafts with what pays
OVERFLOW = ("error", "drop_oldest")  # what a conversation longer than the context does
PACKAGE_PLATFORMS = ("android", "ios", "macos", "linux", "windows", "web")
TOOL_FORMATS = ("minicpm", "hermes", "minicpm5")  # how a model writes calls of tools
SERVE_PORT = 8080  # where serve listens unless told otherwise
DEVICES = (  # targets/registry.py says what each is
    "cpu",
    "linux-arm64",
    "macos-arm64",
    "windows-x64",
    "cuda",
    "opencl",
    "vulkan",
    "android",
    "metal",
    "ios",
    "web",
)
