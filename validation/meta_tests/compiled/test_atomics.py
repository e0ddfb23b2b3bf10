"""Atomics against integers and one another: what each thread finds, what is left, races, and what depends on order."""

from typing import Any

import numpy as np
import pytest

from validation.compiled.ptx.atomic_ops import perform
from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.program import program
from validation.compiled.ptx.table import Bound
from validation.meta_tests.compiled.scalar import integer, meaning, size_of
from validation.meta_tests.compiled.small_kernel import execute, execute_some, ptx

ATOMICS = {name: e for name, e in OPCODES.items() if name.startswith(("atom.", "red.")) and isinstance(e, Bound)}
KINDS = ("add", "min", "max", "and", "or", "xor", "exch", "cas")


def after(kind: str, type_: str, flushes: bool, old: int, *operands: int) -> int:
    """What an atomic leaves, by the second opinions on plain opcodes."""
    if kind == "exch":
        return operands[0]
    if kind == "cas":
        return operands[1] if old == operands[0] else old
    if type_[0] in "us" and kind in ("min", "max"):
        return (min if kind == "min" else max)(old, operands[0], key=lambda raw: integer(raw, type_))
    if type_[0] == "s" and kind == "add":
        type_ = "u" + type_[1:]
    return meaning(f"{kind}{'.ftz' * flushes}.{type_}")(old, operands[0])


def corners(type_: str) -> list[int]:
    size = size_of(type_)
    ones = {"f32": [0x3F800000, 0x33800000, 1, 0x7F800000, 0x7FC00000],
            "f64": [0x3FF0000000000000, 0x3C90000000000000, 1],
            "f16": [0x3C00, 0x1001, 0x7BFF, 1], "bf16": [0x3F80, 0x3B81, 0x7F7F, 1]}  # fmt: skip
    if type_ in ones:
        return [0, *ones[type_], *(v | 1 << (size - 1) for v in ones[type_])]
    if type_.endswith("x2"):
        half = corners(type_[:-2])
        return [a | b << 16 for a, b in zip(half, half[::-1], strict=True)]
    return [0, 1, 2, (1 << (size - 1)) - 1, 1 << (size - 1), (1 << size) - 1, 0x55AA & ((1 << size) - 1)]


SEMANTICS = {"relaxed", "acquire", "release", "acq_rel"}
PLAIN = sorted(name for name in ATOMICS if not SEMANTICS.intersection(name.split(".")))


@pytest.mark.parametrize("spelling", [name for name in PLAIN if ".v" not in name])
def test_an_atomic_leaves_what_a_second_opinion_leaves(spelling: str) -> None:
    """Each lane of a warp changes the same element in turn, and finds what the one before left."""
    _, _, kind, *_, type_ = spelling.split(".")
    assert kind in KINDS
    size, values = size_of(type_), corners(type_)
    random = np.random.default_rng(sum(spelling.encode()))
    operands = 2 if kind == "cas" else 1
    rows = [[int(v) for v in random.choice(np.array(values, np.uint64), operands)] for _ in range(32)]
    entry = ATOMICS[spelling]
    assert isinstance(entry, Bound)
    atomic = entry.bind.keywords["atomic"]  # type: ignore[attr-defined]  # a partial
    memory = np.array([values[1]], f"u{size // 8}")
    arrays = [np.array([row[n] for row in rows], f"u{size // 8}") for n in range(operands)]
    dtype = {"f16": "f2", "f32": "f4", "f64": "f8"}.get(atomic.type_, f"{'i' if type_[0] == 's' else 'u'}{size // 8}")
    with np.errstate(all="ignore"):
        found, together = perform(memory, np.zeros(32, np.int64), atomic, [a.view(dtype) for a in arrays])
    assert together
    now = values[1]
    for row, got in zip(rows, found.tolist(), strict=True):
        assert got == now, (spelling, [hex(v) for v in row])
        now = after(kind, type_, spelling.endswith("global.add.f32"), now, *row)
    assert memory.tolist() == [now]


def test_every_spelling_of_an_operation_is_the_same_and_orders_of_modifiers_are_known() -> None:
    assert {"atom.global.gpu.acq_rel.add.u32", "atom.global.acq_rel.gpu.cas.b32", "atom.acq_rel.gpu.global.cas.b32",
            "atom.shared.add.u32", "atom.global.gpu.acq_rel.add.noftz.v8.bf16"} <= ATOMICS.keys()  # fmt: skip
    modifiers = SEMANTICS | {"cta", "gpu", "sys"}
    for spelling, entry in ATOMICS.items():
        plain = ".".join(part for part in spelling.split(".") if part not in modifiers)
        other = ATOMICS[plain]
        assert isinstance(entry, Bound)
        assert isinstance(other, Bound)
        assert entry.bind.keywords == other.bind.keywords, spelling  # type: ignore[attr-defined]


