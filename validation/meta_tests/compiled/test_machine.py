"""Parser and machine on small PTX written by hand: control flow, shuffles, barriers, matrices, and what is refused."""

import contextlib
import functools
import itertools
import operator
import re
from typing import Any

import numpy as np
import pytest
import torch

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.machine import run
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.parse import parse
from validation.compiled.ptx.program import program
from validation.meta_tests.compiled.scalar import meaning
from validation.meta_tests.compiled.small_kernel import execute, ptx


def test_instructions_know_their_python_line_and_who_called_it() -> None:
    last = parse(ptx("	mov.b32 %r1, 5;")).instructions[-2]
    assert (last.opcode, last.path, last.line, last.callers) == ("st.global.b32", "/src/a.py", 8, "b.py:9")
    assert last.source == "/src/a.py:8 in b.py:9"


def test_inline_assembly_opens_scopes_with_registers_of_its_own() -> None:
    body = "	// begin inline asm\n	{ .reg .b32 t; mov.u32 t, 7;\n	add.s32 %r1, t, 1; }\n	// end inline asm"
    assert set(execute(body)[0]) == {8}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("	frobnicate.f32 %r1, %r0;", r"frobnicate\.f32 at /src/a\.py:8 in b\.py:9 .*no such spelling"),
        ("	add.f32.rn %r1, %r0, %r0;", r"add\.f32\.rn at .*no such spelling"),
        ("	add.rn.bf16 %r1, %r0, %r0;", r"add\.rn\.bf16 at .*32 bits, bf16 has 16"),
        ("	add.rn.bf16 %rs1, %r0, %r0;", r"add\.rn\.bf16 at .*%r0 has 32 bits, bf16 has 16"),
        ("	mov.u32 %r1, %clock;", r"mov\.u32 at .*%clock"),
        ("	mov.u32 %r1, %warpid;", r"mov\.u32 at .*%warpid"),
        ("	ld.local.b32 %r1, [%r0];", r"ld\.local\.b32 at .*declares no local memory"),
        ("	bar.sync 1;", r"bar\.sync at .*only barrier 0"),
        ("	shfl.sync.bfly.b32 %r1, %r0, 1, 31, -2147483649;", r"does not fit 32 bits"),
        ("	mov.b32 %r1, 0x100000000;", r"does not fit 32 bits"),
        ("	ld.global.b32 %r1, [%rd0+%rd1];", r"no address of a known form"),
        ("	bra $L__nowhere;", r"\$L__nowhere"),
    ],
)
def test_what_is_not_known_is_refused_before_anything_runs(body: str, message: str) -> None:
    with pytest.raises(NotExecutedError, match=message):
        program(ptx(body))


def test_scopes_may_give_one_name_to_registers_of_two_sizes() -> None:
    body = """
	{
	.reg .b32 a; .reg .pred p;
	mov.b32 a, 7;
	setp.eq.u32 p, %r0, 3;
	@p add.s32 a, a, 1;
	mov.b32 %r2, a;
	}
	{
	.reg .b16 a, b;
	mov.b32 {a, b}, %r2;
	mov.b32 %r1, {b, a};
	}
"""
    got, _ = execute(body)
    assert got[:5] == [7 << 16, 7 << 16, 7 << 16, 8 << 16, 7 << 16]


def test_each_thread_has_local_memory_of_its_own() -> None:
    body = """
	.local .align 4 .b8 __local_depot0[28];
	.reg .b64 %SPL;
	mov.b64 %SPL, __local_depot0;
	add.u64 %rd2, %SPL, 4;
	cvt.u32.u64 %r4, %rd2;
	st.local.b32 [%r4+20], %r8;
	st.local.b32 [%r4+16], %r0;
	bar.sync 0;
	ld.local.b32 %r1, [%SPL+24];
"""
    got, violations = execute(body, races=True)
    assert got == [*range(128)]
    assert not violations
    _, (read,) = execute(body.replace("[%SPL+24]", "[%SPL+28]"))
    assert (read.kind, read.where) == ("OUT_OF_BOUNDS_READ", "byte 28 of 28 of local memory")


