"""The state table: which pools a library has, in which order, and what may stand in a manifest."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from checkpoints import tiny_config
from test_bundle import HOST, MANIFEST

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.manifest import PAGE_SIZE, read_bundle
from minicpm_mlc.bundle.state import (
    DTYPES,
    StateEntry,
    bytes_per,
    parse_table,
    pool_places,
    pool_shapes,
)
from minicpm_mlc.cli.options import KV
from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.state import attention_state, bytes_per_token, layer_pools
from minicpm_mlc.ops.formats.kv import INT8, KV_FORMATS
from minicpm_mlc.runtime_py.admission import admit

# attention in layers 0 and 2, a recurrent state in layer 1
TABLE = [
    StateEntry("keys", (0, 2), (2, 8, 64), "float16"),
    StateEntry("recurrent", (1,), (4, 5), "float32", "sequence"),
    StateEntry("values", (0, 2), (2, 64, 8), "float16"),
]
GOOD = {"name": "keys", "layers": [0, 2], "shape": [2, 64], "dtype": "float16", "per": "page"}


def test_layers_that_differ_find_their_own_pools() -> None:
    assert pool_places(TABLE) == [
        ("keys", 0),
        ("keys", 2),
        ("recurrent", 1),
        ("values", 0),
        ("values", 2),
    ]
    assert layer_pools(TABLE, "abcde", 0) == {"keys": "a", "values": "d"}
    assert layer_pools(TABLE, "abcde", 1) == {"recurrent": "c"}
    assert layer_pools(TABLE, "abcde", 2) == {"keys": "b", "values": "e"}
    with pytest.raises(ValueError):
        layer_pools(TABLE, "abcd", 0)


def test_pools_have_a_row_for_each_page_or_sequence() -> None:
    keys, values = ((9, 2, 8, 64), "float16"), ((9, 2, 64, 8), "float16")
    assert pool_shapes(TABLE, 9, 3) == [keys, keys, ((3, 4, 5), "float32"), values, values]
    assert bytes_per("page", TABLE) == 4 * 2 * 8 * 64 * 2
    assert bytes_per("sequence", TABLE) == 4 * 5 * 4


def test_a_table_is_read_as_it_was_written() -> None:
    written = json.loads(json.dumps([dataclasses.asdict(entry) for entry in TABLE]))
    assert parse_table(written, 3) == TABLE


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": 3},
        {"layers": []},
        {"layers": [2, 0]},
        {"layers": [0, 0]},
        {"layers": [-1]},
        {"layers": [3]},
        {"layers": [0.0]},
        {"layers": 1},
        {"shape": []},
        {"shape": [2, 0]},
        {"shape": [2, True]},
        {"shape": "64"},
        {"dtype": "bfloat16"},
        {"dtype": ["float16"]},
        {"per": "layer"},
        {"per": None},
        {"more": 1},
    ],
    ids=str,
)
def test_an_entry_that_no_pool_can_have_is_refused(change: dict[str, Any]) -> None:
    assert parse_table([GOOD], 3)[0].shape == (2, 64)
    with pytest.raises(ValueError):
        parse_table([GOOD | change], 3)


@pytest.mark.parametrize("table", [["keys"], [None], [{"name": "keys"}], [GOOD, GOOD]], ids=str)
def test_a_table_of_something_else_is_refused(table: list[Any]) -> None:
    with pytest.raises(ValueError):
        parse_table(table, 3)


def test_a_bundle_with_a_bad_table_is_damaged(tmp_path) -> None:
    def read(**changes: Any) -> None:
        files = {"model.so": {"bytes": 0, "sha256": "0" * 64}}
        data = json.loads(MANIFEST.to_bytes()) | {"files": files} | changes
        (tmp_path / "model.so").touch()
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        admit(tmp_path, trusted=True)
        read_bundle(tmp_path, host=HOST, tvm=MANIFEST.tvm, verify="never")

    draft = dict.fromkeys(("layers", "features", "hidden", "vocab", "top_k"), 1)
    draft |= {"kind": "eagle3", "scheme": "w4", "state": [GOOD | {"layers": [0]}]}
    draft |= {"feature_layers": []}
    read()
    read(draft=draft)
    with pytest.raises(BundleError, match="damaged at 'state: keys'"):
        read(state=[GOOD])  # of a model of two layers
    with pytest.raises(BundleError, match="damaged at 'draft: state: keys'"):
        read(draft=draft | {"state": [GOOD]})
    with pytest.raises(BundleError, match="damaged at 'state'"):
        read(state={"keys": GOOD})


@pytest.mark.parametrize("kv", KV_FORMATS.values(), ids=str)
def test_a_formats_pages_are_pools_of_the_table(kv) -> None:
    config = dataclasses.replace(tiny_config("MiniCPM4.1-8B"), sparse=SparseConfig())
    table = attention_state(config, kv)
    keys, values = kv.empty(1, config.num_kv_heads, config.head_dim)
    assert [entry.name for entry in table] == ["keys", "values", "means"]
    assert {entry.layers for entry in table} == {tuple(range(config.num_layers))}
    for entry, pool in zip(table, (keys, values), strict=False):
        assert (entry.shape, entry.dtype, entry.per) == (pool.shape[1:], str(pool.dtype), "page")
        assert entry.dtype in DTYPES
    size = sum(entry.bytes for entry in table)
    assert bytes_per_token(table) * PAGE_SIZE == size
    means = config.num_kv_heads * 4 * config.head_dim * 4
    assert size == config.num_layers * (keys.nbytes + values.nbytes + means)


def test_the_command_line_offers_every_format() -> None:
    assert tuple(KV.choices) == tuple(KV_FORMATS)


def test_formats_and_tables_are_read_without_tvm() -> None:
    code = (
        "import sys\n"
        "from minicpm_mlc.compile.state import attention_state\n"
        "from minicpm_mlc.ops.formats.kv import KV_FORMATS\n"
        "print(*KV_FORMATS)\n"
        "sys.exit('tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["f32", "f16", "bf16", INT8.name])
