"""Every planted fault is caught by a check that names its bug; correct ops are not flagged."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from validation import faults
from validation.cases import corners, strategies
from validation.cases.errors import bad_calls, good_case
from validation.cases.pool import draw_cases
from validation.cli import FAILED, PASSED, USAGE, main
from validation.device import Device, select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.faults import matrix
from validation.faults.fault import FAULTS, fault
from validation.faults.kernels import RightKernel
from validation.faults.right import RightOps
from validation.judge.signature import signature_of
from validation.ops import OpSet, load_op_set, reference_op_names
from validation.parity import plan
from validation.parity.one_case import judge_case
from validation.parity.plan import Plan, shares
from validation.parity.profiles import PROFILES
from validation.parity.refusals import bad_input_record
from validation.parity.summary import summary
from validation.parity.sweep import Sweep
from validation.record import Record, read_run
from validation.report.fault_section import print_matrix, section
from validation.verdict import Status, Tier

QUICK = PROFILES["quick"]
OPS = reference_op_names()
KNOWN = faults.load()
# Those of one op one after another: they get the same cases.
INTERPRETED = sorted(
    (name for name in KNOWN if "interpreter" in KNOWN[name].on), key=lambda name: (KNOWN[name].op, name)
)

# Bugs known to have passed another project's tests, and the faults that represent each.
BUGS = {
    "batch > 1 reads row 0's modulation": ["batch item 0 for all", "gate of batch item 0", "angles of batch item 0"],
    "[B, D] broadcast as [1, B, D] when B == L": ["[B, D] gate as [1, B, D]", "[B, D] scale as [1, B, D]"],
    "per-frame rows indexed wrongly": ["frame by l % F", "frame of the first item"],
    "F not dividing L accepted": ["F that does not divide L"],
    "weight-only or bias-only affine dropped": ["weight without bias dropped", "bias without weight dropped"],
    "scale and shift swapped": ["scale and shift swapped"],
    "1 + dropped": ["one plus dropped"],
    "variance over N-1": ["variance over N-1", "variance over N-1, modulated"],
    "eps ten times too big": ["eps ten times too big", "eps ten times too big, chained"],
    "eps outside the root": ["eps outside the root"],
    "one-pass variance": ["one-pass variance"],
    "statistics in bf16": ["statistics in bfloat16"],
    "a mid-way rounding that was not declared": ["normalised value rounded", "product rounded", "products rounded"],
    "truncation instead of rounding": ["truncated"],
    "a residual normalised before the rounding that is stored": ["norm of the unrounded residual"],
    "output in float32 because the gate was": ["output in the gate's dtype", "float32 output"],
    "row mask missing": ["row mask missing"],
    "column tail stale or missing": ["column tail stale", "column tail not written"],
    "hard-coded strides": ["strides hard-coded", "row stride is the width", "strides of a dense scale"],
    "alignment assumed": ["16-byte alignment assumed"],
    "in-place q/k norm through .contiguous() when L == 1": ["in place through .contiguous(), L == 1"],
    "q and k the same tensor normalised twice": ["the same tensor normalised twice", "q and k that overlap"],
    "interleaved=False ignored": ["interleaved=False ignored"],
    "rotary dims below head_dim corrupting other heads": ["rotary dims over the next head", "halves of head_dim"],
    "scale_constant ignored by a zero shortcut": ["zero shortcut", "scale_constant or one"],
    "float16 overflow hidden or made": [
        "float16 overflow hidden",
        "float16 overflow made",
        "squares in the input dtype",
    ],
    "NaN moved to other rows or swallowed": ["NaN moved to other rows", "NaN swallowed"],
    "int32 offsets past 2^31 elements": ["32-bit row offsets"],
    "a grid axis above 65535": ["grid axis above 65535", "grid for 65536 rows", "16-bit row numbers"],
    "caching by data_ptr": ["scale cached by address"],
    "dependence on the batch size": ["order of the sum by batch"],
    "run-to-run differences": ["order of the sum at random"],
    "a silent fallback to the eager path": ["silent fallback"],
    "statistics kept from a previous call": ["statistics of an earlier call", "sums not cleared"],
}

# Faults that random cases would miss, and the corner that shows each with any seed.
CORNER_OF = {
    "table's column stride is one": "shift: table last dimension strided, index stride 0",
    "tables end to end": "scale: a slice of each item's table",
    "items end to end": "x: tokens of a longer sequence",
    "sin in cos's dtype": "cos float16, sin float32",
    "q's heads by twos": "k: fewer heads, other dtype",
    "k in q's dtype": "k: fewer heads, other dtype",
    "eight heads": "H=40",
    "a few rotary dims": "rotary dims below head_dim/4",
    "odd head_dim": "D odd",
    "q of rank 4 alone": "q and k of rank 3, k shorter",
    "eight items": "B>8",
    "a tile of tokens": "L>99",
    "16-bit token numbers": "L>65536",
    "eps or the default": "eps=0, values=variance_eps",
    "NaN in the scale swallowed": "values=nonfinite",
    "a gate of 0 skips x": "values=nonfinite",
    "1 + scale out of float16": "values=large_modulation float16, float32",
    "half rounded up": "values=ties bfloat16, many",
    "one-pass variance past a block": "D>8192, rows apart, values=mean_offset float32",
    "one-pass variance of one token": "L=1, values=mean_offset float32",
    "float16 squares past a block": "D>8192, columns apart, values=near_max float16",
    "NaN of one row in all, many rows": "rows>65535, values=nonfinite",
    "bias of frames dropped": "shift and scale=[B,F,1,D], affine=bias",
    "shift by the scale's index": "shift and scale=indexed, affine=none, columns apart",
    "one frame a tile": "shift and scale=[B,F,1,D], affine=both, L>199",
    "one frame a tile, gate": "gate=[B,F,1,D], L>199, rows apart",
    "one index a tile": "gate: int32 index, many rows",
    "column stride of a gate, past a block": "D>8192, columns apart, values=near_max float16",
    "row stride of modulation, past 4096": "D=5120, rows apart, values=nonfinite",
    "column stride of a weight, past a block": "D=8193, columns apart, values=nonfinite",
    "index of the first block": "D=8193, indexed, values=near_max float16",
    "bias alone, past a block": "D=8193, indexed, values=near_max float16",
    "row stride of x, many rows": "rows>65535, rows apart, values=near_max float16",
    "k's weight of many rows": "rows>65535, columns apart, values=near_max float16",
    "head_dim past 128": "128<D<256",
    "angles of the first item, many tokens": "L>99",
    "rows of a chunk": "shift and scale=[B,D], rows apart",
    "columns of a frame's gate": "shift and scale and gate=[B,F,1,D], affine=none, columns apart",
    "rows of 40 heads": "H=40, rows apart, values=nonfinite",
    "six blocks of 1024": "D=6144",
    "seven blocks of 1024": "D=7168",
    "seven blocks of 512": "D=3584",
    "six blocks of 2048": "D=12288",
    "seven blocks of 2048": "D=14336",
    "an odd count of blocks past eight": "D=18432",
    "columns past 16384": "D=24576",
    "ten blocks of 1024": "D=10240",
    "18 blocks of 256": "D=4608",
    "the third of three blocks of 2048": "D=5376",
    "a fifth round of rows": "rows>512, D=1024",
    "the gate of a round before": "rows>512, D=1024",
    "scale and shift of a full pipeline": "rows>512, D=1024, rows apart",
    "the prefetched rows of a long loop": "rows>512, D=1024, rows apart",
    "an eighth in float16": "values=beyond_float16 bfloat16",
    "rows kept as float16": "values=beyond_float16 float32",
    "heads kept as float16": "values=beyond_float16 bfloat16",
    "rotated in float16": "values=beyond_float16 float32",
    "first item not modulated": "values=some_zero, [B,1,D]",
    "gate of a zero first frame": "values=some_zero, [B,F,1,D]",
    "items of a zero first token": "values=some_zero, [B,L,D]",
    "a chained gate of zero": "values=some_zero, [B,L,D]",
    "one row an item": "values=some_equal, [B,L,D]",
    "one row for two alike": "values=some_equal, [B,1,D]",
    "one frame for all": "values=some_equal, [B,F,1,D]",
    "padding taken out by a rounded mean": "D=5120, values=row_mean float16",
    "padding of rows without 16-byte loads": "D=4097, values=row_mean float32",
    "rstd off by 2^-20 past a block": "D=65536, values=exact float32",
    "variance over N-1 of many columns": "D=65536, values=exact float32",
    "one column of 65536": "D=65536, values=exact float32",
    "a table of 64 frames": "F>64",
    "heads of 16 bits, rotation": "H=33000, rows>441600, interleaved=False, rotary dims below head_dim",
    "heads of 16 bits, norm and rotation": "H=33000, rows>441600, interleaved=False, rotary dims below head_dim",
    "a grid of 65536 tiles": "H=33000, rows>441600, interleaved=False, rotary dims below head_dim",
    "a grid of 65536 tiles, split": "H=33000, rows>441600",
    "rows taken from the first 2^18": "H=33000, rows>441600",
}

# Other faults that a sweep comes to late, and a rare corner of the case that shows each.
SHOWN_LATE = {
    "order of the sum by batch": "same bits: batch slice",
    "one-pass variance of 2049 to 4096 channels": "D=3072, indexed, values=mean_offset float32",
    "grid for 65536 rows": "rows>65535",
    "NaN of many rows": "rows>65535, rows apart, values=nonfinite",
    "eps of many rows": "rows>65535",
    "16-bit item numbers": "B>65535",
    "16-bit row numbers": "rows>65535",
    "32-bit row offsets": "x: items past 2^31",
    "shift told by its address": "shift is scale",
    "a program's first item": "B>65535",
    "casting mode kept with the shape": "same bits: other flags",
    "output with x's strides": "x: stride 0",
    "residual told by its address": "residual is x",
    "eight where four are aligned": "x: rows apart, float16, 4",
    "eight frames": "F>8",
    "an index of a byte": "scale: int32 index, many rows",
    "eps in the default dtype": "same bits: other settings",
}


@pytest.mark.parametrize("name", CORNER_OF)
def test_the_first_case_of_a_corner_shows_the_fault_that_it_is_for(name: str) -> None:
    fault, device = KNOWN[name], select(gpu=False)
    signature = signature_of(fault.op)
    corner = next(c for c in corners.declared_corners(signature) if c.name == CORNER_OF[name])
    forced = shares(corner, QUICK, signature)[0][0]
    for case in draw_cases(strategies.cases(signature, forced), seed=7, count=3):
        record = judge_case(case, InProcess(fault.op_set(), device), (corner,))
        assert record.corners == [corner.name]
        assert record.status in fault.caught_by, record.reason


def test_bad_calls_taken_for_good_ones_are_faults_too() -> None:
    only_bad_input = {name for name in KNOWN if KNOWN[name].caught_by == {Status.BAD_INPUT_ACCEPTED}}
    by_bad_call = {
        "shift [L, D]": "[L, D] as one row a token",
        "weight of one element": "weight of one element",
        "x without a batch": "x without a batch",
        "scale.table one channel too wide": "table wider than x",
        "x in place: over cos": "rotated over its angles",
    }
    for call, name in by_bad_call.items():
        assert name in only_bad_input
        fault = KNOWN[name]
        (bad,) = (bad for bad in bad_calls(signature_of(fault.op)) if bad.name == call)
        assert InProcess(fault.op_set(), select(gpu=False)).not_refused(bad) == "accepted"


@pytest.mark.parametrize("name", INTERPRETED)
def test_a_planted_fault_is_caught_by_a_check_that_names_it(name: str) -> None:
    """In the order of a sweep all faults take 105 s; with cases first of a corner that shows the fault, 35 s."""
    corner = CORNER_OF.get(name) or SHOWN_LATE.get(name)
    first = () if corner is None else (corner,)
    record = matrix.judge(name, select(gpu=False), QUICK, 0, first_kill=True, first=first)
    assert record.status is Status.PASSED, record.message


def test_faults_are_looked_for_first_in_corners_that_there_are() -> None:
    for name, corner in SHOWN_LATE.items():
        assert corner in {c.name for c in Plan.of(KNOWN[name].op, select(gpu=False), QUICK, 0).corners}


def test_every_op_and_every_known_bug_has_faults() -> None:
    assert {KNOWN[name].op for name in KNOWN} == set(OPS)
    assert {name for names in BUGS.values() for name in names} <= set(KNOWN)
    assert len(KNOWN) >= 100


def assert_right(op: str, function: Any) -> None:
    """Judge every third case of a sweep, and the op's tier over them."""
    right, device = OpSet("right", {op: function}, "right"), select(gpu=False)
    planned = list(Plan.of(op, device, QUICK, 2).cases())[::3]
    records = [judge_case(p.case, InProcess(right, device)) for p in planned]
    records.append(summary(op, right, records, (), Tier.LOSSLESS, ""))
    assert [record.message for record in records if record.status.failed] == []
    assert len(records) > 40