CONSTANT = "	mov.b64 %rd2, table;\n	and.b32 %r2, %r0, 3;\n	mad.wide.u32 %rd3, %r2, 4, %rd2;\n"


TABLE = ".global .align 4 .b8 table[16] = {1, 0, 0, 0, 2, 1, 0, 0, 3, 0, 0, 0, 4};"


def test_a_variable_of_the_module_is_read_and_has_an_end() -> None:
    got, violations = execute(CONSTANT + "	ld.global.nc.b32 %r1, [%rd3];", module=TABLE)
    assert got == [1, 258, 3, 4] * 32
    assert not violations
    _, (read,) = execute(CONSTANT + "	ld.global.nc.b32 %r1, [%rd3+8];", module=TABLE)
    assert (read.kind, read.count) == ("OUT_OF_BOUNDS_READ", 64)


FAIL = """.extern .func __assertfail
(
	.param .b64 a
);
.global .align 1 .b8 message[8] = {116, 111, 111, 32, 98, 105, 103};"""


@pytest.mark.parametrize("most", [63, 50])
def test_an_assertion_that_fails_is_told_with_its_text_and_ends_the_launch(most: int) -> None:
    """The threads that fail come last in the text; the others would wait for them at the barrier."""
    body = f"""
	mov.b32 %r1, 5;
	setp.gt.u32 %p0, %r0, {most};
	@%p0 bra $L_fail;
	bar.sync 0;
	st.global.b32 [%rd1], %r1;
	ret;
$L_fail:
	{{ // callseq 0, 0
	.param .b64 param0;
	.param .b64 param1;
	mov.b64 %rd2, message;
	cvta.global.u64 %rd3, %rd2;
	st.param.b64 [param0], %rd3;
	st.param.b64 [param1], 1;
	call.uni __assertfail, (param0, param1);
	}} // callseq 0
	trap;
"""
    got, violations = execute(body, module=FAIL)
    if most == 63:
        assert set(got) == {5}
        assert not violations
    else:
        (failed,) = violations
        assert (failed.kind, failed.thread, failed.count) == ("ASSERTION_FAILED", 51, 26)
        assert failed.where == "the assertion 'too big' does not hold"
        assert set(got) == {0}


def test_a_declared_function_is_refused_where_it_is_called_and_a_defined_one_anywhere() -> None:
    declared = ptx("	call.uni vprintf, (param0);", module=".extern .func vprintf\n(\n);")
    with pytest.raises(NotExecutedError, match=r"call\.uni at .*a call of vprintf"):
        program(declared)
    with pytest.raises(NotExecutedError, match="with functions"):
        program(ptx("	mov.b32 %r1, 1;", module=".func helper() { ret; }"))


@pytest.mark.parametrize("seed", range(3))
def test_a_product_of_many_words_carries_from_word_to_word(seed: int) -> None:
    """As libdevice multiplies: the carry of each sum of a low half goes into the next high half."""
    body = """
	mov.b32 %r2, {a};
	mov.b32 %r3, {b};
	mov.b32 %r4, {c};
	mad.lo.cc.u32 %r5, %r2, %r3, %r4;
	madc.hi.u32 %r1, %r2, %r3, 5;
"""
    random = np.random.default_rng(seed)
    for a, b, c in [(0xFFFFFFFF,) * 3, (0, 0, 0xFFFFFFFF), *random.integers(0, 1 << 32, (10, 3)).tolist()]:
        got, _ = execute(body.format(a=a, b=b, c=c), 32, 1)
        assert got[0] & 0xFFFFFFFF == ((a * b + c) >> 32) + 5 & 0xFFFFFFFF


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_a_comparison_of_pairs_sets_a_predicate_for_each_half(kind: str) -> None:
    values = [0x0000, 0x8000, 0x3C00, 0xBC00, 0x7F81, 0x0001]  # +0, -0, two numbers, NaN in both formats, a subnormal
    for relation in ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "nan", "num"):
        holds = meaning(f"setp.{relation}.{kind.removesuffix('x2')}")
        for a, b in itertools.product(values, values):
            body = f"""
	mov.b32 %r2, {a | b << 16};
	mov.b32 %r3, {b | b << 16};
	setp.{relation}.{kind} %p1|%p2, %r2, %r3;
	selp.b32 %r4, 1, 0, %p1;
	selp.b32 %r5, 2, 0, %p2;
	add.s32 %r1, %r4, %r5;
"""
            assert execute(body, 32, 1)[0][0] == holds(a, b) + 2 * holds(b, b), (relation, hex(a), hex(b))


