"""What is counted of a kernel: against counts made by hand, by brute force, and over all CTAs."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from validation.compiled.counters.footprint import sectors_of
from validation.compiled.counters.gpus import GPUS
from validation.compiled.counters.launch import Counters, chosen
from validation.compiled.counters.watch import SECTOR, Watch, wavefronts
from validation.compiled.ptx import sass
from validation.compiled.ptx.parse import Instruction, Kernel
from validation.compiled.ptx.sass import contracted
from validation.meta_tests.compiled.without_interpreter import printed_by

LANES = np.arange(32)
TWICE = "2 FFMA, expected 0 to 1; 0 FADD, expected 1 to 2"
H200 = next(gpu for gpu in GPUS if gpu.name == "H200")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("address", "size", "expected"),
    [
        (4 * LANES, 4, (1, 1)),
        (0 * LANES, 4, (1, 1)),  # one word for all
        (2 * (LANES // 2), 2, (1, 1)),
        (8 * LANES, 4, (2, 1)),  # every second bank
        (128 * LANES, 4, (32, 1)),  # one bank
        (4 * (33 * LANES), 4, (1, 1)),  # padded rows
        (8 * LANES, 8, (2, 2)),
        (16 * LANES, 16, (4, 4)),
        (128 * LANES, 16, (32, 4)),
        (np.where(LANES < 3, 128 * LANES, -1), 4, (3, 1)),
        (np.full(32, -1), 4, (0, 0)),
    ],
)
def test_wavefronts_of_shared_memory(address: Any, size: int, expected: tuple[int, int]) -> None:
    assert wavefronts(address[None].astype(np.int64), size) == expected


@pytest.mark.unit
def test_the_rows_of_a_matrix_are_read_at_once() -> None:
    rows = (16 * (LANES // 4))[None].astype(np.int64)
    assert wavefronts(rows, 16, whole=True) == (1, 1)


@pytest.mark.unit
def test_sectors_of_a_strided_tensor_are_those_of_its_elements() -> None:
    choose = random.Random(0)
    for _ in range(2000):
        shape = [choose.choice((1, 2, 3, 5, 8, 16, 33)) for _ in range(choose.randrange(1, 4))]
        strides, step = [], 1
        for n in reversed(shape):
            strides.append(choose.choice((step, step, step + choose.randrange(20), 0, 16 * step)))
            step = max(1, strides[-1] * n)
        strides.reverse()
        order = list(range(len(shape)))
        choose.shuffle(order)
        shape, strides = [shape[n] for n in order], [strides[n] for n in order]
        size, first = choose.choice((1, 2, 4, 8)), 8 * choose.randrange(1000)
        elements = [
            first + size * sum(i * s for i, s in zip(index, strides, strict=True))
            for index in itertools.product(*map(range, shape))
        ]
        expected = len({byte // SECTOR for at in elements for byte in (at, at + size - 1)})
        assert sectors_of(first, shape, strides, size) == expected, (first, shape, strides, size)
    assert sectors_of(0, (0, 3), (3, 1), 4) == 0


@pytest.mark.unit
def test_chosen_ctas_lie_over_the_whole_grid() -> None:
    assert chosen(1) == []
    assert chosen(20) == [*range(19)]
    found = chosen(1_000_000)
    assert len(found) == len(set(found)) == 32
    assert (found[0], found[-1]) == (0, 999_998)


@pytest.fixture(scope="module")
def known() -> dict[str, Counters]:
    printed = json.loads(printed_by("counted_kernels", function="known")[-1])
    return {name: Counters(**one) for name, one in printed.items()}


def test_a_copy_is_counted_as_by_hand(known: dict[str, Counters]) -> None:
    copy = known["copy"]
    # 4096 float32 in 16 bytes a thread: 1024 threads, 32 warps, and 16 sectors a request.
    assert (copy.programs, copy.requests, copy.sectors, copy.needed) == (4, 64, 1024, 1024)
    assert (copy.read_bytes, copy.written_bytes, copy.l2_bytes, copy.common_bytes) == (16384, 16384, 32768, 0)
    assert (copy.shared_requests, copy.wavefronts, copy.local_bytes) == (0, 0, 0)
    assert copy.instructions["global memory"] == 64
    assert "shared memory" not in copy.instructions


def test_what_lies_apart_moves_more_sectors(known: dict[str, Counters]) -> None:
    apart = known["stride 8"]
    assert apart.written_bytes == 16384
    assert apart.read_bytes == 4096 * SECTOR
    # 4096 elements, each of a sector of its own; a request of a warp could have asked for 4.
    assert apart.sectors - apart.written_bytes // SECTOR == 4096
    assert apart.needed == 1024


def test_what_is_read_twice_is_requested_twice_and_moved_once(known: dict[str, Counters]) -> None:
    copy, twice = known["copy"], known["twice"]
    assert twice.sectors == 3 * copy.sectors / 2
    assert (twice.read_bytes, twice.l2_bytes) == (copy.read_bytes, copy.l2_bytes)
    assert twice.cycles > copy.cycles


def test_a_large_grid_scales(known: dict[str, Counters]) -> None:
    copy, large = known["copy"], known["large"]
    for name in ("programs", "requests", "sectors", "needed", "read_bytes", "written_bytes", "l2_bytes"):
        assert getattr(large, name) == 100 * getattr(copy, name), name
    assert large.instructions == {name: 100 * n for name, n in copy.instructions.items()}


def test_what_every_program_reads_comes_from_dram_once_and_to_each_sm_once(known: dict[str, Counters]) -> None:
    one = known["sum"]
    assert one.common_bytes == 8000
    # 100 floats of one program each are written: 13 sectors, but 4 bytes of one a program.
    assert (one.read_bytes, one.written_bytes) == (100 * 8000 + 8000, 13 * SECTOR)
    assert one.l2_bytes == 100 * (8000 + SECTOR)
    assert one.shared_requests > 0
    assert one.instructions["shuffle"] > 0


def test_of_a_table_that_ctas_have_in_common_what_they_read_counts_once(known: dict[str, Counters]) -> None:
    table, one = known["table"], known["sum"]
    assert table.common_bytes == 8000
    assert table.read_bytes == one.read_bytes


def test_of_a_loop_no_more_is_said_than_is_sure(known: dict[str, Counters]) -> None:
    loop = known["loop"]
    # 50 loads of one warp or, of the same 32 elements, of all four.
    assert loop.requests >= 100 * 50
    assert loop.cycles == 0
    sure = ("global memory", "shared memory", "shuffle", "barrier", "float arithmetic")
    assert loop.machine_instructions == sum(loop.instructions.get(name, 0) for name in sure)
    assert loop.contracted == ""
    assert loop.bounds(H200)["latency"] == 0.0


def test_ctas_that_differ_are_told(known: dict[str, Counters]) -> None:
    assert [known[name].alike for name in ("copy", "large", "sum", "loop", "ragged")] == [True] * 4 + [False]


def test_bounds_are_the_counts_over_the_rates(known: dict[str, Counters]) -> None:
    large = known["large"]
    bounds = large.bounds(H200)
    assert bounds["DRAM"] == large.dram_bytes / 4.8e12
    assert bounds["L1"] == pytest.approx(large.sectors * 32 / (128 * 132 * 1.98e9))
    assert large.bound(H200) == max(((name, value) for name, value in bounds.items()), key=lambda one: one[1])
    # 4096 x 100 elements: 400 CTAs of 128 threads; 16 of them fill an SM's 2048 threads.
    assert large.ctas_of_sm(H200) == 16
    assert known["copy"].bounds(H200)["latency"] == pytest.approx(known["copy"].cycles / 1.98e9)


@pytest.mark.unit
def test_how_many_ctas_an_sm_holds() -> None:
    assert H200.resident(128, 32, 0) == 16  # threads
    assert H200.resident(256, 65, 32) == 3  # registers: 72 of each thread are allotted
    assert H200.resident(32, 16, 0) == 32  # CTAs
    assert H200.resident(128, 32, 100 * 1024) == 2  # shared memory
    assert GPUS[0].resident(128, 32, 100 * 1024) == 1


def test_some_ctas_stand_for_all() -> None:
    found = json.loads(printed_by("counted_kernels", function="sampled")[-1])
    for op, (counted, exact) in found.items():
        assert counted["programs"] > 500, op
        for name, number in exact.items():
            # Of instructions each class is rounded to a whole number.
            assert counted[name] == pytest.approx(number, abs=len(LANES) if name == "instructions" else 0), (op, name)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("ptx", "code", "says"),
    [
        (["mul.f32", "add.f32"], ["FMUL", "FADD.FTZ"], ""),
        (["mul.f32", "add.f32"], ["FFMA"], "1 FFMA, expected 0; 0 FADD, expected 1; 0 FMUL, expected 1"),
        (["fma.rn.f32", "div.rn.f32"], ["FFMA"] * 6, ""),
        (["div.rn.f32", "div.rn.f32", "sqrt.rn.f32"], ["FFMA"] * 12 + ["FMUL"] * 2, ""),
        (["sub.rn.f32", "sqrt.rn.f32"], ["FADD", "FFMA", "FFMA", "FMUL", "FMUL"], ""),
        (["add.rn.f32x2", "sub.rn.f32.bf16"], ["FADD2", "FHADD"], ""),
        (["fma.rn.f32x2"], ["FFMA", "FFMA"], "2 FFMA, expected 0; 0 FFMA2, expected 1"),
        (["mul.f32", "add.f32", "add.f32"], ["FADD"], ""),  # dead code
        (["div.full.f32", "mul.f32", "neg.f32"], ["FMUL"] * 5, ""),
        (["div.full.f32", "add.f32"], ["FMUL"] * 4 + ["FFMA"], ""),  # its last product with the sum behind it
        (["div.full.f32", "mul.f32", "mul.f32", "add.f32", "add.f32"], ["FMUL"] * 5 + ["FFMA"] * 2, TWICE),
        (["mul.f32", "rsqrt.approx.odd.f32"], ["FMUL", "FMUL"], ""),  # not known
    ],
)
def test_a_contraction_by_ptxas_shows_in_the_counts(
    ptx: list[str], code: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sass, "opcodes_of", lambda *_: code)
    instructions = tuple(Instruction(opcode, (), None, False, "", 0) for opcode in ptx)
    kernel = Kernel("k", (), (32, 1, 1), {}, instructions, {}, ())
    found = contracted(kernel, b"")
    assert found == (f"ptxas contracted products and sums of k: {says}" if says else "")


@pytest.mark.unit
def test_nothing_is_said_of_loops_and_of_unknown_expansions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "opcodes_of", lambda *_: ["FFMA"] * 4)
    again = Instruction("bra", ("$L",), None, False, "", 0)
    added = Instruction("add.f32", (), None, False, "", 0)
    looping = Kernel("k", (), (32, 1, 1), {}, (added, again), {"$L": 0}, ())
    assert (looping.loops, contracted(looping, b"")) == (True, "")
    onward = dataclasses.replace(looping, instructions=(again, added), labels={"$L": 1})
    assert (onward.loops, contracted(onward, b"") != "") == (False, True)
    divided = dataclasses.replace(onward, instructions=(Instruction("div.rn.f64", (), None, False, "", 0),))
    assert contracted(divided, b"") == ""


@pytest.mark.unit
def test_local_memory_of_a_warp_lies_side_by_side() -> None:
    watch, store = Watch(), Instruction("st.local.b64", (), None, False, "", 0)
    active = np.arange(64)[None] < 40
    watch.access(
        store, "local", np.full((1, 1), 16, np.uint64), active, 8, write=True, shape=(1, 64), ctas=np.zeros(1, np.int64)
    )
    # 32 threads of one warp and 8 of the next, 8 bytes each.
    assert (watch.sites[store].requests, watch.sites[store].moved, watch.sites[store].needed) == (2, 8 + 2, 8 + 2)
    assert len(watch.written) == 0


def test_nvdisasm_reads_a_cubin_once_and_another_one_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    asked, nvdisasm = tmp_path / "asked", tmp_path / "nvdisasm"
    nvdisasm.write_text(f'#!/bin/sh\necho >>{asked}\ncat "$2"\n')
    nvdisasm.chmod(0o755)
    monkeypatch.setattr(sass, "tool", tmp_path.__truediv__)
    opcodes_of = sass.opcodes_of.__wrapped__  # as a new process would
    for opcode, times in (("FADD", 1), ("FADD", 1), ("FFMA", 2), ("FADD", 2)):
        code = f"        /*0000*/   {opcode} R1, R2, R3 ;\n        /*0010*/   EXIT ;\n"
        assert opcodes_of(code.encode()) == (opcode, "EXIT")
        assert len(asked.read_text()) == times
    nvdisasm.write_text(nvdisasm.read_text() + "# another\n")
    assert opcodes_of(code.encode()) == ("FADD", "EXIT")
    assert len(asked.read_text()) == 3
