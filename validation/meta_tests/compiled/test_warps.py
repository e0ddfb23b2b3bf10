"""Instructions of a warp under a mask: who takes part, what they get, and what has no meaning."""

import functools
import operator
from collections.abc import Callable

import numpy as np
import pytest

from validation.compiled.ptx.errors import NotExecutedError
from validation.meta_tests.compiled.small_kernel import execute

# Lanes below 12 go one way, the others the other way; each half names itself in its mask.
PARTED = """
	setp.lt.u32 %p0, %r0, 12;
	mov.b32 %r1, 77;
	setp.eq.b32 %p1, %r0, 3;
	@%p0 bra $L_few;
	mov.b32 %r2, 0xFFFFF000;
	{many};
	bra.uni $L_met;
$L_few:
	mov.b32 %r2, 0xFFF;
	{few};
$L_met:
"""


def parted(instruction: str, other: str | None = None) -> list[int]:
    body = PARTED.format(many=instruction, few=instruction if other is None else other)
    return [value & 0xFFFFFFFF for value in execute(body, 32, 1)[0]]


REDUCTIONS: dict[str, Callable[[range], int]] = {
    "add.u32": sum,
    "max.u32": max,
    "min.u32": min,
    "or.b32": lambda v: functools.reduce(operator.or_, v),
    "and.b32": lambda v: functools.reduce(operator.and_, v),
    "xor.b32": lambda v: functools.reduce(operator.xor, v),
}


@pytest.mark.parametrize("opcode", REDUCTIONS)
def test_a_reduction_combines_the_lanes_of_its_mask(opcode: str) -> None:
    combine = REDUCTIONS[opcode]
    got = parted(f"redux.sync.{opcode} %r1, %r0, %r2")
    assert got == [combine(range(12))] * 12 + [combine(range(12, 32))] * 20


def test_a_shuffle_in_a_branch_exchanges_among_the_lanes_of_its_mask() -> None:
    got = parted("shfl.sync.bfly.b32 %r1, %r0, 1, 31, %r2")
    assert got == [lane ^ 1 for lane in range(32)]


def test_what_comes_from_a_lane_outside_of_the_mask_is_no_number() -> None:
    got = parted("shfl.sync.bfly.b32 %r1, %r0, 4, 31, %r2")
    assert got == [lane ^ 4 if (lane < 12) == (lane ^ 4 < 12) else 0xFFFFFFFF for lane in range(32)]


VOTES = {"any": [True, False], "all": [False, False], "uni": [False, True]}


@pytest.mark.parametrize("mode", VOTES)
def test_a_vote_is_taken_among_the_lanes_of_its_mask(mode: str) -> None:
    """Lane 3 says yes, all others no."""
    got = parted(f"vote.sync.{mode}.pred %p2, %p1, %r2;\n	selp.b32 %r1, 1, 0, %p2")
    assert got == [int(VOTES[mode][0])] * 12 + [int(VOTES[mode][1])] * 20


def test_a_vote_may_ask_for_the_opposite() -> None:
    got = parted("vote.sync.all.pred %p2, !%p1, %r2;\n	selp.b32 %r1, 1, 0, %p2")
    assert got == [0] * 12 + [1] * 20


def test_a_ballot_has_a_bit_for_each_lane_of_its_mask() -> None:
    assert parted("vote.sync.ballot.b32 %r1, %p1, %r2") == [8] * 12 + [0] * 20
    body = "	setp.ge.u32 %p1, %r0, 40;\n	vote.sync.ballot.b32 %r1, %p1, -1;"
    got, _ = execute(body, 64, 1)
    assert [v & 0xFFFFFFFF for v in got] == [0] * 32 + [0xFFFFFF00] * 32


def test_lanes_that_returned_are_not_waited_for() -> None:
    leave = "	setp.ge.u32 %p0, %r0, 20;\n	mov.b32 %r1, 0;\n	@%p0 ret;\n"
    got, _ = execute(leave + "	redux.sync.add.u32 %r1, %r0, -1;", 32, 1)
    assert got == [sum(range(20))] * 20 + [0] * 12
    got, _ = execute(leave + "	activemask.b32 %r1;", 32, 1)
    assert got == [(1 << 20) - 1] * 20 + [0] * 12