@pytest.mark.parametrize(
    "instruction",
    [
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1, %r2}, {%r1, %r2}, {%r1}, {%r1, %r2}",
        "wgmma.fence.sync.aligned",
        "wgmma.commit_group.sync.aligned",
        "tcgen05.wait::ld.sync.aligned",
        "mbarrier.init.shared::cta.b64 [%r1], 1",
        "mbarrier.try_wait.parity.shared::cta.b64 %p0, [%r1], %r2",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4]",
        "cp.async.mbarrier.arrive.shared.b64 [%r1]",
        "fence.proxy.async.shared::cta",
        "elect.sync %r1|%p0, -1",
        "match.any.sync.b32 %r1, %r2, -1",
        "setmaxnreg.dec.sync.aligned.u32 24",
        "barrier.cluster.arrive.relaxed.aligned",
        "nanosleep.u32 20",
        "rsqrt.approx.f64 %rd1, %rd2",
        "rcp.approx.ftz.f64 %rd1, %rd2",
        "cvta.local.u64 %rd1, %rd2",
    ],
)
def test_tensor_cores_bulk_copies_and_what_has_no_documented_bits_are_refused_by_name(instruction: str) -> None:
    opcode = re.escape(instruction.partition(" ")[0])
    with pytest.raises(NotExecutedError, match=rf"^{opcode} at /src/a\.py:8 in b\.py:9 is not executed"):
        program(ptx(f"	{instruction};"))


def test_threads_of_a_warp_part_and_meet_again() -> None:
    body = """
	and.b32 %r2, %r0, 1;
	setp.eq.b32 %p0, %r2, 0;
	mov.b32 %r3, 100;
	@%p0 bra $L_even;
	add.s32 %r1, %r3, 1;
	bra.uni $L_met;
$L_even:
	add.s32 %r1, %r3, 2;
$L_met:
	add.s32 %r1, %r1, %r0;
	shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;
"""
    got, violations = execute(body)
    assert got == [100 + (1 if t % 2 == 1 else 2) + t for t in (t ^ 1 for t in range(64))] * 2
    assert not violations


def test_a_loop_runs_as_often_as_each_thread_asks() -> None:
    body = """
	mov.b32 %r1, 0;
	mov.b32 %r2, 0;
$L_loop:
	setp.ge.u32 %p0, %r2, %r8;
	@%p0 bra $L_done;
	add.s32 %r1, %r1, %r2;
	add.s32 %r2, %r2, 1;
	bra.uni $L_loop;
$L_done:
"""
    assert execute(body, 32, 3)[0] == [n * (n - 1) // 2 for n in range(96)]


def test_a_thread_that_returned_writes_nothing_more() -> None:
    got, _ = execute("	mov.b32 %r1, 3;\n	setp.lt.u32 %p0, %r0, 10;\n	@%p0 ret;")
    assert got == ([0] * 10 + [3] * 54) * 2


def test_a_guard_keeps_what_was_there() -> None:
    got, _ = execute("	mov.b32 %r1, 3;\n	setp.lt.u32 %p0, %r0, 10;\n	@!%p0 add.s32 %r1, %r0, 1000;")
    assert got == ([3] * 10 + [1000 + t for t in range(10, 64)]) * 2


def shuffled(mode: str, by: int, control: int) -> list[int]:
    """The lane that each lane of a warp reads from, by the ISA's pseudocode: its own where that is in no segment."""
    clamp, segment, lanes = control & 31, control >> 8 & 31, []
    for lane in range(32):
        last, first = lane & segment | clamp & ~segment, lane & segment
        j = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | by & ~segment}[mode]
        inside = j >= last if mode == "up" else j <= last
        lanes.append(j if inside else lane)
    return lanes


