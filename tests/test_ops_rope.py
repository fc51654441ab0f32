"""RoPE angles, and the append of keys and values into paged pools, against their float64
definitions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from op_cases import compiled, cpu_kernel, nmse
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op, spec

from minicpm_mlc.ops.formats.kv import F16, F32, KVFormat
from minicpm_mlc.ops.rope_angles import RopeAngles, rope_angles_definition
from minicpm_mlc.ops.rope_append import RopeAppend, rope_append_definition

FAMILIES = [(16, 2, 64, F16), (4, 4, 128, F32)]


def inv_freq(head_dim: int) -> np.ndarray:
    return (10000.0 ** -(np.arange(head_dim // 2) * 2 / head_dim)).astype(np.float32)


@cache
def append(num_heads: int, num_kv_heads: int, head_dim: int, kv: KVFormat, batched: bool):
    return compiled(cpu_kernel(RopeAppend(num_heads, num_kv_heads, head_dim, kv, batched)))


def append_case(family: tuple, n: int, first: int, batched: bool):
    """qkv, cos_sin, slots, page_tables, k_pages, v_pages, with shuffled pages and used pools."""
    num_heads, num_kv_heads, head_dim, kv = family
    rng = np.random.default_rng(n)
    pages = (first + n) // 64 + 1
    tables = rng.permutation(pages * n if batched else pages).astype(np.int32).reshape(-1, pages)
    slots = rng.integers(0, first + n, n) if batched else np.arange(first, first + n)
    pool = rng.standard_normal((tables.size, num_kv_heads, head_dim, 64)).astype(kv.storage)
    qkv = rng.standard_normal((n, (num_heads + 2 * num_kv_heads) * head_dim)).astype(np.float32)
    cos_sin = rope_angles_definition(slots, inv_freq(head_dim)).astype(np.float32)
    return qkv, cos_sin, slots.astype(np.int32), tables, pool, pool.transpose(0, 1, 3, 2).copy()


@pytest.mark.parametrize("head_dim", [64, 128])
def test_angles_match_definition_up_to_128k(head_dim: int):
    positions = np.concatenate(
        [np.arange(130), np.random.default_rng(0).integers(0, 131072, 200)]
    ).astype(np.int32)
    call = compiled(cpu_kernel(RopeAngles(head_dim, attention_scale=1.25)))
    for n in (1, 2, 64, 330):
        out = np.zeros((n, head_dim), np.float32)
        call(positions[-n:], inv_freq(head_dim), out)
        assert (
            np.abs(out - rope_angles_definition(positions[-n:], inv_freq(head_dim), 1.25)).max()
            < 1e-6
        )


@pytest.mark.parametrize("n,first", [(1, 0), (2, 62), (7, 60), (64, 64), (65, 3)])
@pytest.mark.parametrize("batched", [False, True], ids=["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_append_rotates_and_writes_only_its_slots(family: tuple, batched: bool, n: int, first: int):
    qkv, cos_sin, slots, tables, k_pages, v_pages = append_case(family, n, first, batched)
    expected_k, expected_v = k_pages.astype(np.float64), v_pages.astype(np.float64)
    expected_q = rope_append_definition(
        qkv, cos_sin, slots, tables, expected_k, expected_v, family[0], family[3]
    )
    q = np.zeros((n, family[0], family[2]), np.float32)
    append(*family, batched)(qkv, cos_sin, slots, tables, k_pages, v_pages, q)
    assert nmse(q, expected_q) < 1e-12
    tolerance = 1e-7 if family[3] is F32 else 1e-3
    np.testing.assert_allclose(k_pages, expected_k, rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(v_pages, expected_v, rtol=tolerance, atol=1e-6)


class Append(nn.Module):
    """The call form that a model uses: two pools in place and one fresh output."""

    def forward(
        self,
        qkv: nn.Tensor,
        cos_sin: nn.Tensor,
        slots: nn.Tensor,
        tables: nn.Tensor,
        k: nn.Tensor,
        v: nn.Tensor,
    ):
        q = nn.Tensor.placeholder([qkv.shape[0], 4, 128], "float32")
        return op.tensor_ir_inplace_op(
            cpu_kernel(RopeAppend(4, 4, 128, F32, batched=False)),
            "rope_append",
            [qkv, cos_sin, slots, tables, k, v],
            inplace_indices=[4, 5, -1],
            out=[
                nn.Tensor.placeholder(k.shape, k.dtype),
                nn.Tensor.placeholder(v.shape, v.dtype),
                q,
            ],
        )


def test_relax_call_updates_both_pools_in_place():
    shapes = {
        "qkv": spec.Tensor(["n", 12 * 128], "float32"),
        "cos_sin": spec.Tensor(["n", 128], "float32"),
        "slots": spec.Tensor(["n"], "int32"),
        "tables": spec.Tensor(["s", "p"], "int32"),
        "k": spec.Tensor(["pages", 4, 128, 64], "float32"),
        "v": spec.Tensor(["pages", 4, 64, 128], "float32"),
    }
    methods: Any = {"forward": {**shapes, "$": {"param_mode": "none", "effect_mode": "none"}}}
    module = Append().export_tvm(methods)[0]
    target = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    executable = tvm.compile(module, target, relax_pipeline=relax.get_default_pipeline(target))
    arrays = append_case(FAMILIES[1], n=7, first=60, batched=False)
    device: Any = tvm.cpu()
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    result = relax.VirtualMachine(executable, device)["forward"](*tensors)
    expected_q = rope_append_definition(*arrays, num_heads=4, kv=F32)
    assert nmse(result[2].numpy(), expected_q) < 1e-12
    for pool, expected in zip(
        tensors[4:], arrays[4:], strict=True
    ):  # the very tensors that were passed in
        assert nmse(pool.numpy(), expected) < 1e-12
