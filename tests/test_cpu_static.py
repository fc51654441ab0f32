"""The machine code of the CPU kernels: what is counted is what is there, and no level falls below
its floor.
"""

from __future__ import annotations

import cpu_static
import machine_code
import pytest

X86 = """
main:
	vmovaps	%ymm0, 32(%rsp)
.LBB0_1:
	vmovaps	%ymm1, (%rsp,%rax)
.LBB0_2:                                # =>This Inner Loop Header: Depth=2
	vpmaddubsw	(%rdi,%rax), %ymm1, %ymm2
	{vex}	vpdpbusd	%ymm6, %ymm10, %ymm9
	vpaddw	64(%rsp), %ymm2, %ymm2
	vmovdqa	%ymm2, 96(%rsp)
	vmovaps	(%rsp,%rcx), %ymm3
	addq	$1, %rax
	jne	.LBB0_2
	addq	$1, %rcx
	jne	.LBB0_1
	retq
"""
ARM = """
.LBB0_3:
	stp	q5, q17, [sp, #176]
	ldr	q24, [sp, #192]
	ldr	q3, [x0, #16]
	sdot	v17.4s, v31.16b, v8.4b[0]
	smmla	v21.4s, v11.16b, v10.16b
	fmla	v24.4s, v1.4s, v17.4s
	b.ne	.LBB0_3
"""
# level: kernels beside w4; the whole list is `python bench/cpu_static.py --check`
CHECKED = {
    "avx2": ["swiglu w4", "decode int8", "float32 peak", "int8 peak"],
    "avxvnni": [],
    "avx512vnni": ["float32 peak"],
    "dotprod": ["decode int8", "float32 peak", "int8 peak"],
    "i8mm": ["int8 peak"],
}


def test_the_innermost_loop_is_counted_and_scratch_arrays_are_no_spills():
    (loop,) = machine_code.inner_loops(X86)
    assert (loop.instructions, loop.products, loop.multiplies) == (7, 64, 2)
    assert (loop.stores, loop.loads, loop.int8) == (1, 1, True)


def test_a_pair_of_registers_on_arm64_is_two_accesses_and_float_sums_are_no_int8_products():
    (loop,) = machine_code.inner_loops(ARM)
    assert (loop.instructions, loop.products, loop.stores, loop.loads) == (7, 48, 2, 1)


@pytest.mark.parametrize("level", CHECKED)
def test_no_level_falls_below_its_floor(level):
    kernels = ["w4", *CHECKED[level]]
    assert [fault for kernel in kernels for fault in cpu_static.faults(level, kernel)] == []


def test_a_fault_names_level_kernel_and_floor(monkeypatch):
    slow = machine_code.Loop(100, 640, True, 3, 2, 16, 20, False)
    monkeypatch.setattr(cpu_static, "loops_of", lambda level, kernel: [slow])
    floors = {"avx2": {"w4": cpu_static.Floor(7.1, 4)}}
    monkeypatch.setattr(cpu_static, "floors", lambda: floors)
    spilled, few = cpu_static.faults("avx2", "w4")
    assert spilled.startswith("avx2 w4: 5 stack accesses in a loop of 640 products")
    assert few == "avx2 w4: 6.4 products an instruction; the floor is 7.1"


def test_every_kernel_of_every_level_has_a_floor_and_few_may_use_the_stack():
    floors = cpu_static.floors()
    assert {level: sorted(own) for level, own in floors.items()} == {
        level: sorted(cpu_static.KERNELS) for level in cpu_static.LEVELS
    }


@pytest.mark.campaign
@pytest.mark.parametrize("level", cpu_static.LEVELS)
def test_no_kernel_of_a_level_falls_below_its_floor(level):
    kernels = [kernel for kernel in cpu_static.KERNELS if kernel not in ("w4", *CHECKED[level])]
    assert [fault for kernel in kernels for fault in cpu_static.faults(level, kernel)] == []
