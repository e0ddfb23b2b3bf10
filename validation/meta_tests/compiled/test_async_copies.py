"""cp.async: what is copied, when it can be seen, and what is missing where nobody waits."""

import pytest

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.program import program
from validation.meta_tests.compiled.small_kernel import execute, ptx

# Each thread copies its own four bytes, 8 * thread behind the CTA's first, twice.
START = """
	st.global.b32 [%rd1], %r8;
	bar.sync 0;
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 2;
	add.s32 %r4, %r2, %r3;
	mov.b32 %r5, 4;
	cp.async.ca.shared.global [ %r4 + 0 ], [ %rd1 + 0 ], 0x4, %r5;
	cp.async.commit_group;
	cp.async.ca.shared.global [ %r4 + 256 ], [ %rd1 + 0 ], 0x4;
	cp.async.commit_group;
"""
MEET = "	bar.sync 0;\n"
READ = "	xor.b32 %r6, %r4, 128;\n	ld.shared.b32 %r1, [%r6{}];\n"
NAN = -1


def test_a_copy_is_there_after_its_group_was_waited_for() -> None:
    got, violations = execute(START + "	cp.async.wait_group 1;\n" + MEET + READ.format(""), shared=512, races=True)
    assert got == [n ^ 32 for n in range(128)]
    assert not violations
    got, violations = execute(
        START + "	cp.async.wait_group 0;\n" + MEET + READ.format("+256"), shared=512, races=True
    )
    assert got == [n ^ 32 for n in range(128)]
    assert not violations


def test_a_group_that_was_not_waited_for_is_no_number_and_a_race() -> None:
    """The fault that is planted: the loop waits for one group too few."""
    body = START + "	cp.async.wait_group 1;\n" + MEET + READ.format("+256")
    assert set(execute(body, shared=512)[0]) == {NAN}
    _, found = execute(body, shared=512, races=True)
    assert [(v.kind, v.opcode) for v in found] == [("RACE", "ld.shared.b32")]
    assert "an asynchronous copy is still to write" in found[0].where


def test_what_lay_there_before_is_lost_when_a_copy_is_issued() -> None:
    again = "	cp.async.ca.shared.global [%r4], [%rd1], 4;\n	cp.async.commit_group;\n"
    body = START + "	cp.async.wait_group 0;\n" + MEET + again + READ.format("")
    assert set(execute(body, shared=512)[0]) == {NAN}


def test_a_wait_without_a_barrier_is_a_race() -> None:
    body = START + "	cp.async.wait_group 0;\n" + READ.format("")
    assert execute(body, shared=512)[0] == [n ^ 32 for n in range(128)]
    _, found = execute(body, shared=512, races=True)
    assert [(v.kind, v.opcode) for v in found] == [("RACE", "ld.shared.b32")]


def test_a_copy_over_what_others_still_read_is_a_race() -> None:
    again = "	cp.async.ca.shared.global [%r4], [%rd1], 4;\n"
    body = START + "	cp.async.wait_group 0;\n" + MEET + READ.format("")
    assert not execute(body + MEET + again, shared=512, races=True)[1]
    _, found = execute(body + again, shared=512, races=True)
    assert [(v.kind, v.opcode) for v in found] == [("RACE", "cp.async.ca.shared.global")]


def test_waiting_for_all_counts_copies_that_no_group_has() -> None:
    body = START + "	cp.async.ca.shared.global [%r4+512], [%rd0], 4;\n	{};\n" + MEET + READ.format("+512")
    assert set(execute(body.format("cp.async.wait_all"), shared=768)[0]) == {0}
    assert set(execute(body.format("cp.async.wait_group 0"), shared=768)[0]) == {NAN}


def test_bytes_that_are_not_read_are_zeros_and_their_address_is_not_looked_at() -> None:
    body = """
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 4;
	add.s32 %r4, %r2, %r3;
	setp.lt.u32 %p0, %r0, 2;
	selp.b32 %r5, 16, 0, %p0;
	mov.b32 %r6, 7;
	st.global.b32 [%rd1], %r6;
	mad.wide.u32 %rd2, %r0, 4096, %rd0;
	selp.b64 %rd2, %rd0, %rd2, %p0;
	bar.sync 0;
	cp.async.cg.shared.global [%r4], [%rd2], 16, %r5;
	cp.async.commit_group;
	cp.async.wait_group 0;
	bar.sync 0;
	ld.shared.b32 %r1, [%r4+12];
"""
    got, violations = execute(body, 32, 1, shared=512)
    assert got == [7, 7] + [0] * 30
    assert not violations


@pytest.mark.parametrize(
    ("copy", "kind"),
    [
        ("cp.async.cg.shared.global [%r4], [%rd0+-16], 16", "OUT_OF_BOUNDS_READ"),
        ("cp.async.cg.shared.global [%r4+512], [%rd0], 16", "OUT_OF_BOUNDS_WRITE"),
        ("cp.async.cg.shared.global [%r4+8], [%rd0], 16", "MISALIGNED"),
        ("cp.async.cg.shared.global [%r4], [%rd0+4], 16", "MISALIGNED"),
    ],
)
def test_both_sides_of_a_copy_are_checked(copy: str, kind: str) -> None:
    _, violations = execute(f"	mov.b32 %r4, global_smem;\n	{copy};\n	mov.b32 %r1, 0;", shared=512)
    assert [v.kind for v in violations] == [kind]


def test_groups_are_counted_for_each_thread() -> None:
    """Odd CTAs close a group that others do not."""
    close = "	and.b32 %r7, %r9, 1;\n	setp.eq.b32 %p0, %r7, 1;\n	@%p0 cp.async.commit_group;\n"
    got, _ = execute(START + close + "	cp.async.wait_group 1;\n" + MEET + READ.format("+256"), shared=512)
    assert got == [NAN] * 64 + [n ^ 32 for n in range(64, 128)]


def test_what_is_not_executed_of_copies() -> None:
    with pytest.raises(NotExecutedError, match="a copy of 8 bytes"):
        program(ptx("	cp.async.cg.shared.global [%r4], [%rd0], 8;"))
    with pytest.raises(NotExecutedError, match="no such spelling"):
        program(ptx("	cp.async.mbarrier.arrive.shared.b64 [%r4];"))
    with pytest.raises(NotExecutedError, match="of all of its bytes or of none"):
        execute(
            "	mov.b32 %r2, 3;\n	mov.b32 %r4, 0;\n	cp.async.ca.shared.global [%r4], [%rd0], 4, %r2;", shared=512
        )