@pytest.mark.parametrize("op", OPS)
def test_what_the_faults_are_made_from_is_right(op: str) -> None:
    assert_right(op, getattr(RightOps(), op))


def test_the_kernel_that_the_faults_are_made_from_is_right() -> None:
    assert_right("rms_norm", RightKernel().rms_norm)


def test_a_fault_is_an_op_set_of_the_command_line() -> None:
    ops = load_op_set("validation.faults:one plus dropped")
    assert set(ops.functions) == {"layer_norm_scale_shift"}
    with pytest.raises(UsageError, match="unknown fault"):
        load_op_set("validation.faults:no such fault")


@pytest.fixture
def no_faults() -> Iterator[None]:
    """Two more "faults": a correct op, and one whose bug no check is registered to catch."""
    fault("nothing wrong", "scale_shift", "there is none", Status.INCORRECT_NUMERICAL)(RightOps)
    fault("misnamed", "scale_shift", "the factor is scale instead of 1 + scale", Status.TIMEOUT)(
        KNOWN["one plus dropped"].ops
    )
    yield
    del FAULTS["nothing wrong"], FAULTS["misnamed"]


@pytest.mark.usefixtures("no_faults")
def test_a_fault_that_survives_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--fault", "nothing wrong", "--profile", "quick", "--out", str(tmp_path / "a")]) == FAILED
    out = capsys.readouterr().out
    assert "SURVIVED" in out
    assert "FAULT_SURVIVED" in out
    assert "--fault 'nothing wrong' --seed 0" in out
    assert "FAULT_SURVIVED" in (tmp_path / "a" / "report.html").read_text().replace("<wbr>", "")
    assert main(["faults", "--fault", "misnamed", "--profile", "quick", "--out", str(tmp_path / "b")]) == FAILED
    assert "FAULT_MISNAMED" in capsys.readouterr().out


