"""Compiles every kernel for sm_80, sm_90, sm_100 and gfx942 without a GPU, and shows that the check can fail.

Takes about a minute on two cores: 304 kernels.
"""

import dataclasses

import pytest

import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.compiled import aot, machine_code, model_calls
from validation.compiled.kernel import Compiled, table
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.target import TARGETS

KINDS = 16  # calls of `model_calls.calls`: twelve ops, four of them in two forms


@pytest.fixture(scope="module")
def aligned() -> list[Compiled]:
    return aot.compile_kernels(layouts=["aligned"])


@pytest.fixture(scope="module")
def ragged() -> list[Compiled]:
    """Tensors that start one element off, and widths that are odd, at Hunyuan3D-2's width."""
    offset = aot.compile_kernels(["sm_90", "gfx942"], ["Hunyuan3D-2"], ["offset"])
    return offset + aot.compile_kernels(["sm_80", "sm_100", "gfx942"], ["Hunyuan3D-2"], ["odd"])


def test_every_op_is_compiled_for_every_target(aligned: list[Compiled], ragged: list[Compiled]) -> None:
    assert len(aligned) == KINDS * len(TARGETS) * len(model_calls.MODELS)
    assert len(ragged) == KINDS * 5
    assert {k.target for k in ragged} == set(TARGETS)
    for target in TARGETS:
        for model in model_calls.MODELS:
            ops = {k.op.split()[0] for k in aligned if (k.target, k.model) == (target, model)}
            assert ops == set(reference_ops.OP_NAMES)


def test_aligned_kernels_use_128_bits_few_registers_and_no_local_memory(aligned: list[Compiled]) -> None:
    faults = [f"{k.target} {k.model} {k.op}: {fault}" for k in aligned for fault in k.faults]
    assert not faults, "\n".join(faults)


def takes_input_mode(kernel: Compiled) -> bool:
    has_mode = kernel.op.split()[0] not in ("layer_norm", "rotary_embedding", "split_rotary_embedding")
    return kernel.model != "Helios" and has_mode