def test_lanes_at_one_address_are_performed_in_their_order_and_others_apart() -> None:
    body = """
	and.b32 %r2, %r0, 7;
	mad.wide.u32 %rd2, %r2, 4, %rd0;
	add.s32 %r3, %r2, 1;
	setp.ge.u32 %p0, %r0, 32;
	mov.b32 %r1, 0;
	@%p0 atom.global.gpu.acq_rel.add.u32 %r1, [ %rd2 + 0 ], %r3;
	bar.sync 0;
	setp.lt.u32 %p1, %r0, 32;
	@%p1 ret;
"""
    got, outcome = execute(body, 64, 1)
    assert got[32:] == [(n % 8 + 1) * (n // 8) for n in range(32)]
    assert got[:8] == [4 * n for n in range(1, 9)]
    assert not outcome.unordered  # a sum of integers is the same in every order


# An address for each CTA, and two of its threads.
OWN = """shl.b32 %r3, %r9, 6;
	mad.wide.u32 %rd2, %r3, 4, %rd0;
	setp.eq.b32 %p0, %r0, 0;
	setp.eq.b32 %p1, %r0, 1;"""
FLOATS = """
	mov.b32 %r2, 0f3F800000;
	{address}
	{atomic};
	ret;
"""


@pytest.mark.parametrize(
    ("address", "atomic", "unordered"),
    [
        ("mov.b64 %rd2, %rd0;", "red.global.add.f32 [%rd2], %r2", True),
        ("mov.b64 %rd2, %rd1;", "red.global.add.f32 [%rd2], %r2", False),  # each thread its own
        ("mov.b64 %rd2, %rd1;", "red.global.add.f32 [%rd2], %r2;\n	red.global.add.f32 [%rd2], %r2", False),
        ("and.b32 %r3, %r0, 63;\n	mad.wide.u32 %rd2, %r3, 4, %rd0;", "red.global.add.f32 [%rd2], %r2", True),
        (OWN, "@%p0 red.global.add.f32 [%rd2], %r2;\n	@%p1 red.global.add.f32 [%rd2], %r2", True),
        (OWN, "@%p0 red.global.add.f32 [%rd2], %r2;\n	@%p0 red.global.add.f32 [%rd2], %r2", False),
        ("mov.b64 %rd2, %rd0;", "red.global.max.u32 [%rd2], %r2", False),
        ("mov.b64 %rd2, %rd0;", "atom.global.exch.b32 %r3, [%rd2], %r8", True),
    ],
)
def test_a_run_says_whether_its_bits_depend_on_the_order_of_threads(address: str, atomic: str, unordered: bool) -> None:
    """In the fourth case each CTA adds once to an address, and there are two CTAs."""
    _, outcome = execute(FLOATS.format(address=address, atomic=atomic))
    assert bool(outcome.unordered) == unordered
    assert all(" at /src/a.py:8" in one for one in outcome.unordered)


def test_a_sum_in_global_memory_flushes_subnormals_and_one_in_shared_memory_does_not() -> None:
    body = """
	mov.b32 %r2, 1;
	mov.b32 %r3, global_smem;
	setp.eq.b32 %p0, %r0, 0;
	@%p0 st.shared.b32 [%r3], %r2;
	bar.sync 0;
	@%p0 red.shared.add.f32 [%r3], %r2;
	bar.sync 0;
	st.global.b32 [%rd1], %r2;
	red.global.add.f32 [%rd1], %r2;
	ld.shared.b32 %r1, [%r3];
	setp.ne.b32 %p1, %r0, 0;
	@%p1 ret;
"""
    got, _ = execute(body, 32, 1, shared=16)
    assert got == [2] + [0] * 31


def test_a_vector_is_an_atomic_for_each_element() -> None:
    body = """
	shl.b32 %r2, %r0, 2;
	and.b32 %r2, %r2, 28;
	mad.wide.u32 %rd2, %r2, 4, %rd0;
	mov.b32 %r2, 0f3F800000;
	mov.b32 %r3, 0f40000000;
	atom.global.gpu.acq_rel.add.v4.f32 {%r4, %r5, %r6, %r7}, [ %rd2 + 0 ], {%r2, %r3, %r2, %r3};
	ret;
"""
    got, violations = execute(body, 32, 1)
    assert np.array(got, np.int32).view(np.float32).tolist() == [4.0, 8.0] * 16
    assert not violations
    misplaced = body.replace("%rd2 + 0", "%rd2 + 4")
    assert {v.kind for v in execute(misplaced, 32, 1)[1]} == {"MISALIGNED"}


@pytest.mark.parametrize("offset", [-4, 256])
def test_an_atomic_outside_of_its_argument_is_out_of_bounds(offset: int) -> None:
    _, violations = execute(f"	red.global.add.u32 [%rd0+{offset}], %r0;", 64, 1)
    assert [(v.kind, v.opcode, v.count) for v in violations] == [("OUT_OF_BOUNDS_WRITE", "red.global.add.u32", 64)]


SHARED = (
    "	mov.b32 %r2, global_smem;\n	mov.b32 %r3, 0;\n	setp.eq.b32 %p0, %r0, 5;\n	setp.eq.b32 %p1, %r0, 40;\n"
)
CLEAR = "	@%p0 st.shared.b32 [%r2], %r3;\n"
COUNT = "	atom.shared.add.u32 %r4, [%r2], 1;\n"
READ = "	ld.shared.b32 %r1, [%r2];\n"
MEET = "	bar.sync 0;\n"
WRITE = "	@%p1 st.shared.b32 [%r2], %r3;\n"


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ((CLEAR, MEET, COUNT, COUNT, MEET, READ), None),
        ((CLEAR, COUNT), ("RACE", "atom.shared.add.u32")),
        ((CLEAR, MEET, COUNT, READ), ("RACE", "ld.shared.b32")),
        ((CLEAR, MEET, COUNT, WRITE), ("RACE", "st.shared.b32")),
        ((CLEAR, MEET, READ, COUNT), ("RACE", "atom.shared.add.u32")),
        ((CLEAR, MEET, READ, MEET, COUNT, MEET, WRITE), None),
        ((COUNT, MEET, READ), ("UNINITIALISED_READ", "atom.shared.add.u32")),
    ],
)
def test_atomics_race_with_plain_accesses_and_not_with_one_another(parts: tuple[str, ...], wrong: Any) -> None:
    body = SHARED + "	mov.b32 %r1, 0;\n" + "".join(parts)
    _, found = execute(body, shared=16, races=True)
    assert [(v.kind, v.opcode) for v in found] == ([] if wrong is None else [wrong])


