from __future__ import annotations

import pytest
from fake_library import RecurrentLibrary, manifest

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.runtime_py.defaults import cache_tokens, choose_context, choose_parallel

# Context against memory: 1100 bytes fixed, 10 per token, pages of 4

small = manifest(max_context=64)


def test_the_context_is_the_models_or_what_memory_holds() -> None:
    assert choose_context(small, None, 10**6) == 64
    assert choose_context(small, None, 1100 + 439) == 40
    assert choose_context(small, 37, 1100 + 439) == 37


def test_a_context_that_does_not_fit_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(ContextError, match="65 tokens was asked for; this bundle holds 1 to 64"):
        choose_context(small, 65, 10**6)
    with pytest.raises(
        ContextError, match=r"41 tokens needs .* is free; give --context 40 or less"
    ):
        choose_context(small, 41, 1100 + 439)
    with pytest.raises(ContextError, match="close other programs"):
        choose_context(small, None, 1139)
    with pytest.raises(ContextError, match="0 tokens was asked for"):
        choose_context(small, 0, 10**6)


def test_a_cache_holds_as_many_whole_contexts_as_memory_does() -> None:
    made = manifest()  # 10 bytes a token in pages of 4, 1100 for the rest
    assert cache_tokens(made, 18, 1, 10**6) == 20
    assert cache_tokens(made, 18, 3, 10**6) == 60
    assert cache_tokens(made, 18, 3, 1100 + 40 * 11) == 44
    assert cache_tokens(made, 18, 3, 0) == 18


def test_parallel_is_what_the_library_holds() -> None:
    assert choose_parallel(manifest(), None) == 8 and choose_parallel(manifest(), 64) == 64
    assert choose_parallel(RecurrentLibrary().manifest, 5) == 1
    for wrong in (0, 65):
        with pytest.raises(EngineError, match=f"parallel is {wrong}; the library holds 1 to 64"):
            choose_parallel(manifest(), wrong)