def test_a_kill_matrix_is_printed_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--fault", "eps outside the root", "--seed", "4", "--seeds", "2", "--profile", "quick"]
    assert main(["faults", *arguments, "--out", str(tmp_path / "run")]) == PASSED
    out = capsys.readouterr().out
    assert re.search(r"eps outside the root +INCORRECT_NUMERICAL +\d/\d+ +2/2 ", out)
    assert "1 of 1 planted faults caught by a check that names them, with 2 seeds" in out
    _, records = read_run(tmp_path / "run")
    assert [record.case["seed"] for record in records] == [4, 5]
    columns = records[0].case["columns"]
    assert columns[-1] == "whole op"
    assert len(records[0].series["cases"]) == len(columns)
    html = (tmp_path / "run" / "report.html").read_text()
    assert "Planted faults" in html
    assert "1 / (sigma + eps)" in html


def test_the_matrix_of_one_seed_counts_every_case_by_check_and_regime() -> None:
    record = matrix.judge("quiet rows are zero", select(gpu=False), QUICK, 0, first_kill=False)
    cases, kills = record.series["cases"], record.series["INCORRECT_NUMERICAL"]
    regimes = dict(zip(record.case["columns"], zip(kills, cases, strict=True), strict=True))
    # With subnormal numbers the fault shows in every case that has elements, with normal ones hardly ever.
    planned = Plan.of("rms_norm", select(gpu=False), QUICK, 0).cases()
    tiny = [p.case.tensors["x"].shape for p in planned if p.case.values == "tiny"]
    assert regimes["tiny"] == (sum(0 not in shape for shape in tiny), len(tiny))
    assert regimes["normal"][0] < 0.1 * regimes["normal"][1]
    assert regimes["zero_modulation"] == (0, 0)
    assert all(failed <= count for failed, count in regimes.values())
    text = io.StringIO()
    print_matrix([record], file=text)
    assert "quiet rows are zero" in text.getvalue()
    made = section(Path(), [record])
    assert made is not None
    assert "quiet rows are zero" in made.body
    assert section(Path(), []) is None


