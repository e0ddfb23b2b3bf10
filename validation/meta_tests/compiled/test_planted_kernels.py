"""Planted faults of memory and order are found with kind, opcode and Python line; right kernels are not."""

import json
from pathlib import Path

import pytest

from validation.compiled.ptx.errors import Violation
from validation.meta_tests.compiled import planted_kernels
from validation.meta_tests.compiled.without_interpreter import printed_by

LINES = Path(planted_kernels.__file__).read_text().splitlines()
Found = dict[str, list[Violation]]


@pytest.fixture(scope="module")
def found() -> Found:
    found = json.loads(printed_by("planted_kernels")[-1])
    return {name: [Violation(**v) for v in some] for name, some in found.items()}


def only(found: Found, name: str, kind: str, opcode: str) -> Violation:
    """The one violation of that kind and opcode."""
    (violation,) = [v for v in found[name] if (v.kind, v.opcode) == (kind, opcode)]
    return violation


def line_of(violation: Violation) -> str:
    """The Python line that a violation names."""
    path, _, number = violation.source.partition(" in ")[0].rpartition(":")
    assert Path(path).name == "planted_kernels.py"
    return LINES[int(number) - 1].strip()


def test_right_kernels_violate_nothing(found: Found) -> None:
    right = {name: some for name, some in found.items() if name.startswith("right")}
    assert len(right) == 7
    assert not any(right.values()), right


def test_a_false_multiple_of_is_misaligned(found: Found) -> None:
    load = only(found, "false multiple_of", "MISALIGNED", "ld.global.v4.b32")
    store = only(found, "false multiple_of", "MISALIGNED", "st.global.v4.b32")
    assert line_of(load).startswith("value = tl.load(x")
    assert line_of(store).startswith("tl.store(y")
    assert (load.cta, load.thread, load.count) == (0, 0, 126)  # row 1 of 0, 1 and 2: 1008 elements, 8 a thread
    assert "of 16 bytes" in load.where


def test_a_missing_row_mask_writes_out_of_bounds(found: Found) -> None:
    (store,) = found["no row mask"]
    assert store == only(found, "no row mask", "OUT_OF_BOUNDS_WRITE", "st.global.v4.b32")
    assert line_of(store).startswith("tl.store(y")
    assert (store.cta, store.count) == (1, 126)  # its second row
    assert "0 bytes behind the end of y" in store.where


def test_a_weight_read_past_its_end_is_out_of_bounds(found: Found) -> None:
    (load,) = found["weight past its end"]
    assert load.kind == "OUT_OF_BOUNDS_READ"
    assert line_of(load).startswith("weight = tl.load(w")
    assert (load.thread, load.count) == (100, 56)  # 56 elements beyond 200, 2 a thread, 2 programs
    assert "behind the end of w (200,)" in load.where


def test_a_false_max_constancy_stores_out_of_bounds(found: Found) -> None:
    store = only(found, "false max_constancy", "OUT_OF_BOUNDS_WRITE", "st.global.v4.b32")
    assert line_of(store).startswith("tl.store(y")
    assert store.count == 1  # the last 4 of 1020 elements and 4 beyond


def test_int32_offsets_are_found_by_addresses_alone(found: Found) -> None:
    store = only(found, "int32 offsets", "OUT_OF_BOUNDS_WRITE", "st.global.v4.b32")
    assert line_of(store).startswith("tl.store(y")
    assert "bytes before y" in store.where


def test_an_exchange_through_global_memory_without_a_barrier_is_a_race(found: Found) -> None:
    kinds = {v.kind for v in found["exchange without a barrier"]}
    assert kinds == {"RACE"}


def test_programs_that_overwrite_what_others_read_are_a_race(found: Found) -> None:
    races = found["in place between programs"]
    assert {v.kind for v in races} == {"RACE"}
    assert {line_of(v) for v in races} == {"tl.store(x + at, tl.load(x + at + D))"}


@pytest.mark.parametrize("number", range(5))
def test_a_barrier_taken_out_of_a_layer_norm_is_a_race(found: Found, number: int) -> None:
    """No output shows it: `planted_kernels` compares them."""
    races = found[f"barrier {number}"]
    assert {v.kind for v in races} == {"RACE"}
    assert all("shared" in v.opcode for v in races)
    assert all("layer_norm_scale_shift.py" in v.source for v in races)
