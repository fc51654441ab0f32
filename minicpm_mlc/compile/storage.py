"""How a bundle stores what it holds, as chosen: schemes, activations, keys and values."""

from __future__ import annotations

from dataclasses import replace

from minicpm_mlc.base.choices import ACTIVATIONS
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.text import any_of
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import KV_FORMATS, KVFormat
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets import Target


def choose_precision(
    scheme: str, embedding_scheme: str | None, activations: str, kv: str | None, target: Target
) -> Precision:
    """From the options of a compile; None takes what suits the scheme. Raises CompileError."""
    linear = _scheme("", scheme)
    embedding = _scheme("", embedding_scheme or linear.tables or scheme)
    stored = _kv_format(kv or ("f32" if scheme == "f32" else "f16"))
    integers = any(s.takes_int8 for s in (linear, embedding))
    return Precision(linear, embedding, stored, _activations(activations, integers, target))


def draft_precision(precision: Precision, scheme: str | None) -> Precision:
    """As the model is stored, or all of it in a scheme of its own; its cache is always as the
    model's. Raises CompileError.
    """
    if scheme is None:
        return precision
    chosen = _scheme("--draft-quant ", scheme)
    return replace(precision, linear=chosen, embedding=chosen)


def _scheme(option: str, name: str) -> Scheme:
    if name not in SCHEMES:
        raise CompileError(
            f"{option}{name} is not a quantisation scheme; there are {', '.join(SCHEMES)}"
        )
    return SCHEMES[name]


def _kv_format(wanted: str) -> KVFormat:
    if wanted not in KV_FORMATS:
        raise CompileError(f"--kv {wanted}: choose {', '.join(KV_FORMATS)}")
    return KV_FORMATS[wanted]


def _activations(wanted: str, integer_weights: bool, target: Target) -> str:
    if wanted not in ACTIVATIONS:
        raise CompileError(f"--activations {wanted}: choose {any_of(ACTIVATIONS)}")
    if wanted == "int8" and not integer_weights:
        raise CompileError(
            "--activations int8: the weights are floats; use --quant w4a or w8, or "
            "--activations f32"
        )
    if wanted == "int8" and not target.int8_dot:
        raise CompileError(f"--activations int8: {target.no_int8_dot}; use --activations f32")
    return "int8" if wanted != "f32" and integer_weights and target.int8_dot else "f32"