LAST = """
	setp.ne.b32 %p0, %r0, 0;
	shl.b32 %r2, %r9, 7;
	mov.b32 %r1, 7;
	add.s64 %rd2, %rd0, 508;
	st.global.b32 [%rd1], %r1;
	bar.sync 0;
	mov.b32 %r3, 0;
	@!%p0 {count} %r3, [%rd2], 1;
	shfl.sync.idx.b32 %r3, %r3, 0, 31, -1;
	setp.ne.b32 %p1, %r3, 1;
	@%p1 ret;
	ld.global.b32 %r1, [%rd0+12];
	st.global.b32 [%rd1], %r1;
	ret;
"""


@pytest.mark.parametrize(("sem", "races"), [("acq_rel", 0), ("relaxed", 1), ("release", 1), ("acquire", 1)])
def test_the_last_cta_may_read_what_the_others_released(sem: str, races: int) -> None:
    """32 threads and 2 CTAs write 256 bytes; the counter lies beyond, in memory of CTAs that do not run."""
    found = execute_some(LAST.format(count=f"atom.global.gpu.{sem}.add.u32"), 32, 4, [0, 1])
    assert [(v.kind, v.opcode) for v in found] == [("RACE", "ld.global.b32")] * races


LOCK = """
	setp.ne.b32 %p0, %r0, 0;
	@%p0 ret;
	mov.b32 %r1, 0;
	add.s64 %rd2, %rd0, 124;
$L_try:
	atom.global.acq_rel.gpu.cas.b32 %r3, [%rd2], 0, 1;
	setp.ne.b32 %p1, %r3, 0;
	@%p1 bra $L_try;
	ld.global.b32 %r4, [%rd0+12];
	add.s32 %r4, %r4, 5;
	st.global.b32 [%rd0+12], %r4;
	{release}
	ret;
"""


def test_a_lock_is_taken_by_one_cta_after_the_other_and_orders_what_it_guards() -> None:
    body = LOCK.format(release="atom.global.gpu.acq_rel.exch.b32 %r3, [%rd2], 0;")
    assert program(ptx(body, 32)).waits
    assert not execute_some(body, 32, 4, [0, 1, 2])
    got, violations = execute(body, 32, 3)
    assert (got[3], got[31]) == (15, 0)
    assert not violations


RETRIED = """
	ld.global.b32 %r2, [%rd0];
$L_again:
	add.s32 %r3, %r2, 3;
	atom.global.acq_rel.gpu.cas.b32 %r4, {at}, %r2, %r3;
	setp.eq.b32 %p0, %r4, %r2;
	mov.b32 %r2, %r4;
	@!%p0 bra $L_again;
	ret;
"""


def test_a_sum_by_compare_and_swap_is_tried_until_it_holds_and_its_first_guess_is_no_race() -> None:
    """As LLVM lowers atomics that a target lacks, such as a sum of bfloat16 on sm_80."""
    got, violations = execute(RETRIED.format(at="[%rd0]"), 64, 2, races=True)
    assert got[0] == 3 * 128
    assert not violations
    _, violations = execute(RETRIED.format(at="[%rd0+0]"), 64, 2, races=True)  # another place, for all that is known
    assert {v.kind for v in violations} == {"RACE"}


def test_a_lock_that_nobody_gives_back_is_refused_instead_of_tried_for_ever() -> None:
    with pytest.raises(NotExecutedError, match=r"cas\.b32 at /src/a\.py:8 .*what another CTA has not done"):
        execute(LOCK.format(release=""), 32, 2)


def test_an_operation_or_a_type_that_is_not_listed_is_refused() -> None:
    for opcode in ("atom.global.inc.u32", "atom.shared.add.f16", "red.global.exch.b32", "atom.global.acq_rel.add.u32"):
        with pytest.raises(NotExecutedError, match="no such spelling"):
            program(ptx(f"	{opcode} %r1, [%rd0], %r0;"))