def test_many_sweeps_are_shared_out_among_processes() -> None:
    names = [name for name in INTERPRETED if KNOWN[name].op == "qk_norm"][:4]
    records = list(matrix.kill_matrix(names, select(gpu=False), QUICK, range(2), left_out=["of a GPU"]))
    assert [record.case.get("fault") for record in records] == [None, *names, *names]
    assert [record.status for record in records] == [Status.PASSED] * 9
    assert "of a GPU" in records[0].reason


def test_what_only_the_cpu_shows_is_left_out_on_a_gpu() -> None:
    gpu = Device("a GPU", "cuda")
    here, left_out = matrix.selected((), ("scale_shift",), gpu)
    races = {"exchange without a barrier", "in place between programs"}  # a GPU shows them by luck alone
    assert set(left_out) == {"index out of range clamped", "rows read without a mask", *races}
    assert not set(here) & set(left_out)
    assert "32-bit row offsets" in matrix.selected((), (), gpu)[0]
    (record,) = matrix.kill_matrix((), gpu, QUICK, range(1), left_out=left_out)
    assert record.reason.startswith("4 faults show on other devices alone")
    with pytest.raises(UsageError, match="does not show on the device gpu, expected one of: compiled"):
        matrix.selected(left_out, (), gpu)


def test_as_many_processes_as_the_memory_of_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    gpu = Device("a GPU", "cuda")
    for free, processes in ((150 * 10**9, 3), (24 * 10**9, 1), (10**12, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, free))
        assert matrix._processes(gpu) == processes
    assert matrix._processes(Device("interpreter", "cpu")) == 16


