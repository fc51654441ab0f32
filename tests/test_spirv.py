"""The SPIR-V generator: each kind of expression and statement run on a Vulkan device, valid
shaders, clear refusals.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tvm
from gpu_cases import compiled_together, device_named
from op_cases import gpu_kernel
from op_grid import cases_of
from tvm.script import tirx as T

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.formats.kv import F16, INT8
from minicpm_mlc.ops.gpu.kernel import accumulate, barrier, kernel, registers, shared, workgroups
from minicpm_mlc.ops.rms_norm import RmsNorm
from minicpm_mlc.ops.rope_append import RopeAppend
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.embed import Reader
from minicpm_mlc.targets.vulkan import VulkanTarget
from minicpm_mlc.targets.vulkan.artifact import CONSTANT

needs_vulkan = pytest.mark.skipif(
    device_named("vulkan") is None, reason="no Vulkan device with its runtime: make devices"
)
needs_validator = pytest.mark.skipif(
    shutil.which("spirv-val") is None, reason="no spirv-val: make devices"
)
N = 64  # elements, one for each workgroup
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]

Operations = dict[
    str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
]  # (TIR, NumPy) of two operands


class WideTarget(VulkanTarget):
    """With the types that the portable target does without."""

    limits: ClassVar[dict[str, int]] = VulkanTarget.limits | {
        "supports_int64": True,
        "supports_float64": True,
        "supports_float16": True,
    }


def target(kind: type[VulkanTarget] = VulkanTarget) -> VulkanTarget:
    return kind(CpuTarget.of("native"))


def shaders(functions: dict[str, Any]) -> dict[str, bytes]:
    """The SPIR-V of the functions' kernels, from the bytes that their library would store."""
    module = tvm.IRModule(
        {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    )
    built = tvm.compile(module, target().tvm_target(), tir_pipeline=target().tir_pipeline())
    constants = built.mod.imports[0]["get_const_var_tensor"]()
    reader = Reader(constants[CONSTANT].numpy().tobytes())
    assert reader.string() == b"vulkan"
    for _ in range(reader.number()):
        assert reader.string() == reader.string()  # the key, and the name again
        reader.take(4 * reader.number())  # types of the arguments
        for _ in range(reader.number()):
            reader.string()
        assert reader.number() == 0
    return {
        reader.string().decode(): (reader.take(4), reader.take(4 * reader.number()))[1]
        for _ in range(reader.number())
    }


def elementwise(dtype: str, outputs: str, operations: Operations) -> Any:
    """PrimFunc (a dtype[n], b dtype[n], out outputs[operations, n])."""

    def emit(dims: Any, a: Any, b: Any, out: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            for row, (operation, _) in enumerate(operations.values()):
                T.buffer_store(
                    out, T.Cast(outputs, operation(T.Bind(a[i]), T.Bind(b[i]))), [row, i]
                )

    return kernel(
        "elementwise",
        {"a": (dtype, "n"), "b": (dtype, "n"), "out": (outputs, len(operations), "n")},
        emit,
    )


def run(
    dtype: str, outputs: str, operations: Operations, kind: type[VulkanTarget] = VulkanTarget
) -> dict[str, tuple]:
    """Each operation's results and what they should be, on numbers of the whole range of an integer
    type, or floats.
    """
    rng = np.random.default_rng(len(dtype))
    if dtype.startswith("float"):
        a, b = rng.uniform(0.1, 3, (2, N)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        a, b = rng.integers(info.min, info.max, (2, N), dtype, endpoint=True)
        a[:4], b[:4] = (info.min + (dtype == "int64"), info.max, 0, 1), (3, 7, info.max, 2)
        b[b == 0] = 5
    out = np.zeros((len(operations), N), outputs)
    compiled_together({"main": elementwise(dtype, outputs, operations)}, "vulkan", target(kind))[
        "main"
    ](a, b, out)
    with np.errstate(over="ignore"):
        return {
            name: (out[i], expected(a, b).astype(outputs))
            for i, (name, (_, expected)) in enumerate(operations.items())
        }


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Division that rounds towards zero."""
    a, b = a.astype(np.int64), b.astype(np.int64)
    return np.sign(a) * np.sign(b) * (abs(a) // abs(b))


ARITHMETIC: Operations = {
    "+": (lambda a, b: a + b, np.add),
    "-": (lambda a, b: a - b, np.subtract),
    "*": (lambda a, b: a * b, np.multiply),
    "min": (T.min, np.minimum),
    "max": (T.max, np.maximum),
    "truncdiv": (T.truncdiv, truncated),
    "truncmod": (T.truncmod, lambda a, b: a - truncated(a, b) * b),
    "floordiv": (T.floordiv, lambda a, b: a.astype(np.int64) // b),
    "floormod": (T.floormod, lambda a, b: a.astype(np.int64) % b),
    "a < b": (lambda a, b: a < b, np.less),
    "a <= b": (lambda a, b: a <= b, np.less_equal),
    "a > b": (lambda a, b: a > b, np.greater),
    "a >= b": (lambda a, b: a >= b, np.greater_equal),
    "a = b": (lambda a, b: a.equal(b), np.equal),
    "a != b": (lambda a, b: a != b, np.not_equal),
    "select": (
        lambda a, b: T.Select(T.And(a < b, T.Not(b < 9)), a, b),
        lambda a, b: np.where((a < b) & (b >= 9), a, b),
    ),
}
BITS: Operations = {
    "and": (T.bitwise_and, np.bitwise_and),
    "or": (T.bitwise_or, np.bitwise_or),
    "xor": (T.bitwise_xor, np.bitwise_xor),
    "not": (lambda a, _: T.bitwise_not(a), lambda a, _: ~a),
    "<<": (lambda a, _: T.shift_left(a, T.Cast(str(a.ty.dtype), 3)), lambda a, _: a << 3),
    ">>": (lambda a, _: T.shift_right(a, T.Cast(str(a.ty.dtype), 3)), lambda a, _: a >> 3),
}


@needs_vulkan
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_and_round_as_numpys(dtype: str):
    for name, (found, expected) in run(dtype, dtype, ARITHMETIC | BITS).items():
        np.testing.assert_array_equal(found, expected, f"{name} of {dtype}")


@needs_vulkan
def test_wide_types_where_the_target_allows_them():
    for name, (found, expected) in run("int64", "int64", ARITHMETIC | BITS, WideTarget).items():
        np.testing.assert_array_equal(found, expected, f"{name} of int64")
    floats: Operations = {
        name: pair for name, pair in ARITHMETIC.items() if name[-3:] not in ("div", "mod")
    }
    floats["/"] = lambda a, b: a / b, np.divide
    for name, (found, expected) in run("float64", "float64", floats, WideTarget).items():
        np.testing.assert_allclose(found, expected, rtol=1e-15, err_msg=f"{name} of float64")


@needs_vulkan
def test_float16_arithmetic_where_the_target_allows_it():
    def rounded(a: Any, b: Any) -> Any:
        return T.Cast("float32", T.Cast("float16", a) * T.Cast("float16", b) + T.Cast("float16", a))

    def expected(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a.astype(np.float16) * b.astype(np.float16) + a.astype(np.float16)

    found, wanted = run("float32", "float32", {"a b + a": (rounded, expected)}, WideTarget)[
        "a b + a"
    ]
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    assert (found == found.astype(np.float16)).all()


@needs_vulkan
@pytest.mark.parametrize("source", [*INTEGERS, "float32"])
def test_conversions(source: str):
    def pair(to: str) -> tuple:
        return lambda a, b: T.Cast("float64", T.Cast(to, a)), lambda a, b: a.astype(to)

    operations: Operations = {to: pair(to) for to in [*INTEGERS, "float32", "bool"]}
    for to, (found, expected) in run(source, "float64", operations, WideTarget).items():
        np.testing.assert_array_equal(found, expected, f"{source} to {to}")


def function(name: str, expected: Callable[[Any], Any]) -> tuple:
    """One of TVM's functions of one number, and NumPy's in float64."""
    return lambda a, _: getattr(T, name)(a), lambda a, _: expected(a.astype(np.float64))


MATHS: Operations = {
    name: function(name, expected)
    for name, expected in {
        "exp": np.exp,
        "exp2": np.exp2,
        "log": np.log,
        "log2": np.log2,
        "sqrt": np.sqrt,
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "sin": np.sin,
        "cos": np.cos,
        "tanh": np.tanh,
        "floor": np.floor,
        "ceil": np.ceil,
        "trunc": np.trunc,
        "nearbyint": np.rint,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }.items()
} | {
    "abs": (lambda a, b: T.abs(a - b), lambda a, b: abs(a - b)),
    "-": (lambda a, b: -a, lambda a, b: -a),
    "/": (lambda a, b: a / b, lambda a, b: a / b),
    "late sin": (
        lambda a, b: T.sin(a * T.float32(-40000)),
        lambda a, b: np.sin((a * np.float32(-40000)).astype(np.float64)),
    ),
    "late cos": (
        lambda a, b: T.cos(a * T.float32(-4e7)),
        lambda a, b: np.cos((a * np.float32(-4e7)).astype(np.float64)),
    ),
    "pow": (T.pow, lambda a, b: a.astype(np.float64) ** b),
    "fmod": (T.fmod, np.fmod),
    "isnan": (lambda a, b: T.isnan(a), lambda a, b: np.isnan(a)),
}


@needs_vulkan
def test_float32_functions():
    for name, (found, expected) in run("float32", "float32", MATHS).items():
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6, err_msg=name)


@needs_vulkan
def test_bits_of_numbers():
    operations: Operations = {
        "popcount": (
            lambda a, b: T.popcount(a),
            lambda a, b: np.array([bin(x & 0xFFFFFFFF).count("1") for x in a.tolist()]),
        ),
        "clz": (
            lambda a, b: T.clz(a),
            lambda a, b: np.array([32 - (x & 0xFFFFFFFF).bit_length() for x in a.tolist()]),
        ),
        "to float and back": (
            lambda a, b: T.reinterpret(
                T.reinterpret(a & 0x3FFFFFFF, dtype="float32") * T.float32(2), dtype="int32"
            ),
            lambda a, b: ((a & 0x3FFFFFFF).view(np.float32) * np.float32(2)).view(np.int32),
        ),
        "unsigned": (
            lambda a, b: T.reinterpret(a, dtype="uint32") >> T.uint32(1),
            lambda a, b: a.view(np.uint32) >> 1,
        ),
    }
    for name, (found, expected) in run("int32", "int32", operations).items():
        normal = (
            name != "to float and back" or abs(expected) >= 1 << 24
        )  # Vulkan may flush what lies below
        np.testing.assert_array_equal(
            np.where(normal, found, 0), np.where(normal, expected, 0), name
        )


def call(arguments: dict[str, tuple], emit: Callable[..., None], *arrays: np.ndarray) -> None:
    """Run a kernel of the portable target on the Vulkan device."""
    compiled_together({"main": kernel("statements", arguments, emit)}, "vulkan")["main"](*arrays)


@needs_vulkan
def test_loops_and_branches():
    """The sum of the odd numbers below n, found by a loop with branches; how often 3 n + 1 or n / 2
    lead to 1, by while.
    """

    def emit(dims: Any, limits: Any, sums: Any, steps: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            state = registers(3, "int32", 0)
            with T.serial(limits[i]) as number:
                with T.If(number % 2 == 1), T.Then():
                    with T.If(number < 9):
                        with T.Then():
                            accumulate(state, 0, number)
                        with T.Else():
                            accumulate(
                                state, 0, T.if_then_else(number % 3 == 0, number, number * 1)
                            )
            T.buffer_store(state, limits[i] + 1, [1])
            with T.While(state[1] > 1):
                T.buffer_store(
                    state, T.Select(state[1] % 2 == 0, state[1] // 2, 3 * state[1] + 1), [1]
                )
                accumulate(state, 2, 1)
            T.buffer_store(sums, state[0], [i])
            T.buffer_store(steps, state[2], [i])

    def steps_to_one(n: int) -> int:
        return 0 if n <= 1 else 1 + steps_to_one(n // 2 if n % 2 == 0 else 3 * n + 1)

    limits = np.arange(N, dtype=np.int32)
    sums, steps = np.zeros_like(limits), np.zeros_like(limits)
    call(
        {"limits": ("int32", "n"), "sums": ("int32", "n"), "steps": ("int32", "n")},
        emit,
        limits,
        sums,
        steps,
    )
    np.testing.assert_array_equal(sums, [sum(range(1, n, 2)) for n in limits])
    np.testing.assert_array_equal(steps, [steps_to_one(n + 1) for n in limits])


@needs_vulkan
def test_shared_memory_and_barriers():
    """64 threads reverse a row by way of shared memory, four times over; each reads what another
    wrote.
    """

    def emit(dims: Any, x: Any, out: Any) -> None:
        with workgroups(dims.n, 64) as (row, thread):
            part, own = shared((64,)), registers(2)
            T.buffer_store(own, x[row, thread], [0])
            with T.serial(5) as step:
                T.buffer_store(part, own[step % 2], [thread])
                barrier()
                T.buffer_store(own, part[63 - thread] + T.float32(1), [(step + 1) % 2])
                barrier()
            T.buffer_store(out, own[1], [row, thread])

    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    out = np.zeros_like(x)
    call({"x": ("float32", "n", 64), "out": ("float32", "n", 64)}, emit, x, out)
    np.testing.assert_array_equal(out, x[:, ::-1] + 1 + 1 + 1 + 1 + 1)


@needs_vulkan
def test_a_branch_that_isnt_taken_reads_nothing():
    """An index far outside of the buffer, behind if_then_else."""

    def emit(dims: Any, x: Any, out: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            far = T.Select(i < 3, T.Cast("int64", i), T.int64(1 << 28))
            T.buffer_store(out, T.if_then_else(i < 3, x[far], T.float32(-1)), [i])

    x, out = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    call({"x": ("float32", "n"), "out": ("float32", "n")}, emit, x, out)
    np.testing.assert_array_equal(out, [0, 1, 2] + [-1] * (N - 3))


@needs_vulkan
def test_more_workgroups_than_a_device_takes_in_one_row():
    def emit(dims: Any, out: Any) -> None:
        with workgroups(dims.n, 2) as (i, thread):
            T.buffer_store(out, out[i, thread] + T.Cast("int32", i) * 2 + thread, [i, thread])

    out = np.zeros((200_003, 2), np.int32)
    call({"out": ("int32", "n", 2)}, emit, out)
    np.testing.assert_array_equal(out.reshape(-1), np.arange(400_006))


@needs_vulkan
def test_workgroups_in_rows_and_columns():
    """With a loop at the kernel's beginning."""

    def emit(dims: Any, out: Any) -> None:
        with T.launch_thread("blockIdx.y", dims.n) as y, T.launch_thread("blockIdx.x", 7) as x:
            with T.launch_thread("threadIdx.x", 3) as thread:
                total = registers(1, "int32", 0)
                with T.serial(4) as i:
                    accumulate(total, 0, i * thread)
                T.buffer_store(out, T.Cast("int32", y) * 100 + x * 10 + total[0], [y, x, thread])

    out = np.zeros((5, 7, 3), np.int32)
    call({"out": ("int32", "n", 7, 3)}, emit, out)
    y, x, thread = np.indices(out.shape)
    np.testing.assert_array_equal(out, 100 * y + 10 * x + 6 * thread)


@needs_vulkan
def test_more_scalars_than_fit_into_push_constants():
    names = [f"x{i}" for i in range(18)]

    def emit(dims: Any, *buffers: Any) -> None:
        *xs, out = buffers
        with workgroups(1, 1) as (_, thread):
            for i, x in enumerate(xs):
                T.buffer_store(
                    out, T.Cast("int32", x.shape[0]) * x[x.shape[0] - 1 + thread], [i + thread]
                )

    arguments = {name: ("int32", f"n{name}") for name in names} | {"out": ("int32", 18)}
    arrays = [np.arange(3 + i, dtype=np.int32) for i in range(18)]
    out = np.zeros(18, np.int32)
    call(arguments, emit, *arrays, out)
    np.testing.assert_array_equal(out, [(3 + i) * (2 + i) for i in range(18)])


@needs_validator
def test_every_operator_is_valid_spirv(tmp_path: Path):
    """One kernel of each operator and number format of the grid, by the validator for Vulkan
    1.1.
    """
    chosen = {(case.kernel.operator, case.kernel.dtype): case.kernel for case in cases_of("vulkan")}
    functions = {
        f"{operator}_{i}": chosen[operator, dtype].build(target())
        for i, (operator, dtype) in enumerate(chosen)
    }
    found = shaders(functions)
    assert len(found) >= len(functions) > 30
    for name, words in found.items():
        path = tmp_path / f"{name}.spv"
        path.write_bytes(words)
        command = ["spirv-val", "--target-env", "vulkan1.1", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"


def test_the_same_kernels_give_the_same_words():
    def built() -> dict[str, bytes]:
        return shaders(
            {
                "rows": gpu_kernel(RmsNorm(96, 1e-6)),
                "heads": gpu_kernel(AttendDecode(4, 2, 64, F16)),
            }
        )

    assert built() == built()


def test_portable_shaders_need_no_more_than_small_numbers_in_memory():
    """Not one capability beyond: no 64-bit numbers, no arithmetic on small ones, no subgroups."""
    (raw,) = shaders({"main": gpu_kernel(RopeAppend(4, 2, 64, INT8, True))}).values()
    words = np.frombuffer(raw, np.uint32)[5:]
    capabilities = {
        int(number) for word, number in words[:40].reshape(-1, 2) if word == 2 << 16 | 17
    }
    assert capabilities == {1, 4448}  # Shader, StorageBuffer8BitAccess


def refusal(emit: Callable[..., None], dtype: str = "float32") -> str:
    with pytest.raises(CompileError) as error:
        shaders({"main": kernel("refused", {"x": (dtype, "n")}, emit)})
    return str(error.value)


def test_what_has_no_instructions_is_refused_by_kernel_and_statement():
    def emit_call(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            T.buffer_store(x, T.erf(x[i]), [i])

    assert re.search(
        r"kernel main_kernel: .* calls of erff: buffer\[.*\] = .*erff", refusal(emit_call)
    )

    def emit_vector(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            T.buffer_store(x, T.broadcast(T.float32(1), 4), [T.ramp(i * 4, 1, 4)])

    assert re.search(r"kernel main_kernel: .*(Broadcast|float32x4|Ramp)", refusal(emit_vector))


def test_types_that_the_target_lacks_are_refused():
    def emit(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            T.buffer_store(x, x[i] + x[i], [i])

    assert "supports_int64" in refusal(emit, "int64")
    assert "supports_float64" in refusal(emit, "float64")

    def emit_half(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            T.buffer_store(
                x, T.Cast("float32", T.Cast("float16", x[i]) * T.Cast("float16", x[i])), [i]
            )

    assert "float16 arithmetic" in refusal(emit_half)

    def emit_large(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 1) as (i, _):
            T.buffer_store(x, T.Select(dims.n < T.int64(1 << 40), x[i], T.float32(0)), [i])

    assert "1099511627776" in refusal(emit_large)


def test_too_much_shared_memory_is_refused_with_its_size():
    def emit(dims: Any, x: Any) -> None:
        with workgroups(dims.n, 64) as (i, thread):
            part = shared((10_000,))
            T.buffer_store(part, x[i], [thread])
            barrier()
            T.buffer_store(x, part[63 - thread], [i])

    assert "40000 bytes of shared memory; the target allows 32768" in refusal(emit)
