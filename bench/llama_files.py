"""A Llama checkpoint's own weights as llama.cpp quantises them, for bench/quality.py --gguf.

    python bench/off_grid.py SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2-256 --multiple 256
    python bench/llama_files.py build/smollm2-256 build/llama Q4_0 Q4_K_M Q6_K Q8_0

`--importance` gives llama.cpp an importance matrix: the mean squares of every linear's inputs over
the text of `compile --calibrate`. `--tables Q8_0` is the type of embedding and head, which its
mixtures choose themselves; so linears can be compared alone. Files have no vocabulary; token ids
are fed.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any, cast

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType
from gguf_random import gguf_name, write_gguf

from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile.calibrate.text_run import TextRun
from minicpm_mlc.compile.calibrate.texts import calibration_sequences
from minicpm_mlc.compile.checkpoint import Checkpoint, open_checkpoint
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import PLAIN, read_config_folder

PREFIX = "LLAMA_FTYPE_MOSTLY_"
KINDS = {
    name.removeprefix(PREFIX): kind
    for name, kind in vars(llama_cpp).items()
    if name.startswith(PREFIX)
}


class MeanSquares(TextRun):
    """Runs the exact layers, and keeps the mean squares of what each linear is given."""

    def measure(self) -> dict[str, np.ndarray]:
        """float32 [columns] by the tensors' names in a GGUF file."""
        self.found: dict[str, np.ndarray] = {}
        states, batch = self.embedded(), self.batch()
        for number, layer in enumerate(self.model.layers):
            states = self.through(number, layer, states, batch)
        return self.found

    def multiply(self, param, linear, x, matrix):
        squares = (x**2).mean(0)
        self.found |= {gguf_name(source): squares for source in param.sources}
        return x @ matrix.T


def importance(folder: Path, config: ModelConfig, weights: Checkpoint) -> dict[str, np.ndarray]:
    """Of every linear, on the text that calibration uses."""
    sequences = calibration_sequences(SmallFiles(folder), config, [])
    return MeanSquares(config, PLAIN, weights, sequences).measure()


def quantise(
    source: Path, out: Path, kind: str, found: dict[str, np.ndarray], tables: str | None = None
) -> None:
    """Has llama.cpp write a GGUF file in one of its types; an empty `found` is no importance.
    `tables`: another type for embedding and head.
    """
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = KINDS[kind]
    if tables:
        options.token_embedding_type = options.output_tensor_type = GGMLQuantizationType[tables]
    entries = [
        (name.encode(), np.ascontiguousarray(row, np.float32)) for name, row in found.items()
    ]
    kind_of = llama_cpp.llama_model_imatrix_data
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [kind_of(name, row.ctypes.data_as(pointer), row.size) for name, row in entries]
    matrix = (kind_of * (len(rows) + 1))(*rows)  # a last one without a name ends it
    if rows:
        options.imatrix = ctypes.cast(matrix, ctypes.POINTER(kind_of))
    asked: Any = ctypes.byref(options)
    if llama_cpp.llama_model_quantize(bytes(source), bytes(out), asked):
        sys.exit(f"llama.cpp did not write {out}; the reason is printed above")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", nargs="+", choices=KINDS)
    parser.add_argument("--importance", action="store_true")
    parser.add_argument("--tables", choices=GGMLQuantizationType.__members__)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    config = read_config_folder(args.checkpoint)
    weights = open_checkpoint(args.checkpoint, config)
    source = args.folder / "f32.gguf"
    if not source.exists():
        write_gguf(source, config, weights, "f32", "f32")
    found = importance(args.checkpoint, config, weights) if args.importance else {}
    for kind in cast(list[str], args.kind):
        marks = ["importance"] * bool(found) + [args.tables] * bool(args.tables)
        out = args.folder / f"{'-'.join([kind, *marks])}.gguf"
        quantise(source, out, kind, found, args.tables)
        print(out)


if __name__ == "__main__":
    main()