def test_all_lanes_are_active_where_none_has_parted() -> None:
    assert {v & 0xFFFFFFFF for v in execute("	activemask.b32 %r1;")[0]} == {0xFFFFFFFF}


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("redux.sync.add.u32 %r1, %r0, -1", "some lanes of a warp are inactive"),
        ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1", "some lanes of a warp are inactive"),
        ("vote.sync.ballot.b32 %r1, %p1, 0x1000", "a lane executes it that its mask does not name"),
        ("bar.warp.sync 0x80000000", "a lane executes it that its mask does not name"),
        ("activemask.b32 %r1", "lanes of a warp have parted"),
    ],
)
def test_what_a_mask_leaves_without_a_meaning_is_refused(instruction: str, message: str) -> None:
    with pytest.raises(NotExecutedError, match=message):
        parted(instruction, "mov.b32 %r1, 0")


def test_lanes_of_two_masks_that_name_one_another_are_refused() -> None:
    body = "	and.b32 %r2, %r0, 1;\n	sub.s32 %r2, -1, %r2;\n	or.b32 %r2, %r2, 1;\n	redux.sync.or.b32 %r1, %r0, {};"
    assert np.unique(execute(body.format(-1), 32, 1)[0]).tolist() == [31]
    mixed = "	setp.eq.b32 %p0, %r0, 4;\n	selp.b32 %r2, 0x30, -1, %p0;\n	redux.sync.or.b32 %r1, %r0, %r2;"
    with pytest.raises(NotExecutedError, match="lanes of one mask execute it with another one"):
        execute(mixed, 32, 1)


def test_lanes_that_meet_alone_are_executed_but_their_races_are_not_looked_for() -> None:
    body = "	mov.b32 %r1, 4;\n	bar.warp.sync -1;"
    assert set(execute(body)[0]) == {4}
    with pytest.raises(NotExecutedError, match="races are not looked for"):
        execute(body, races=True)


# Each lane leaves its number in shared memory, and takes its neighbour's.
EXCHANGE = """
	mov.b32 %r3, global_smem;
	shl.b32 %r2, %r0, 2;
	add.s32 %r4, %r3, %r2;
	xor.b32 %r5, %r2, 4;
	add.s32 %r5, %r3, %r5;
	st.shared.b32 [%r4], %r0;
	{meet}
	ld.shared.b32 %r1, [%r5];
"""


@pytest.mark.parametrize(("meet", "races"), [("bar.warp.sync -1;", 0), ("bar.sync 0;", 0), ("", 1)])
def test_the_barrier_of_a_warp_orders_a_cta_of_one_warp(meet: str, races: int) -> None:
    got, violations = execute(EXCHANGE.format(meet=meet), 32, 2, shared=128, races=True)
    assert got == [lane ^ 1 for lane in range(32)] * 2
    assert len(violations) == races
    assert {found.kind for found in violations} <= {"RACE"}


def test_races_are_not_looked_for_where_one_of_several_warps_meets() -> None:
    with pytest.raises(NotExecutedError, match="where the lanes of a warp alone meet"):
        execute(EXCHANGE.format(meet="bar.warp.sync -1;"), 64, 1, shared=256, races=True)


# After a barrier each lane loads the element of a neighbour, who overwrites it; in between all may meet.
OVERWRITTEN = """
	mov.b32 %r3, global_smem;
	shl.b32 %r2, %r0, 2;
	add.s32 %r4, %r3, %r2;
	st.shared.b32 [%r4], %r0;
	bar.sync 0;
	xor.b32 %r5, %r2, {distance};
	add.s32 %r5, %r3, %r5;
	ld.shared.b32 %r1, [%r5];
	{meet}
	st.shared.b32 [%r4], %r1;
"""
SHUFFLE = "shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;"


@pytest.mark.parametrize(
    ("distance", "meet", "races"),
    [(4, SHUFFLE, 0), (4, "bar.warp.sync -1;", 0), (4, "", 1), (128, SHUFFLE, 1), (128, "bar.sync 0;", 0)],
    ids=["shuffle", "barrier of the warp", "nothing", "shuffle, another warp", "barrier, another warp"],
)
def test_a_lane_that_stores_after_its_warp_met_does_not_race_with_their_loads(
    distance: int, meet: str, races: int
) -> None:
    threads = 32 if meet.startswith("bar.warp") else 64
    got, violations = execute(OVERWRITTEN.format(distance=distance, meet=meet), threads, 2, shared=256, races=True)
    assert got == [thread ^ (distance // 4) for thread in range(threads)] * 2
    assert [found.kind for found in violations] == ["RACE"] * races
