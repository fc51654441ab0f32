"""The libraries of a bundle, each with the cases of its kernels: one, or a GPU's and after it the
processor's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.progress import Progress, Steps
from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.facts import Facts
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, to_bytes
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, CPU_PART, Manifest
from minicpm_mlc.bundle.params import TENSOR_CACHE
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.shards import SHARD
from minicpm_mlc.compile.surroundings import temporary_files_in
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.targets import Target
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.gpu_target import GpuTarget

LIBRARY_BYTES = 16 << 20  # room for a library and the tokenizer


def processor_beside(target: Target, device: str) -> CpuTarget:
    """The processor beside the GPU. Raises CompileError where that is the device."""
    if isinstance(target, GpuTarget):
        return target.host
    raise CompileError(
        f"--with-cpu: --device {device} is compiled for the processor already; leave it out, or "
        "name a GPU with --device or --gpu"
    )


def second_note(first: Compilation, second: Compilation) -> str:
    """What a user is told of the second library."""
    library = f"{second.manifest.library} is for the processor, {second.target.cpu}"
    if shares_weights(first, second):
        return f"{library}, and reads the same weights"
    size = human_bytes(second.manifest.memory["weights"])
    own, theirs = second.precision.activations, first.precision.activations
    return (
        f"{library}, and has weights of its own, {size}: it rounds activations to {own}, the GPU "
        f"to {theirs}; --activations f32 makes both the same"
    )


def add_library(bundle: BundleWriter, compilation: Compilation, progress: Progress) -> Manifest:
    """The library, which tells its bundle from others, and the cases of its kernels. Returns its
    manifest, but for the files.
    """
    program = compilation.program()
    manifest = replace(compilation.manifest, params=[each.name for each in compilation.tensors])
    steps = Steps(progress, "library", program.steps)
    cases = to_bytes(program.cases(steps))
    facts = Facts.of(manifest, compilation.tensors, hashlib.sha256(cases).hexdigest())
    with bundle.scratch() as scratch, temporary_files_in(scratch):
        program.write(scratch, manifest.symbol_prefix, facts, steps)
        for library in program.target.libraries:
            bundle.add_file(library, scratch / library)
    bundle.add_file(KERNEL_CASES, cases)
    return manifest


def add_second_library(
    bundle: BundleWriter,
    first: Compilation,
    second: Compilation,
    convert: Callable[[Sequence[Param]], object],
    progress: Progress,
) -> None:
    """The processor's library into a bundle that has all else: its manifest, and weights of its own
    where they are laid out otherwise than the first library's.
    """
    others = {*first.target.libraries, KERNEL_CASES}
    shared = {name: entry for name, entry in bundle.entries.items() if name not in others}
    with bundle.part(CPU_PART):
        manifest = add_library(bundle, second, progress)
        if not shares_weights(first, second):
            convert(second.params)
            shared = {name: entry for name, entry in shared.items() if not _is_weights(name)}
    own = {name: entry for name, entry in bundle.entries.items() if name.startswith(CPU_PART)}
    bundle.add_file(CPU_MANIFEST, replace(manifest, files=shared | own).to_bytes())


def shares_weights(first: Compilation, second: Compilation) -> bool:
    """Whether both libraries take the same tensors, laid out in the same way."""
    return first.params == second.params


def needed_bytes(first: Compilation, second: Compilation | None) -> int:
    """Room that the bundle takes on the disk, about."""
    needed = first.manifest.memory["weights"] + LIBRARY_BYTES
    if second is None:
        return needed
    own = 0 if shares_weights(first, second) else second.manifest.memory["weights"]
    return needed + own + LIBRARY_BYTES


def _is_weights(name: str) -> bool:
    return name == TENSOR_CACHE or name.startswith(SHARD)
