"""Races on which nothing depends are none; others are, however little depends on them."""

import json

import pytest

from validation.meta_tests.compiled import racing_kernels
from validation.meta_tests.compiled.small_kernel import execute
from validation.meta_tests.compiled.without_interpreter import printed_by

Found = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def found() -> Found:
    results: Found = json.loads(printed_by("racing_kernels")[-1])
    return results


@pytest.mark.parametrize("mode", ["nearest", "seeded"])
@pytest.mark.parametrize("name", racing_kernels.RIGHT)
def test_a_race_whose_reader_discards_the_value_is_none(found: Found, name: str, mode: str) -> None:
    by_the_letter = found["by the letter"][name]
    assert by_the_letter
    assert all(text.startswith("RACE in") for text in by_the_letter)
    assert not found[mode][name]


@pytest.mark.parametrize("mode", ["nearest", "seeded"])
@pytest.mark.parametrize("name", racing_kernels.WRONG)
def test_a_race_on_which_an_element_depends_is_reported(found: Found, name: str, mode: str) -> None:
    (violation,) = found[mode][name]
    assert violation.startswith("RACE in")
    # Triton's cache does not know where a kernel lies: the folder may be another checkout's.
    assert "/racing_kernels.py:" in violation


# Each thread reads the element of one 32 threads away; %r6 is its address.
SHARED = """
	mov.b32 %r2, global_smem;
	shl.b32 %r3, %r0, 2;
	add.s32 %r4, %r2, %r3;
	st.shared.b32 [%r4], %r8;
	bar.sync 0;
	xor.b32 %r5, %r3, 128;
	add.s32 %r6, %r2, %r5;
	mov.b32 %r7, 100;
	mov.b32 %r1, 0;
"""
READ, READ_AND_USE = "	ld.shared.b32 %r10, [%r6];\n", "	ld.shared.b32 %r1, [%r6];\n"
WRITE, MEET = "	st.shared.b32 [%r4], %r7;\n", "	bar.sync 0;\n"
IS_100 = "	setp.eq.b32 %p0, %r10, 1000;\n	selp.b32 %r1, 1, 0, %p0;\n"


@pytest.mark.parametrize(
    ("parts", "races"),
    [
        ((READ, WRITE), 0),
        ((WRITE, READ), 0),
        ((READ_AND_USE, WRITE), 1),
        ((WRITE, READ_AND_USE), 1),
        # Reads of another phase than the racing ones keep their values, in loops too.
        ((READ_AND_USE, MEET, READ, WRITE), 0),
        ((READ, WRITE, MEET, READ_AND_USE), 0),
        ((READ_AND_USE, MEET, READ, WRITE, MEET, READ, WRITE), 0),
        ((READ, MEET, READ_AND_USE, WRITE, MEET, READ), 1),
        # Only the value on the other side of the write shows.
        ((READ, WRITE, IS_100.replace("1000", "100")), 1),
        ((READ, WRITE, IS_100), 0),
    ],
)
def test_races_in_shared_memory(parts: tuple[str, ...], races: int) -> None:
    _, found = execute(SHARED + "".join(parts), shared=256, races=True)
    assert [v.kind for v in found] == ["RACE"] * races


def test_memory_is_left_as_the_first_run_leaves_it() -> None:
    body = SHARED + READ_AND_USE + WRITE
    assert execute(body, shared=256, races=True)[0] == execute(body, shared=256)[0] == [n ^ 32 for n in range(128)]
    body = "	ld.global.b32 %r1, [%rd0];\n	add.s32 %r1, %r1, 1;\n	@%p0 ret;\n"
    assert execute(body, ctas=1, races=True)[0] == [1] * 64


def test_an_element_that_its_own_thread_writes_and_reads_is_not_poisoned() -> None:
    """Thread 0 alone writes and reads back what all others read in vain."""
    body = """
	mov.b32 %r2, global_smem;
	mov.b32 %r1, 0;
	setp.eq.b32 %p0, %r0, 0;
	@%p0 st.shared.b32 [%r2], 7;
	ld.shared.b32 %r3, [%r2];
	selp.b32 %r1, %r3, 0, %p0;
"""
    got, found = execute(body, shared=16, races=True)
    assert got == [7, *[0] * 63] * 2
    assert not found
