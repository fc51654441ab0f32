"""The drafters of an engine."""

from __future__ import annotations

from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.draft_model import DraftModel
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter
from minicpm_mlc.runtime_py.speculative.eagle import WINDOW_TOKENS, EagleDrafter
from minicpm_mlc.runtime_py.speculative.ngram import NgramDrafter
from minicpm_mlc.runtime_py.speculative.steps import Drafter

MISSING = {
    "eagle": "{bundle} has no draft head; compile it with one: minicpm-mlc compile CHECKPOINT "
    "--draft HEAD",
    "draft": "no draft bundle was opened; give one: Engine(bundle, draft=BUNDLE), or "
    "--draft-model BUNDLE",
}


def open_drafters(
    model: CachedModel, has_head: bool, small: ModelDrafter | None = None
) -> dict[str, Drafter]:
    """By name, the least expensive first: prompt lookup, the bundle's draft head if it has one, and
    a smaller bundle if one is given. None for a model whose state can't go back.
    """
    if model.sequence.recurrent:
        return {}
    drafters: dict[str, Drafter] = {"ngram": NgramDrafter()}
    if has_head:
        drafters["eagle"] = EagleDrafter(
            DraftModel(model.cache, model.sequence, WINDOW_TOKENS), model
        )
    if small is not None:
        drafters["draft"] = small
    return drafters