@pytest.mark.parametrize(("mode", "by", "control"), [
    ("bfly", 16, 31), ("bfly", 3, 0x1C1F & 0x1F1F), ("up", 1, 0), ("up", 5, 0x1800), ("down", 1, 31),
    ("down", 9, 0x181F), ("idx", 5, 31), ("idx", 3, 0x1C1F),
])  # fmt: skip
def test_a_shuffle_reads_the_lane_that_the_isa_names(mode: str, by: int, control: int) -> None:
    got, _ = execute(f"	shfl.sync.{mode}.b32 %r1, %r8, {by}, {control}, -1;")
    assert got == [base + lane for base in range(0, 128, 32) for lane in shuffled(mode, by, control)]


def test_a_shuffle_says_whether_its_source_is_in_the_segment() -> None:
    got, _ = execute("	shfl.sync.up.b32 %r2|%p1, %r8, 1, 0, -1;\n	selp.b32 %r1, 1, 0, %p1;")
    assert got == ([0] + [1] * 31) * 4


def test_a_shuffle_by_a_register_takes_a_lane_for_each_thread() -> None:
    got, _ = execute("	xor.b32 %r2, %r0, 7;\n	shfl.sync.idx.b32 %r1, %r8, %r2, 31, -1;")
    assert got == [n ^ 7 for n in range(128)]


@pytest.mark.parametrize(
    ("opcode", "combine"),
    [
        ("add.u32", sum),
        ("max.u32", max),
        ("min.s32", min),
        ("xor.b32", lambda v: functools.reduce(operator.xor, v)),
        ("and.b32", lambda v: functools.reduce(operator.and_, v)),
        ("or.b32", lambda v: functools.reduce(operator.or_, v)),
    ],
)
def test_a_reduction_gives_every_lane_what_its_warp_combines_to(opcode: str, combine: Any) -> None:
    got, _ = execute(f"	mov.b32 %r2, -1;\n	redux.sync.{opcode} %r1, %r8, %r2;")
    assert got == [combine(range(base, base + 32)) for base in range(0, 128, 32) for _ in range(32)]


@pytest.mark.parametrize(("opcode", "result"), [("max.f32", 35.0), ("min.f32", 5.0), ("max.NaN.f32", np.nan)])
def test_a_reduction_of_floats_passes_over_a_nan_or_keeps_it(opcode: str, result: float) -> None:
    body = f"""
	add.s32 %r2, %r0, 4;
	cvt.rn.f32.s32 %r2, %r2;
	setp.eq.b32 %p0, %r0, 0;
	selp.f32 %r2, 0fFFC00001, %r2, %p0;
	mov.b32 %r3, -1;
	redux.sync.{opcode} %r1, %r2, %r3;
"""
    got = np.array(execute(body, 32, 1)[0], np.int32)
    assert set(got.tolist()) == ({0x7FFFFFFF} if np.isnan(result) else {int(np.float32(result).view(np.int32))})


PARTLY = "	setp.lt.u32 %p0, %r0, 20;\n	@%p0 bra $L_on;\n	{};\n$L_on:\n	mov.b32 %r1, 1;"


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1", "some lanes of a warp are inactive"),
        ("bar.sync 0", "some threads of a CTA are inactive"),
    ],
)
def test_a_part_of_the_threads_at_a_shuffle_or_barrier_is_refused(instruction: str, message: str) -> None:
    with pytest.raises(NotExecutedError, match=message):
        execute(PARTLY.format(instruction))


EXCHANGE = """
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 2;
	add.s32 %r4, %r2, %r3;
	st.shared.b32 [%r4], %r8;
	{}
	xor.b32 %r5, %r3, 128;
	add.s32 %r6, %r2, %r5;
	ld.shared.b32 %r1, [%r6];
"""