def test_float32_mode_rounds_each_element_once(aligned: list[Compiled]) -> None:
    for kernel in aligned:
        rounded = sum(n * (2 if "x2" in name else 1) for name, n in kernel.roundings.items())
        stored = sum(n * bits // 16 for bits, n in kernel.store_bits.items())
        if not takes_input_mode(kernel):
            assert rounded == stored, kernel
        elif kernel.target == "gfx942" and kernel.model == "FLUX":
            assert rounded > stored, kernel
        # A 16-bit product or sum that is rounded at once becomes 16-bit arithmetic if the target has it, which rounds
        # to nearest without a conversion: then the counts say nothing. gfx942 has no bfloat16 arithmetic.


def test_declared_roundings_are_not_contracted_away(aligned: list[Compiled]) -> None:
    for kernel in aligned:
        assert not kernel.fp_fusion, kernel


def test_ragged_kernels_compile_and_say_what_they_fall_to(ragged: list[Compiled]) -> None:
    faults = [f"{k.target} {k.op} {k.layout}: {fault}" for k in ragged for fault in k.faults]
    assert not faults, "\n".join(faults)
    for kernel in ragged:
        assert min(kernel.load_bits) == 16, kernel
        # Out of place, the output is a new tensor: aligned, and of even rows unless the width is odd.
        narrow = kernel.layout == "odd" or "inplace" in kernel.op
        assert set(kernel.store_bits) == ({16} if narrow else {128}), kernel
    line = next(line for line in table(ragged).splitlines() if "offset" in line)
    assert "x 16 bits" in line


def test_spills_are_reported() -> None:
    kernels = aot.compile_kernels(["sm_90"], ["Helios"], ["aligned"], {"maxnreg": 24})
    assert len(kernels) == KINDS
    for kernel in kernels:
        assert kernel.registers <= 24
        assert any("local memory" in fault for fault in kernel.faults), kernel


def test_every_opcode_is_in_the_table_of_those_that_are_executed(
    aligned: list[Compiled], ragged: list[Compiled]
) -> None:
    """No .approx and no .ftz either: the bits of our kernels are fully specified by IEEE 754."""
    nvidia = [k for k in (*aligned, *ragged) if k.target != "gfx942"]
    assert len(nvidia) == KINDS * (3 * len(model_calls.MODELS) + 3)
    emitted = set[str]().union(*(k.opcodes for k in nvidia))
    assert len(emitted) > 60
    assert emitted - OPCODES.keys() == set()
    assert not [name for name in emitted if {"approx", "full", "ftz"} & set(name.split("."))]


def test_faults_are_named(aligned: list[Compiled]) -> None:
    kernel = next(k for k in aligned if k.target == "sm_90")
    assert kernel.faults == []
    for change, text in (
        ({"registers": 129}, "129 registers"),
        ({"spilled": 3}, "3 registers spilled"),
        ({"load_bits": {128: 4, 16: 2}}, "loads of 4 x 128 bits, 2 x 16 bits"),
        ({"store_bits": {64: 4}}, "stores of 4 x 64 bits"),
        ({"roundings": {"cvt.rz.bf16x2.f32": 16}}, "16 x cvt.rz.bf16x2.f32: not to nearest"),
        ({"flushes_subnormals": True}, "subnormals"),
    ):
        faults = dataclasses.replace(kernel, **change).faults
        assert len(faults) == 1
        assert text in faults[0]


def test_ptx_is_read() -> None:
    read = machine_code.read_ptx(
        """
        ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        @%p1 ld.global.L1::evict_last.v2.b64 { %rd2, %rd3 }, [ %rd1 + 0 ];
        ld.shared.b32 %r1, [ %r2 ];
        ld.global.b16 { %rs1 }, [ %rd1 + 0 ];
        st.global.v8.b32 [ %rd1 + 0 ], { %r1 };
        cvt.rn.bf16x2.f32 %r1, %r2, %r3;
        cvt.rz.f16.f32 %rs1, %r3;
        cvt.f32.bf16 %r1, %rs2;
        mul.ftz.f32 %r1, %r2, %r3;
        """
    )
    assert read["load_bits"] == {128: 2, 16: 1}
    assert read["store_bits"] == {256: 1}
    assert read["roundings"] == {"cvt.rn.bf16x2.f32": 1, "cvt.rz.f16.f32": 1}
    assert read["flushes_subnormals"]


def test_amdgcn_is_read() -> None:
    read = machine_code.read_amdgcn(
        """
        buffer_load_dwordx4 v[0:3], v0, s[4:7], 0 offen
        global_load_ushort v1, v[2:3], off
        buffer_load_dword v1, v2, s[0:3], 0 offen
        global_load_short_d16_hi v1, v[2:3], off
        buffer_store_dwordx2 v[0:1], v2, s[0:3], 0 offen
        buffer_store_byte v1, v2, s[0:3], 0 offen
        v_bfe_u32 v1, v2, 16, 1
        s_movk_i32 s0, 0x7fff
        v_add3_u32 v1, v2, v1, s0
        v_cvt_pkrtz_f16_f32 v1, v2, v3
        .amdhsa_float_denorm_mode_32 0
        .private_segment_fixed_size: 16
        .vgpr_count: 24
        .vgpr_spill_count: 2
        """
    )
    assert read["load_bits"] == {128: 1, 32: 1, 16: 2}
    assert read["store_bits"] == {64: 1, 8: 1}
    assert read["roundings"] == {"v_add3_u32 0x7fff": 1, "v_cvt_pkrtz_f16_f32": 1}
    assert (read["registers"], read["local_bytes"], read["spilled"]) == (24, 16, 2)
    assert read["flushes_subnormals"]
    with pytest.raises(RuntimeError, match="vgpr_count"):
        machine_code.read_amdgcn("")


def test_sizes_and_strides_of_one_compile() -> None:
    # A 1 in a nested tuple is a constant, which Triton 3.6 lost at the entry of an if or a loop.
    def rotated(tokens: int, heads: int) -> Case:
        q = TensorSpec((1, tokens, heads, 32), "float16", (32 * tokens * heads, 32 * heads, 32, 1), 0, "q")
        tensors = {"q": q, "k": dataclasses.replace(q, storage="k")}
        tensors |= {n: TensorSpec((tokens, 16), "float32", (16, 1), 0, n) for n in ("cos", "sin")}
        return Case("qk_norm_rope", tensors, {"eps": 1e-6}, "normal", 0)

    across = TensorSpec((9, 32), "float16", (1, 9), 0, "q")
    normed = Case("qk_norm", {"q": across, "k": dataclasses.replace(across, storage="k")}, {"eps": 1e-6}, "normal", 0)
    cases = [rotated(9, 1), rotated(1, 4), rotated(1, 1), normed]
    assert len(aot.compile_cases("sm_90", cases)) == len(cases)


def test_a_kernel_that_does_not_compile_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="compiling for sm_90 failed"):
        aot.compile_kernels(["sm_90"], ["Hunyuan3D-2"], ["aligned"], {"num_warps": 3})