def test_usage_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--fault", "no such fault"], "unknown fault 'no such fault'"),
        (
            ["--fault", "grid axis above 65535"],
            "does not show on the device interpreter, expected one of: compiled, gpu",
        ),
        (["--op", "no_such_op"], "unknown op"),
        (["--op", "layer_norm", "--fault", "k not rotated"], "no planted fault of layer_norm"),
        (["--seeds", "0"], "--seeds: 0, expected an integer >= 1"),
    ):
        assert main(["faults", *arguments]) == USAGE
        assert words in capsys.readouterr().err


# Bad input.


@pytest.mark.parametrize("ops", [reference_ops, fused_ops], ids=["reference_ops", "fused_ops"])
@pytest.mark.parametrize("op", OPS)
def test_our_ops_refuse_every_bad_call_and_take_the_good_one(op: str, ops: Any) -> None:
    device, op_set = select(gpu=False), load_op_set(ops.__name__)
    record = bad_input_record(op, InProcess(op_set, device))
    assert record.status is Status.PASSED, record.message
    assert judge_case(good_case(signature_of(op)), InProcess(op_set, device)).status is Status.PASSED


def test_bad_calls_cover_every_argument() -> None:
    for op in OPS:
        signature = signature_of(op)
        blamed = {name for bad in bad_calls(signature) for name in bad.arguments}
        assert blamed >= set(good_case(signature).tensors)
        assert {"eps", "casting_mode", "scale_constant"} & set(signature.names) <= blamed


