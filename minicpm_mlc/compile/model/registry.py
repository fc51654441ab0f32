"""Finds the file that a model is in, by what the files of this package declare.

A model is added by adding its file: every module here with a `DECLARATION` is found.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from minicpm_mlc.base.errors import CheckpointError, ConfigError
from minicpm_mlc.base.files import read_json, read_json_object
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.compile import model as package
from minicpm_mlc.compile.config.draft_config import UNUSED, DraftConfig, base_fields, draft_fields
from minicpm_mlc.compile.config.keys import HARMLESS, Keys, shown
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.model.declaration import EagleDeclaration, ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.eagle import DRAFT
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import F32
from minicpm_mlc.ops.formats.weights import SCHEMES

if TYPE_CHECKING:
    from minicpm_mlc.compile.kernels import Kernels  # imports TVM

PLAIN = Precision(SCHEMES["f32"], SCHEMES["f32"], F32)  # published names depend on none
QUANTISATION = (
    "quantization_config",
    "quantization",
)  # read with the weights: checkpoint/stated.py
Declared = TypeVar("Declared", ModelDeclaration, EagleDeclaration)


@cache
def models() -> dict[str, ModelDeclaration]:
    """Every decoder by its `model_type`, the project's own first."""
    return _declared(ModelDeclaration)


@cache
def eagles() -> dict[str, EagleDeclaration]:
    """Every kind of draft head."""
    return _declared(EagleDeclaration)


def _declared(kind: type[Declared]) -> dict[str, Declared]:
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    names.sort(key=lambda name: (not name.startswith("minicpm"), name))
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    found = {name: getattr(module, "DECLARATION", None) for name, module in modules.items()}
    return {name: one for name, one in found.items() if isinstance(one, kind)}


def read_config(
    raw: object, name: str, where: str = "config.json", sparse: object = None
) -> ModelConfig:
    """From a parsed config.json; `name` is the model's, `sparse` takes the place of its
    `sparse_config`. Raises ConfigError naming the key that is missing, mistyped or not implemented.
    """
    keys = Keys(raw, where)
    if sparse is not None:
        keys.left["sparse_config"] = sparse
    model_type = _model_type(keys)
    for key in QUANTISATION:
        keys.take(key, None)
    fields = models()[model_type].read(keys)
    keys.finish(HARMLESS)
    return ModelConfig(name=name, model_type=model_type, **fields)


def read_config_folder(folder: str | Path, sparse: object = None) -> ModelConfig:
    """From a checkpoint folder, which names the model; `sparse` as in read_config. Raises
    CheckpointError when it is no folder, ConfigError for its config.json.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; give the folder that holds config.json and the weights"
        )
    return read_config(_read_json(path / "config.json"), model_name(path), sparse=sparse)


def read_sparse_file(path: Path) -> object:
    """The `sparse_config` in a JSON file: a config.json that has one, or that object alone. Raises
    ConfigError.
    """
    try:
        values = read_json_object(path, ConfigError, "give the object, or a config.json with it")
    except FileNotFoundError:
        raise ConfigError(f"--sparse-config {path}: there is no such file") from None
    return values.get("sparse_config", values)


def model_name(folder: Path) -> str:
    """What a checkpoint's folder calls its model. Caches hold it in snapshots/REVISION of
    models--ORG--NAME (Hugging Face) or ORG--NAME (ModelScope, earlier ORG/NAME with ___ for a dot).
    """
    place = folder.resolve()
    cached = place.parents[1].name if place.parent.name == "snapshots" else ""
    if "--" in cached:
        return whole_characters(cached.split("--")[-1])
    return whole_characters(place.name).replace("___", ".") or "model"


def _read_json(path: Path) -> object:
    try:
        return read_json(path, ConfigError, "download it again")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no config.json, so it is not a checkpoint folder; give the one "
            "that holds config.json and the weights"
        ) from None


def _model_type(keys: Keys) -> str:
    """The one model that `model_type` and `architectures` both name; either may be absent."""
    named = keys.take("model_type", None)
    architectures = keys.take("architectures", None) or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise keys.refuse("architectures", architectures, "a list of names")
    types = {alias: name for name, model in models().items() for alias in model.model_types}
    classes = {alias: name for name, model in models().items() for alias in model.architectures}
    found = {classes.get(a) for a in architectures}
    if named is not None:  # the published 0.5B has no model_type
        found.add(types.get(str(named)))
    model_type = found.pop() if len(found) == 1 else None
    if model_type is None:
        raise ConfigError(
            f"{keys.where}: model_type {shown(named)} with architectures {shown(architectures)} "
            f"is not supported, expected one of {', '.join(classes)}"
        )
    return model_type


def with_context(config: ModelConfig, length: int) -> ModelConfig:
    """The model for contexts up to `length` tokens. Raises ConfigError for more than it reaches."""
    if length <= config.max_position_embeddings:
        return config
    longer = models()[config.model_type].longer_context(config) or config
    reach = longer.max_position_embeddings
    if length > reach:
        raise ConfigError(
            f"--context {length}: {config.name} reaches {reach} tokens; ask for no more"
        )
    return longer


def sparse_settings(config: ModelConfig) -> SparseConfig | None:
    """The settings to run InfLLM-v2 with, None for a model that was not trained for it."""
    return models()[config.model_type].sparse_settings(config)


def read_draft_config(
    raw: object, kind: str, bias: bool, base: ModelConfig, where: str
) -> DraftConfig:
    """From a parsed config.json; `kind` and `bias` follow from the tensors beside it.

    Raises ConfigError naming the key that asks for other maths, or that doesn't fit the base.
    """
    keys = Keys(raw, where)
    fields = draft_fields(keys, base)
    fields |= eagles()[kind].read(keys, base)
    keys.finish(HARMLESS | UNUSED)
    return DraftConfig(kind=kind, bias=bias, **fields)


def draft_config_like(base: ModelConfig, kind: str) -> DraftConfig:
    """The head that was published for a base of this shape, or would be."""
    return DraftConfig(kind=kind, **base_fields(base), **eagles()[kind].like(base))


def published_tensors(config: ModelConfig | DraftConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model's checkpoint, or a draft head's, by its published name
    and in layer order; matrices are [out, in].
    """
    if isinstance(config, DraftConfig):
        return eagles()[config.kind].part(config, PLAIN).published()
    return models()[config.model_type].part(config, PLAIN).published()


def count_parameters(config: ModelConfig | DraftConfig) -> int:
    """How many numbers the checkpoint holds; a tied embedding counts once."""
    return sum(math.prod(shape) for shape in published_tensors(config).values())


def build_model(
    config: ModelConfig,
    precision: Precision,
    draft: tuple[DraftConfig, Precision] | None = None,
    kernels: Kernels | None = None,
) -> Decoder:
    """The model, with a draft head or without; without `kernels` it can be described, not run."""
    model = models()[config.model_type].part(config, precision, kernels)
    if draft:
        model.draft = eagles()[draft[0].kind].part(*draft, kernels, at=DRAFT)
    return model