def test_shared_memory_carries_values_from_thread_to_thread() -> None:
    got, violations = execute(EXCHANGE.format("bar.sync 0;"), shared=256, races=True)
    assert got == [n ^ 32 for n in range(128)]
    assert not violations


def test_a_missing_barrier_is_a_race_in_lock_step_too() -> None:
    got, (race,) = execute(EXCHANGE.format(""), shared=256, races=True)
    assert got == [n ^ 32 for n in range(128)]  # nothing else shows it
    assert (race.kind, race.opcode, race.cta, race.thread) == ("RACE", "ld.shared.b32", 0, 0)


MEET = "	bar.sync 0;\n	st.shared.b32 [%r4], %r1;"


def test_a_write_after_a_read_of_another_thread_is_a_race() -> None:
    body = EXCHANGE.format("bar.sync 0;") + "	st.shared.b32 [%r4], %r1;"
    _, races = execute(body, shared=256, races=True)
    assert [(r.kind, r.opcode) for r in races] == [("RACE", "st.shared.b32")]
    _, races = execute(body.replace("	st.shared.b32 [%r4], %r1;", MEET), shared=256, races=True)
    assert not races


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("st.global.b32 [%rd1], %r0;", "ld.global.b32 %r1, [%rd3];"),
        ("ld.global.b32 %r2, [%rd3];", "add.s32 %r1, %r2, 1;"),
    ],
)
def test_a_barrier_orders_nothing_between_ctas(first: str, then: str) -> None:
    """Each CTA reads the other one's elements, after or before a barrier and their being written."""
    other = "	xor.b32 %r7, %r9, 1;\n	mad.lo.s32 %r7, %r7, 64, %r0;\n	mad.wide.u32 %rd3, %r7, 4, %rd0;\n	"
    _, races = execute(f"{other}{first}\n	bar.sync 0;\n	{then}", races=True)
    assert {race.kind for race in races} == {"RACE"}
    assert all("global" in race.opcode for race in races)
    own = other.replace("	xor.b32 %r7, %r9, 1;", "	mov.b32 %r7, %r9;")
    assert not execute(f"{own}{first}\n	bar.sync 0;\n	{then}", races=True)[1]


def test_a_write_after_reads_of_several_threads_is_a_race_of_the_writer_too() -> None:
    """The last reader is the writer itself; another thread read before it."""
    body = """
	mov.b32 %r2, global_smem;
	setp.eq.b32 %p1, %r0, 5;
	@%p1 st.shared.b32 [%r2], %r0;
	bar.sync 0;
	ld.shared.b32 %r1, [%r2];
	setp.eq.b32 %p0, %r0, 63;
	@%p0 ld.shared.b32 %r1, [%r2];
	@%p0 st.shared.b32 [%r2], %r0;
"""
    _, races = execute(body, shared=256, races=True)
    assert [(r.kind, r.opcode) for r in races] == [("RACE", "st.shared.b32")]


ONE_ADDRESS = """
	mov.b32 %r2, global_smem;
	st.shared.b32 [%r2], {register};
	bar.sync 0;
	ld.shared.b32 %r1, [%r2];
"""


@pytest.mark.parametrize(("register", "order"), [("%r9", False), ("%r0", True)])
def test_threads_that_write_one_address_at_once_leave_their_order_if_their_values_differ(
    register: str, order: bool
) -> None:
    body = ONE_ADDRESS.format(register=register)
    (left, forwards), (other, backwards) = (execute(body, shared=256, races=True, backwards=b) for b in (False, True))
    assert not forwards
    assert [*forwards.unordered] == [*backwards.unordered] == ["st.shared.b32 at /src/a.py:8 in b.py:9"] * order
    assert left == ([63] * 128 if order else [0] * 64 + [1] * 64)
    assert other == ([0] * 128 if order else left)


def test_atomics_come_in_the_other_order_too() -> None:
    body = ONE_ADDRESS.format(register=77).replace("ld.shared.b32 %r1, [%r2]", "atom.shared.exch.b32 %r1, [%r2], %r0")
    forwards, backwards = (execute(body, shared=256, backwards=order)[0][:64] for order in (False, True))
    assert forwards == [77, *range(63)]
    assert backwards == [*range(1, 64), 77]