def bad_input(rms_norm: Any) -> Record:
    return bad_input_record(
        "rms_norm", InProcess(OpSet("candidate", {"rms_norm": rms_norm}, "candidate"), select(gpu=False))
    )


def test_bad_input_that_is_not_refused_as_it_should_be_fails() -> None:
    def accepts(*_: Any, **__: Any) -> None:
        pass

    def names_nothing(*_: Any, **__: Any) -> Any:
        raise ValueError("bad input")

    def another_error(*_: Any, **__: Any) -> Any:
        raise RuntimeError("x or weight or eps or casting_mode")

    def writes_first(weight: Any = None, **__: Any) -> Any:
        if isinstance(weight, Tensor) and not weight.requires_grad and not weight.is_meta:
            weight.zero_()
        raise ValueError("x or weight or eps or casting_mode")

    for candidate, words in (
        (accepts, "accepted"),
        (names_nothing, "ValueError without the name of x"),
        (another_error, "RuntimeError, expected a TypeError"),
        (writes_first, "refused, but only after writing to memory: weight"),
    ):
        record = bad_input(candidate)
        assert record.status is Status.BAD_INPUT_ACCEPTED
        assert words in record.message
        assert record.numbers["not_refused"]


# Launches.


def test_an_op_of_ours_that_launches_nothing_is_a_silent_fallback() -> None:
    eager = OpSet("fused_ops", {"scale_shift": reference_ops.scale_shift}, "fused_ops")
    records = list(Sweep(InProcess(eager, select(gpu=False)), QUICK, 0, shrink=False).of_op("scale_shift"))
    assert records[-1].status is Status.SILENT_FALLBACK
    assert "launched no kernel" in records[-1].reason


# The sweep itself.


@pytest.mark.parametrize("op", ["layer_norm_scale_shift"])
def test_the_reference_against_itself_is_bit_exact(op: str) -> None:
    records = list(
        Sweep(InProcess(load_op_set("reference_ops"), select(gpu=False)), QUICK, 1, Tier.BIT_EXACT).of_op(op)
    )
    assert [record.message for record in records if record.status.failed] == []
    assert len(records) > 200


def test_a_tier_that_is_not_reached_fails() -> None:
    right = OpSet("right", {"layer_norm": RightOps().layer_norm}, "right")  # half the time of a kernel
    records = list(Sweep(InProcess(right, select(gpu=False)), QUICK, 0, Tier.BIT_EXACT).of_op("layer_norm"))
    assert records[-1].status is Status.BELOW_REQUIRED_TIER
    assert records[-1].tier == "lossless"


def test_a_corner_that_is_never_reached_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = corners.declared_corners

    def with_an_impossible_one(*args: object, **kwargs: object) -> tuple[corners.Corner, ...]:
        return (*declared(*args, **kwargs), corners.Corner("never", {}, lambda _: False))  # type: ignore[arg-type]

    monkeypatch.setattr(plan, "declared_corners", with_an_impossible_one)
    records = list(Sweep(InProcess(load_op_set("reference_ops"), select(gpu=False)), QUICK, 0).of_op("layer_norm"))
    assert records[-1].status is Status.CORNER_NOT_REACHED
    assert "never" in records[-1].reason


@pytest.mark.parametrize("op", [op for op in OPS if signature_of(op).modulations])
def test_the_first_case_of_a_corner_tells_its_rows_apart(op: str) -> None:
    signature = signature_of(op)
    for corner in corners.declared_corners(signature):
        forced = shares(corner, QUICK, signature)[0][0]
        (case,) = draw_cases(strategies.cases(signature, forced), seed=0, count=1)
        assert case.values == corner.forced.get("values", "normal"), corner.name
        for name in signature.modulations:
            if name in case.tensors and f"{name}.layout" not in corner.forced:
                spec = case.tensors[name]
                assert 0 not in [s for n, s in zip(spec.shape, spec.strides, strict=True) if n > 1], corner.name


def test_rounding_faults_leave_float32_alone() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KNOWN["rounded up"].ops().layer_norm(x), RightOps().layer_norm(x))
