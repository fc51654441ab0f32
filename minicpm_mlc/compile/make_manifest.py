"""The manifest of a bundle that is being compiled."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

from minicpm_mlc.bundle.manifest import MAX_TREE_NODES, PAGE_SIZE, Manifest
from minicpm_mlc.bundle.manifest_schema import WEIGHT_LAYOUTS
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stored_bytes
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.state import attention_state, bytes_per_token, model_state
from minicpm_mlc.ops.gpu.score_spread import scratch_bytes
from minicpm_mlc.targets import Target


def make_manifest(
    config: ModelConfig,
    precision: Precision,
    target: Target,
    params: list[Param],
    longest: int,
    prefill_chunk: int,
    calibration: dict[str, Any] | None,
) -> Manifest:
    """The manifest, but for its files and the names of the stored tensors. `longest`: tokens of
    context; `calibration`: what the manifest says of the text that rounding saw.
    """
    state = model_state(config, precision.kv)
    return Manifest(
        name=config.name,
        scheme=precision.linear.name,
        embedding_scheme=precision.embedding.name,
        activations=precision.activations,
        weight_layout=WEIGHT_LAYOUTS[precision.activations],
        mixed={source: scheme.name for source, scheme in precision.mixed.items()},
        calibration=calibration,
        target=target.describe(),
        model=config.to_dict(),
        kv_dtype=precision.kv.dtype,
        state=state,
        max_context=longest,
        prefill_chunk=prefill_chunk,
        params=[],
        memory={
            "weights": stored_bytes(params),
            "kv_per_token": bytes_per_token(state),
            "activations": _activation_bytes(config, target, prefill_chunk, longest),
        },
        tvm=version("apache-tvm"),
        library=target.libraries[0],
    )


def with_draft(
    manifest: Manifest, config: DraftConfig, precision: Precision, params: list[Param]
) -> Manifest:
    """The manifest of a bundle with a draft head. `params`: the base's and the head's."""
    state = attention_state(config, precision.kv)
    draft = {
        "kind": config.kind,
        "scheme": precision.linear.name,
        "layers": config.num_layers,
        "features": config.feature_width,
        "feature_layers": list(config.feature_layers),
        "hidden": config.hidden_size,
        "vocab": config.vocab_size,
        "top_k": config.top_k,
        "state": state,
    }
    feature_bytes = 4 * manifest.prefill_chunk * config.feature_width
    memory = {
        "weights": stored_bytes(params),
        "kv_per_token": manifest.memory["kv_per_token"] + bytes_per_token(state),
        "activations": manifest.memory["activations"] + feature_bytes,
    }
    return replace(manifest, draft=draft, memory=memory)


def _activation_bytes(config: ModelConfig, target: Target, prefill_chunk: int, longest: int) -> int:
    """At the widest moment of a prefill: gate and up, their product, and the residual stream. A
    GPU's runtime keeps the memory of gate and up for the logits of segments, which may be more.
    """
    scratch, pages = 8 * prefill_chunk * config.intermediate_size, -(-longest // PAGE_SIZE)
    if config.sparse and target.traits.folder == "gpu":
        scratch = max(scratch, scratch_bytes(MAX_TREE_NODES, config.num_heads, pages))
    return 4 * prefill_chunk * (config.intermediate_size + 2 * config.hidden_size) + scratch
