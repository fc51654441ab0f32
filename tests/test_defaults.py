from __future__ import annotations

import pytest
from fake_library import manifest

from minicpm_mlc.base.errors import ContextError
from minicpm_mlc.runtime_py.defaults import choose_context

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