def test_shared_memory_that_nobody_wrote_is_reported() -> None:
    body = EXCHANGE.format("bar.sync 0;").replace("128;", "256;")
    _, (read,) = execute(body, shared=512, races=True)
    assert (read.kind, read.opcode, read.count) == ("UNINITIALISED_READ", "ld.shared.b32", 128)


@pytest.mark.parametrize(
    ("body", "kind", "opcode"),
    [
        ("	mov.b32 %r2, 256;\n	ld.shared.b32 %r1, [%r2];", "OUT_OF_BOUNDS_READ", "ld.shared.b32"),
        ("	mov.b32 %r2, 0;\n	st.shared.b32 [%r2+-4], %r0;", "OUT_OF_BOUNDS_WRITE", "st.shared.b32"),
        ("	mov.b32 %r2, 6;\n	ld.shared.b32 %r1, [%r2];", "MISALIGNED", "ld.shared.b32"),
        ("	ld.global.b32 %r1, [%rd0+512];", "OUT_OF_BOUNDS_READ", "ld.global.b32"),
        ("	ld.global.b32 %r1, [%rd0+-4];", "OUT_OF_BOUNDS_READ", "ld.global.b32"),
        ("	mov.b64 %rd2, 0;\n	ld.global.b32 %r1, [%rd2];", "OUT_OF_BOUNDS_READ", "ld.global.b32"),
        ("	ld.global.b32 %r1, [%rd0+2];", "MISALIGNED", "ld.global.b32"),
        ("	st.global.v2.b32 [%rd1], {%r0, %r0};", "MISALIGNED", "st.global.v2.b32"),
    ],
)
def test_an_access_that_must_not_be_is_named(body: str, kind: str, opcode: str) -> None:
    _, violations = execute(body, shared=256)
    assert (violations[0].kind, violations[0].opcode, violations[0].cta) == (kind, opcode, 0)
    assert violations[0].source == "/src/a.py:8 in b.py:9"


def test_lanes_that_a_guard_keeps_out_access_nothing() -> None:
    body = "	mov.b32 %r1, 4;\n	setp.eq.b32 %p0, %r0, 64;\n	@%p0 ld.global.b32 %r1, [%rd0+1000000];"
    got, violations = execute(body)
    assert set(got) == {4}
    assert not violations


def access(tensor: Any, offset: int, size: int = 4) -> str:
    """Check one access at a byte offset from a tensor's first element: "" if it may be made, else ``outside``."""
    memory = Memory([("t", tensor)])
    at = np.full((1, 1), np.uint64(memory.address(tensor) + offset))
    _, outside = memory.check(at, None, size)
    return "outside" if outside.any() else ""


def test_holes_between_a_tensors_elements_belong_to_nobody() -> None:
    rows = torch.zeros(4, 24, dtype=torch.bfloat16)[:, :16]  # 32 bytes of elements, 16 of a hole
    assert [access(rows, at, 16) for at in (0, 16, 32, 48)] == ["", "", "outside", ""]
    assert access(rows, 4 * 48 - 16, 16) == "outside"
    every_other = torch.zeros(64)[::2]
    assert [access(every_other, at) for at in (0, 4, 8)] == ["", "outside", ""]
    assert access(every_other, 0, 8) == "outside"
    expanded = torch.zeros(8)[2:3].expand(6)
    assert [access(expanded, at) for at in (-4, 0, 4)] == ["outside", "", "outside"]
    assert access(torch.zeros(0), 0) == "outside"


def test_storages_that_overlap_are_refused() -> None:
    whole = np.zeros(64, np.float32)
    with pytest.raises(NotExecutedError, match="two storages of a launch overlap"):
        Memory([("a", torch.from_numpy(whole[:40])), ("b", torch.from_numpy(whole[32:]))])
    Memory([("a", torch.from_numpy(whole[:32])), ("b", torch.from_numpy(whole[32:]))])


