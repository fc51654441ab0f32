"""What the bundle and the machine decide where the caller doesn't: context, sampling, end
tokens.
"""

from __future__ import annotations

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.bundle.manifest import MAX_DECODE_SEQUENCES, Manifest
from minicpm_mlc.bundle.small_files import SmallFiles

PARALLEL = 8  # answers at once, where nobody says how many


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
            f"give --context {_fits_next_time(fits, manifest.page_size)} or less"
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
    return min(manifest.max_context, _tokens_that_fit(manifest, available))


def choose_parallel(manifest: Manifest, asked: int | None) -> int:
    """How many answers at once: one where the model keeps state per sequence. Raises EngineError
    for what the library can't hold.
    """
    if asked is not None and not 1 <= asked <= MAX_DECODE_SEQUENCES:
        raise EngineError(
            f"parallel is {asked}; the library holds 1 to {MAX_DECODE_SEQUENCES} sequences at once"
        )
    return 1 if manifest.recurrent else asked or PARALLEL


def cache_tokens(manifest: Manifest, context: int, contexts: int, available: int) -> int:
    """Tokens of a cache for that many whole contexts, or as many of them as fit `available` bytes;
    one fits.
    """
    page = manifest.page_size
    whole = contexts * -(-context // page) * page
    return max(context, min(whole, _tokens_that_fit(manifest, available)))


def _tokens_that_fit(manifest: Manifest, available: int) -> int:
    """In whole pages, with the weights."""
    fixed = manifest.memory_need(0)
    pages = max(0, available - fixed) // (manifest.memory_need(1) - fixed)
    return pages * manifest.page_size


def eos_token_ids(manifest: Manifest, files: SmallFiles) -> frozenset[int]:
    """Every token that ends an answer: the model's, and those that generation_config.json adds."""
    return frozenset([*manifest.model["eos_token_ids"], *files.generation.eos_token_ids])


def _fits_next_time(fits: int, page_size: int) -> int:
    """Tokens to name in an error: free memory moves by some MB between processes, and the
    context named must fit then too: 3 % less, in whole pages.
    """
    pages = fits // page_size
    return (pages - pages // 32) * page_size


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
