"""What a folder says of how its weights are quantised: in config.json, in a file beside it, or by
the names of its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.bundle.small_files import CONFIG
from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.forms import Stated
from minicpm_mlc.compile.config.keys import shown

BESIDE = ("quantize_config.json", "quant_config.json")
AWQ_VERSIONS = ("gemm", "gemv", "gemv_fast", "marlin", "exllama", "ipex")


def stated_form(folder: Path, found: Found) -> Stated | None:
    """The form of the folder's weights; None where they are floats."""
    config = _object(folder / CONFIG)
    mlx, values = config.get("quantization"), config.get("quantization_config")
    if mlx:
        return Stated("mlx", _settings(mlx, where := f"{folder / CONFIG}: quantization"), where)
    if values:
        where = f"{folder / CONFIG}: quantization_config"
        return _named(_settings(values, where), where)
    for name in BESIDE:
        if values := _object(folder / name):
            return _named(values, str(folder / name))
    return _by_names(folder, found)


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, CheckpointError, "download it again")
    except FileNotFoundError:
        return {}


def _settings(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is {shown(value)}, expected an object; download it again")
    return value


def _named(values: dict[str, Any], where: str) -> Stated:
    """The form that settings name, or that only one form has such settings."""
    method = values.get("quant_method") or values.get("method")
    if method is None and str(values.get("version")).lower() in AWQ_VERSIONS:
        method = "awq"
    if method is None and "desc_act" in values:
        method = "gptq"
    if method is None and any(key.startswith("load_in_") for key in values):
        method = "bitsandbytes"
    if method is None and {"group_size", "bits"} <= values.keys():
        method = "mlx"
    return Stated(str(method).lower(), values, where)


def _by_names(folder: Path, found: Found) -> Stated | None:
    """CPM.cu writes weights without a word in the config."""
    if not any(name.endswith(".qweight") for name in found):
        return None
    fused = any(name.endswith("qkv_proj.qweight") for name in found)
    return Stated("marlin" if fused else "gptq", {}, str(folder))