def test_a_matrix_is_stored_and_loaded_as_the_isa_lays_it_out() -> None:
    """Lane l gives the address of a row of 16 bytes; after a round trip each lane has its own fragments again."""
    body = """
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 4;
	add.s32 %r4, %r2, %r3;
	mul.lo.s32 %r10, %r8, 4;
	add.s32 %r11, %r10, 1;
	add.s32 %r12, %r10, 2;
	add.s32 %r13, %r10, 3;
	stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r4], {%r10, %r11, %r12, %r13};
	bar.sync 0;
"""
    # Row l % 8 of matrix l // 8 holds that matrix's fragments of lanes 4 (l % 8) to 4 (l % 8) + 3.
    got, violations = execute(body + "	ld.shared.v4.b32 {%r14, %r1, %r15, %r16}, [%r4];", 32, shared=512)
    assert got == [4 * (32 * c + 4 * (lane % 8) + 1) + lane // 8 for c in range(2) for lane in range(32)]
    assert not violations
    load = "	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r14, %r15, %r1, %r16}, [%r4];"
    got, violations = execute(body + load, 32, shared=512)
    assert got == [4 * n + 2 for n in range(64)]
    assert not violations


def test_a_transposed_matrix_is_stored_and_loaded_as_the_isa_lays_it_out() -> None:
    """Element e of row r of matrix m is 64 m + 8 r + e; transposed, lane l holds [2 (l % 4)][l // 4]."""
    fill = """
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 4;
	add.s32 %r4, %r2, %r3;
	shl.b32 %r5, %r0, 3;
	mov.b32 %r6, 65536;
	mad.lo.s32 %r10, %r5, 65537, %r6;
	add.s32 %r11, %r10, 131074;
	add.s32 %r12, %r11, 131074;
	add.s32 %r13, %r12, 131074;
	st.shared.v4.b32 [%r4], {%r10, %r11, %r12, %r13};
	bar.sync 0;
"""
    load = "	ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r14, %r15, %r1, %r16}, [%r4];"
    got, violations = execute(fill + load, 32, 1, shared=512)
    at = [(2 * 64 + 8 * (2 * (lane % 4)) + lane // 4) for lane in range(32)]
    assert got == [first | (first + 8) << 16 for first in at]
    assert not violations
    store = """
	ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r14, %r15, %r16, %r17}, [%r4];
	bar.sync 0;
	stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r4], {%r17, %r16, %r15, %r14};
	bar.sync 0;
	ld.shared.v4.b32 {%r14, %r1, %r15, %r16}, [%r4];
"""
    got, violations = execute(fill + store, 32, 1, shared=512)
    rows = [8 * (8 * (3 - lane // 8) + lane % 8) + 2 for lane in range(32)]  # the same rows, matrices in reverse
    assert got == [first | (first + 1) << 16 for first in rows]
    assert not violations


def test_a_grid_of_three_dimensions_numbers_its_ctas_x_first() -> None:
    out = torch.zeros(24 * 32, dtype=torch.int32)
    memory = Memory([("out", out)])
    body = """
	mov.u32 %r2, %ctaid.y;
	mov.u32 %r3, %ctaid.z;
	mov.u32 %r4, %nctaid.x;
	mov.u32 %r5, %nctaid.y;
	mad.lo.s32 %r6, %r3, %r5, %r2;
	mad.lo.s32 %r1, %r6, %r4, %r9;
	mad.lo.s32 %r7, %r1, 32, %r0;
	mad.wide.u32 %rd1, %r7, 4, %rd0;
"""
    run(program(ptx(body, 32)), (2, 3, 4), [np.uint64(memory.address(out))], memory)
    memory.write_back()
    assert out.tolist() == [n for n in range(24) for _ in range(32)]


def test_a_process_that_flushes_subnormals_is_refused() -> None:
    flushes = torch.set_flush_denormal(True)
    refused = pytest.raises(RuntimeError, match="flushes float32 subnormals")
    try:
        with refused if flushes else contextlib.nullcontext():  # a processor that cannot flush has nothing to refuse
            execute("	mov.b32 %r1, 1;")
    finally:
        torch.set_flush_denormal(False)
