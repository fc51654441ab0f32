"""The functions of a library, and the shapes and dtypes of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.relax.frontend.nn import spec

from minicpm_mlc.bundle.manifest import CANDIDATES, LIKELIEST
from minicpm_mlc.bundle.state import Table, bytes_per
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.eagle import Eagle, EagleCalls
from minicpm_mlc.ops.build import has_kernel
from minicpm_mlc.ops.formats.draft_tree import PARTS
from minicpm_mlc.ops.formats.tree import MASK_WORDS
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.likeliest import Likeliest

Arguments = dict[str, Any]  # as TVM's `export_tvm` takes them
Functions = dict[str, tuple[Callable[..., Any], Arguments]]

PARAMS: Arguments = {"$": {"param_mode": "packed", "effect_mode": "none"}}
NO_PARAMS: Arguments = {"$": {"param_mode": "none", "effect_mode": "none"}}
ONE_TABLE: Arguments = {"page_table": spec.Tensor([1, "p"], "int32")}
TABLES: Arguments = {"page_tables": spec.Tensor(["b", "p"], "int32")}


def functions(model: Decoder) -> Functions:
    """Every function of the model's library by its name."""
    return model_functions(model) | (draft_functions(model, model.draft) if model.draft else {})


def model_functions(model: Decoder) -> Functions:
    """Those of the base, in each gear that it has; state per sequence can't be taken back, so a
    model with some verifies no tree.
    """
    pools, recurrent = pool_arguments(model.state), bytes_per("sequence", model.state) > 0
    rows = "token_ids positions slots"
    kinds = {
        "prefill": ids("n", rows) | ONE_TABLE | ids("m", "logit_rows"),
        "decode": ids("b", rows) | TABLES,
    }
    if not recurrent:
        kinds["verify"] = ids("t", rows) | tree_arguments("t")
    gears = ("", "_sparse") if model.config.sparse else ("",)
    called = choosing_functions(model) | {
        kind + gear: (getattr(model, kind + gear), arguments | pools | PARAMS)
        for kind, arguments in kinds.items()
        for gear in gears
    }
    if recurrent:
        return called
    commit = ids("t", "sources slots") | ONE_TABLE | pools | NO_PARAMS
    return called | {"commit": (model.commit, commit)}


def choosing_functions(model: Decoder) -> Functions:
    """What tells the likeliest tokens of a step's logits, and those to draw from, where the target
    has kernels for it.
    """
    if not has_kernel(Likeliest, model.plan.kernels.traits):
        return {}
    columns = -(-model.config.vocab_size // LANES) * LANES
    logits = {"logits": spec.Tensor(["b", columns], "float32")}
    temperatures = {"temperatures": spec.Tensor(["b"], "float32")}
    return {
        LIKELIEST: (model.likeliest, logits | NO_PARAMS),
        CANDIDATES: (model.candidates, logits | temperatures | NO_PARAMS),
    }


def draft_functions(model: Decoder, draft: Eagle) -> Functions:
    """Those of the draft head."""
    calls, config = EagleCalls(model, draft), draft.config
    pools = pool_arguments(draft.state)
    features = {"features": spec.Tensor(["n", config.feature_width], "float32")}
    extend = ids("n", "token_ids") | features | ids("n", "positions slots") | ONE_TABLE
    hidden = {"hidden": spec.Tensor(["t", config.hidden_size], "float32")}
    step = ids("t", "token_ids") | hidden | ids("t", "positions slots") | tree_arguments("t")
    growing = {
        "vocabulary": spec.Tensor([config.vocab_size], "int32"),
        "tree": spec.Tensor(["s", len(PARTS), "t"], "int32"),
    }
    return {
        "draft_extend": (calls.draft_extend, extend | ids("m", "logit_rows") | pools | PARAMS),
        "draft_step": (calls.draft_step, step | pools | PARAMS),
        "draft_choose": (calls.draft_choose, guesses(config) | growing | NO_PARAMS),
        "draft_level": (calls.draft_level, step | growing | pools | PARAMS),
    }


def guesses(config: DraftConfig) -> Arguments:
    """Arguments that are what a head gave after r rows, and where these are."""
    likeliest = [spec.Tensor(["r", config.top_k], dtype) for dtype in ("int32", "float32")]
    found = dict(zip(("ids", "values"), likeliest, strict=True))
    hidden = {"hidden": spec.Tensor(["r", config.hidden_size], "float32")}
    placed = {name: each for name, each in tree_arguments("r").items() if name != "page_table"}
    return found | hidden | ids("r", "positions slots") | placed


def ids(n: str, names: str) -> Arguments:
    """Arguments that are rows of int32."""
    return {name: spec.Tensor([n], "int32") for name in names.split()}


def tree_arguments(n: str) -> Arguments:
    """Arguments that place n nodes of a token tree."""
    ancestors = {"ancestors": spec.Tensor([n, MASK_WORDS], "int32")}
    return {"base": spec.Tensor([1], "int32")} | ONE_TABLE | ancestors


def pool_arguments(table: Table) -> Arguments:
    """The argument that is all pools, in the table's order."""
    rows = {"page": "num_pages", "sequence": "num_sequences"}
    return {
        "pools": [
            spec.Tensor([rows[entry.per], *entry.shape], entry.dtype)
            for entry in table
            for _ in entry.layers
        ]
    }
