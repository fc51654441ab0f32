"""What the bundle and the machine decide where the caller doesn't: context, sampling, end
tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import BundleError, ContextError, SamplingError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.runtime_py.sampler import SamplingParams


def choose_context(manifest: Manifest, asked: int | None, available: int) -> int:
    """Tokens of context: as asked, else what the model and `available` bytes of memory allow, in
    whole pages.

    Raises ContextError where the model or memory can't hold what is asked, with the largest context
    that fits.
    """
    limit = manifest.max_context
    if asked is not None and not 1 <= asked <= limit:
        raise ContextError(
            f"a context of {asked} tokens was asked for; this bundle holds 1 to {limit}: "
            f"give --context {limit} or less"
        )
    fits = largest_context(manifest, available)
    if fits == 0 or (asked or 0) > fits:
        size = asked or manifest.page_size
        hint = (
            f"give --context {fits} or less"
            if fits
            else "close other programs, raise the limit that this process runs under (ulimit -v, "
            "the container's memory), or compile with --quant w4"
        )
        raise ContextError(
            f"a context of {size} tokens needs {_gb(manifest.memory_need(size))} "
            f"({_gb(manifest.memory_need(0))} of it for weights and activations), "
            f"{_gb(available)} of memory is free; {hint}"
        )
    return asked or min(limit, fits)


def largest_context(manifest: Manifest, available: int) -> int:
    """Tokens, in whole pages, that fit `available` bytes together with the weights; at most the
    model's, 0 if none.
    """
    fixed = manifest.memory_need(0)
    pages = max(0, available - fixed) // (manifest.memory_need(1) - fixed)
    return min(manifest.max_context, pages * manifest.page_size)


def default_sampling(folder: Path) -> SamplingParams:
    """generation_config.json's sampling; what it leaves out is as published with MiniCPM4.
    do_sample false: greedy.
    """
    config = _generation_config(folder)
    given = {
        name: config[name]
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        if config.get(name) is not None
    }
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        return SamplingParams(**given)
    except SamplingError as error:
        path = folder / "generation_config.json"
        raise BundleError(f"{path}: {error}; fix the checkpoint's and compile again") from None


def eos_token_ids(bundle: Bundle) -> frozenset[int]:
    """Every token that ends an answer: the model's, and those that generation_config.json adds."""
    more = _generation_config(bundle.path).get("eos_token_id") or []
    return frozenset(
        [*bundle.manifest.model["eos_token_ids"], *([more] if isinstance(more, int) else more)]
    )


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    return read_json_object(path, BundleError, "compile the checkpoint again")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
