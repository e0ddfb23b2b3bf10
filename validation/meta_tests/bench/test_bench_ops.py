"""The harness of ``validate bench ops`` on the CPU, at toy sizes: byte counts, rotation, turns and output.

No test looks at how long anything took.
"""

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_ops
import reference_ops
from reference_ops import IndexedRows
from validation import cli
from validation.bench import ops, ops_results, selection
from validation.bench.extra_workloads import GROUP, WIDTHS, extra_workloads
from validation.bench.ops_results import ARMS, COPY, NORM_ALONE, OURS, Row, Times
from validation.bench.picture import share_of_roof
from validation.bench.selection import compact
from validation.bench.timing import CallTime, CpuTimer, random_pair
from validation.bench.traffic import Traffic, argument_sets, traffic
from validation.cases.case import Case, TensorSpec
from validation.cases.workloads import Workload
from validation.compiled import aot
from validation.compiled.kernel import REGISTER_LIMIT
from validation.errors import UsageError
from validation.parity.workloads import workloads

WORKLOADS = selection.chosen()
FIRST = {op: (*workloads(op), *extra_workloads(op))[0] for op in reference_ops.OP_NAMES}


def spec(*shape: int, dtype: str = "float32", strides: tuple[int, ...] | None = None, storage: str = "x") -> TensorSpec:
    contiguous = tuple(torch.empty(shape, device="meta").stride())
    return TensorSpec(shape, dtype, contiguous if strides is None else strides, 0, storage)


# The byte model


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("layer_norm", {"x": spec(3, 5, dtype="bfloat16")}, {}, "normal", 0), Traffic(30, 30)),
        (
            Case("scale_shift", {"x": spec(1, 3, 5), "shift": spec(1, 3, 5, strides=(0, 0, 1))}, {}, "normal", 0),
            Traffic(60 + 20, 60),
        ),
        (
            Case(
                "residual_gate_add", {"x": spec(2, 3, 5), "gate": spec(2, 3, 5, strides=(90, 30, 1))}, {}, "normal", 0
            ),
            Traffic(2 * 120, 120),
        ),
        (
            Case(
                "scale_residual_layer_norm_scale_shift",
                {"residual": spec(2, 3, 5, storage="r"), "x": spec(2, 3, 5), "gate": spec(5, storage="g")},
                {},
                "normal",
                0,
            ),
            Traffic(2 * 120 + 20, 2 * 120),
        ),
        (
            Case("qk_norm", {"q": spec(4, 8), "k": spec(2, 8)}, {"inplace": True}, "normal", 0),
            Traffic(6 * 32, 6 * 32),
        ),
        (Case("layer_norm", {"x": spec(0, 5)}, {}, "normal", 0), Traffic(0, 0)),
    ],
    ids=["contiguous", "expanded", "holes", "two outputs", "in place", "empty"],
)
def test_bytes_are_counted_once(case: Case, expected: Traffic) -> None:
    assert traffic(case) == expected
    assert traffic(case).total == expected.read + expected.written


def addresses(t: Tensor) -> Tensor:
    """The address of each byte of each element."""
    offsets = torch.tensor(t.storage_offset())
    for size, stride in zip(t.shape, t.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + stride * torch.arange(size)
    elements = t.untyped_storage().data_ptr() + t.element_size() * offsets.flatten()
    return (elements.unsqueeze(-1) + torch.arange(t.element_size())).flatten()


def tensors_of(arguments: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in arguments.values():
        found += [*value] if isinstance(value, IndexedRows) else [value] if isinstance(value, Tensor) else []
    return found


@pytest.mark.parametrize(
    "workload", [w for w in WORKLOADS if "96x160" in w.name or w.model != "helios"], ids=lambda w: f"{w.op} {w.name}"
)
def test_the_model_counts_what_the_tensors_of_a_call_hold(workload: Workload) -> None:
    case = workload.make(False)
    (arguments,) = argument_sets(case, "cpu", 1)
    read = len(torch.cat([addresses(t) for t in tensors_of(arguments)]).unique())  # type: ignore[no-untyped-call]
    result = getattr(reference_ops, workload.op)(**arguments)
    outputs = [result] if isinstance(result, Tensor) else [*result]
    assert traffic(case) == Traffic(read, sum(t.numel() * t.element_size() for t in outputs))


def test_full_size_is_the_models_own() -> None:
    """1.36 GB of float32 modulation per block, of which norm1 needs shift and scale; compact: two rows and an index."""
    norm1 = FIRST["layer_norm_scale_shift"]
    assert norm1.name == "helios norm1, norm3 384x640, modulation [B,L,6,D]"
    row = 11040 * 5120
    assert traffic(norm1.make(True)) == Traffic(2 * row + 2 * 4 * row, 2 * row)
    two_rows = compact(norm1)
    assert two_rows is not None
    assert traffic(two_rows.make(True)) == Traffic(2 * row + 2 * 2 * 4 * 5120 + 4 * 11040, 2 * row)


# Workloads and their arguments


def test_compact_workloads_are_the_sites_with_modulation_of_every_token() -> None:
    names = {w.name for w in WORKLOADS if "compact" in w.site}
    stages = ("384x640", "pyramid 192x320", "pyramid 96x160")
    sites = ("norm1, norm3", "norm_out", "gate")
    assert names == {f"helios {site} {stage}, compact modulation" for site in sites for stage in stages}


@pytest.mark.parametrize(
    "workload", [w for w in WORKLOADS if "compact" in w.site and "96x160" in w.site], ids=lambda w: w.name
)
def test_compact_workloads_run_and_read_both_rows(workload: Workload) -> None:
    (arguments,) = argument_sets(workload.make(False), "cpu", 1)
    for value in arguments.values():
        if isinstance(value, IndexedRows):
            assert value.table.shape[:2] == (1, 2)
            assert set(value.index.flatten().tolist()) == {0, 1}
            assert value.index.dtype is torch.int32
    reference = getattr(reference_ops, workload.op)(**arguments)
    assert (getattr(fused_ops, workload.op)(**arguments) - reference).abs().max() <= 2**-6 * reference.abs().max()


def test_argument_sets_lie_apart_and_are_finite() -> None:
    for workload in FIRST.values():
        sets = argument_sets(workload.make(False), "cpu", 3)
        places = [{t.untyped_storage().data_ptr() for t in tensors_of(arguments)} for arguments in sets]
        assert not places[0] & places[1] | places[1] & places[2] | places[0] & places[2]
        assert all(t.isfinite().all() for t in tensors_of(sets[0]))
    (packed,) = argument_sets(workloads("qk_norm")[0].make(False), "cpu", 1)
    assert packed["q"].untyped_storage().data_ptr() == packed["k"].untyped_storage().data_ptr()


def test_values_outlast_many_calls_in_place() -> None:
    for workload in (w for w in WORKLOADS if w.make(False).flags.get("inplace")):
        (arguments,) = argument_sets(workload.make(False), "cpu", 1)
        for _ in range(100):
            reference_ops.qk_norm(**arguments)
        assert 0.9 < arguments["q"].float().std() < 1.1, workload.name
        assert arguments["q"].float().abs().median() > 0.4, workload.name


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="unknown op 'odd'"):
        selection.chosen(["odd"])
    with pytest.raises(UsageError, match="unknown model 'odd', expected one of: helios, hunyuan3d, shapes"):
        selection.chosen(models=["odd"])
    with pytest.raises(UsageError, match="scale_shift is at no site of helios or hunyuan3d"):
        selection.chosen(["scale_shift"], ["helios", "hunyuan3d"])
    with pytest.raises(UsageError, match="unknown arm 'odd', expected some of: fused_ops, reference_ops"):
        ops.chosen_arms(["odd"])
    with pytest.raises(UsageError, match="qk_norm is at no site of helios"):
        selection.chosen(["qk_norm"], ["helios"])
    assert {w.op for w in selection.chosen(["qk_norm", "rms_norm"])} == {"qk_norm", "rms_norm"}
    assert ops.chosen_arms(["liger"]) == (OURS, "liger")
    assert {w.op for w in WORKLOADS if w.model != GROUP} | {*selection.without_workload()} == set(
        reference_ops.OP_NAMES
    )


def test_every_op_and_every_width_with_a_goal_has_a_workload() -> None:
    """Float32 modulation of every token included; heads of 64 and of 128."""
    assert {w.op for w in WORKLOADS} == set(reference_ops.OP_NAMES)
    made = [(w.op, w.make(True).tensors) for w in WORKLOADS]
    for op in reference_ops.OP_NAMES:
        tensors = [tensors for name, tensors in made if name == op]
        widths = {of["x" if "x" in of else "q"].shape[-1] for of in tensors}
        assert widths & {64, 128, 3072} or op == "split_rotary_embedding"
        modulated = [of["gate" if "gate" in of else "shift"] for of in tensors if {"gate", "shift"} & set(of)]
        if modulated:
            strided = {m.shape[-1] for m in modulated if m.dtype == "float32" and m.strides[1] > m.shape[-1]}
            assert strided == set(WIDTHS), op


# Timing


class Watch(CpuTimer):
    """A `CpuTimer` that records the calls that it is given, in order."""

    def __init__(self, cache_bytes: int = 0) -> None:
        self.cache_bytes = cache_bytes
        self.order: list[Callable[[], object]] = []

    def sample(self, call: Callable[[], object], calls: int) -> CallTime:
        self.order.append(call)
        return super().sample(call, calls)


@pytest.mark.parametrize("op", FIRST)
def test_every_op_is_timed_beside_the_others(op: str) -> None:
    arms = [name for name in ARMS if name != "torch.compile"]
    (row,) = ops.run([FIRST[op]], CpuTimer(), whole=False, names=arms, rounds=2, calls=1)
    assert {OURS, "reference_ops", "torch_native", COPY} <= set(row.arms)
    assert set(row.arms) | set(row.left_out) == {*arms, COPY}
    assert (NORM_ALONE in row.arms) == ("norm" in op)
    for timed in row.arms.values():
        assert len(timed.samples) == 2
        assert timed.device > 0
    assert row.sets == 2
    assert row.traffic == traffic(FIRST[op].make(False))


def test_torch_compile_of_the_reference_is_an_arm() -> None:
    # Inductor else starts processes to compile in. (Scalar code would take less time, but inductor keeps the choice.)
    import torch._inductor

    with torch._inductor.config.patch(compile_threads=1):
        row = ops.time_workload(
            FIRST["rms_norm"], CpuTimer(), whole=False, names=["torch.compile", OURS], rounds=1, calls=1
        )
    assert set(row.arms) == {"torch.compile", OURS, COPY}


def test_arms_take_turns_there_and_back() -> None:
    timer = Watch()
    ops.time_workload(FIRST["rms_norm"], timer, whole=False, names=[OURS, "reference_ops"], rounds=4, calls=1)
    warm_up, timed = timer.order[:2], timer.order[2:]
    first, second, third = timed[:3]
    assert {first, second, third} >= set(warm_up)
    assert timed == [first, second, third, third, second, first] * 2


def test_arguments_rotate_past_the_cache_and_so_do_results() -> None:
    workload = FIRST["rms_norm"]
    moved = traffic(workload.make(False)).total
    for cache in (0, moved // 3, 5 * moved):
        row = ops.time_workload(workload, Watch(cache), whole=False, names=["reference_ops"], rounds=1, calls=1)
        assert (row.sets - 1) * moved >= 2 * cache
        assert row.sets >= 2
    seen: list[int] = []
    made: list[int] = []

    def op(x: Tensor, **_: Any) -> Tensor:
        y = x.clone()
        seen.append(x.data_ptr())
        made.append(y.data_ptr())
        return y

    sets = [{"x": torch.zeros(1 << 16)} for _ in range(3)]
    call = ops._rotating(op, itertools.cycle(sets), 3)
    for _ in range(9):
        call()
    assert seen[:3] == [arguments["x"].data_ptr() for arguments in sets]
    assert seen == seen[:3] * 3
    assert all(len({*made[n : n + 3]}) == 3 for n in range(7))


def test_no_set_comes_back_early_where_a_sample_ends_or_another_arm_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer calls in a sample than sets, a sample that begins with the first set would find it in the cache."""
    seen: list[int] = []

    def op(x: Tensor, **_: Any) -> Tensor:
        seen.append(x.data_ptr())
        return x.clone()

    for module in (fused_ops, reference_ops):
        monkeypatch.setattr(module, "rms_norm", op)
    workload = FIRST["rms_norm"]
    watch = Watch(2 * traffic(workload.make(False)).total)
    names = [OURS, "reference_ops"]
    row = ops.time_workload(workload, watch, whole=False, names=names, rounds=3, calls=2)
    assert row.sets == 5
    assert len(seen) == 2 * (2 * row.sets + 2) + 3 * 2 * 2
    assert all(len({*seen[n : n + row.sets]}) == row.sets for n in range(len(seen) - row.sets + 1))


def test_the_copy_moves_as_many_bytes_and_no_zeros() -> None:
    source, target = random_pair(1000, "cpu")
    assert len({*source.tolist()}) > 990
    assert source.numel() * source.element_size() == 8000
    ops._copy(16_000, "cpu", 2)()
    assert target.shape == source.shape


def fail(**_: Any) -> None:
    raise ValueError("planted\nsecond line")


def test_what_others_cannot_do_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    from validation.adapters import torch_native

    monkeypatch.setattr(torch_native, "rotary_embedding", fail)
    names = [OURS, "torch_native", "liger", NORM_ALONE]
    row = ops.time_workload(FIRST["rotary_embedding"], CpuTimer(), whole=False, names=names, rounds=1, calls=1)
    assert set(row.arms) == {OURS, COPY}
    assert row.left_out["torch_native"] == "ValueError: planted"
    assert row.left_out["liger"].startswith(("CannotExpress: ", "UsageError: "))
    assert row.left_out[NORM_ALONE] == "CannotExpress: there is no norm in it"
    assert "torch_native: ValueError: planted" in ops_results.table([row])


class Failing(CpuTimer):
    """Fails for one call, from one sample on."""

    def __init__(self, arm: int, after: int, error: Exception) -> None:
        self.arm, self.after, self.error = arm, after, error
        self.seen: list[Callable[[], object]] = []
        self.count = 0

    def sample(self, call: Callable[[], object], calls: int) -> CallTime:
        self.seen += [] if call in self.seen else [call]
        if self.seen.index(call) == self.arm:
            self.count += 1
            if self.count > self.after:
                raise self.error
        return super().sample(call, calls)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_arm_that_runs_out_of_memory_is_left_out(after: int) -> None:
    """While it warms up, in the first round, and in the second."""
    timer = Failing(1, after, torch.OutOfMemoryError("3 GB\nsecond line"))
    names = [OURS, "reference_ops", "torch_native"]
    row = ops.time_workload(FIRST["rms_norm"], timer, whole=False, names=names, rounds=3, calls=1)
    assert {name: len(timed.samples) for name, timed in row.arms.items()} == {
        OURS: 3,
        "torch_native": 3,
        COPY: 3,
    }
    assert row.left_out == {"reference_ops": "OutOfMemoryError: 3 GB"}
    assert "reference_ops: OutOfMemoryError: 3 GB" in ops_results.table([row])
    assert not row.failed
    with pytest.raises(torch.OutOfMemoryError):
        ops.time_workload(FIRST["rms_norm"], Failing(1, 0, timer.error), whole=False, names=[OURS], rounds=1, calls=1)


def test_a_workload_whose_arguments_do_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("3 GB")

    monkeypatch.setattr(ops, "argument_sets", full)
    (row,) = ops.run([FIRST["rms_norm"]], CpuTimer(), whole=False, names=[OURS], rounds=1, calls=1)
    assert row.shortfalls == ["not timed: its arguments: OutOfMemoryError: 3 GB"]
    assert not row.failed
    assert "its arguments: OutOfMemoryError: 3 GB" in ops_results.table([row])
    ops_results.write([row], ops_results.about(CpuTimer(), "a device"), tmp_path, "now")


def test_an_op_of_ours_that_fails_is_a_failure_and_the_rest_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_ops, "rms_norm", fail)
    names = [OURS, "reference_ops"]
    found = [FIRST["rms_norm"], FIRST["layer_norm"]]
    failed, other = ops.run(found, CpuTimer(), whole=False, names=names, rounds=1, calls=1)
    assert set(failed.arms) == {"reference_ops", COPY}
    assert set(other.arms) == {*names, COPY}
    assert (failed.failed, other.failed) == (True, False)
    assert failed.shortfalls == ["not timed: ValueError: planted"]
    assert "rms_norm, helios qk_norm 384x640: not timed: ValueError: planted" in ops_results.table([failed, other])


# Output


def row_of(op: str, device: dict[str, float], host: float = 5e-6) -> Row:
    """A row with each device time, in microseconds, twice; the copy takes 90."""
    arms = {name: Times([CallTime(t * 1e-6, host)] * 2) for name, t in (device | {COPY: 90}).items()}
    case = FIRST[op].make(False)
    shape = case.tensors["x" if "x" in case.tensors else "q"].shape
    return Row(FIRST[op], shape, case.dtype, traffic(case), 2, arms, {})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (row_of("rms_norm", {OURS: 99, "reference_ops": 400, NORM_ALONE: 101}), []),
        (row_of("rms_norm", {OURS: 101}), ["89% of the copy, aimed at 90%"]),
        (row_of("qk_norm", {OURS: 112}), []),
        (row_of("qk_norm", {OURS: 114}), ["79% of the copy, aimed at 80%"]),
        (row_of("rms_norm", {OURS: 95}, host=16e-6), ["16.0 us of host time, aimed at 15"]),
        (row_of("rms_norm", {OURS: 96, "liger": 80}), ["1.20 x the time of liger (1.20 to 1.20)"]),
        (
            row_of("rms_norm", {OURS: 96, NORM_ALONE: 80}),
            ["1.20 x the time of torch norm alone (1.20 to 1.20)"],
        ),
        (row_of("layer_norm_scale_shift", {OURS: 96, NORM_ALONE: 80}), []),
    ],
)
def test_shortfalls_are_named(row: Row, expected: list[str]) -> None:
    assert row.shortfalls == expected
    text = ops_results.table([row])
    assert ("Every goal is met." in text) == (not expected)
    assert all(what in text for what in expected)


def test_a_time_stands_beside_its_bound_and_must_not_be_below_it() -> None:
    row = dataclasses.replace(row_of("rms_norm", {OURS: 96}), bound=(80e-6, "DRAM"))
    assert row.shortfalls == []
    lines = ops_results.table([row]).splitlines()
    assert "1.20 DRAM" in next(line for line in lines if row.workload.name in line)
    row.bound = (100e-6, "latency")  # an estimate
    assert row.shortfalls == []
    row.bound = (100e-6, "issue")
    assert row.shortfalls == ["96.0 us, below the bound of 100.0 by issue"]
    kept = json.loads(json.dumps(row.to_dict()))
    assert Row.from_dict(kept, row.workload).bound == row.bound


def test_an_op_that_was_not_timed_falls_short() -> None:
    row = row_of("rms_norm", {"reference_ops": 400})
    row.left_out[OURS] = "OutOfMemoryError: 3 GB"
    assert row.shortfalls == ["not timed: OutOfMemoryError: 3 GB"]
    assert "not timed" in ops_results.table([row])
    assert "ratio_to_fused" not in row.to_dict()["arms"]["reference_ops"]


def test_ratios_are_taken_within_a_round() -> None:
    row = row_of("rms_norm", {OURS: 100, "liger": 200})
    row.arms[OURS].samples = [CallTime(1e-4, 0), CallTime(4e-4, 0)]
    row.arms["liger"].samples = [CallTime(2e-4, 0), CallTime(8e-4, 0)]
    assert row.arms["liger"].ratio_to(row.arms[OURS]) == pytest.approx((2, 2, 2))


def test_results_are_written_with_their_environment(tmp_path: Path) -> None:
    found = [FIRST["rms_norm"], FIRST["qk_norm"]]
    rows = list(ops.run(found, CpuTimer(), whole=False, names=[OURS, "reference_ops"], rounds=1, calls=1))
    where = ops_results.about(CpuTimer(), "<a device & its name>")
    path, picture = ops_results.write(rows, where, tmp_path / "made", "now")
    data = json.loads(path.read_text())
    assert data["environment"]["device"] == "<a device & its name>"
    assert "no measurement" in data["measures"]
    assert data["ops_without_workload"] == selection.without_workload()
    for row, kept in zip(rows, data["rows"], strict=True):
        assert kept["op"] == row.workload.op
        assert kept["bytes_read"] == row.traffic.read
        arm = kept["arms"][OURS]
        assert arm["bytes_per_second"] == pytest.approx(row.traffic.total / arm["median_device_seconds"])
        assert arm["share_of_copy"] == pytest.approx(
            kept["arms"][COPY]["median_device_seconds"] / arm["median_device_seconds"]
        )
    assert "&lt;a device &amp; its name&gt;" in picture.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        ops_results.write(rows, where, tmp_path / "file", "now")


def test_parts_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of two calls of the command form one table; of a workload that was timed twice it has the later row."""
    parts = []
    for n, device in enumerate(({OURS: 99.0}, {OURS: 120.0, "liger": 80.0})):
        rows = [row_of(op, device) for op in (("rms_norm", "scale_shift"), ("rms_norm",))[n]]
        parts.append(ops_results.write(rows, ops_results.about(CpuTimer(), "a device"), tmp_path, f"part{n}")[0])
    assert cli.main(["bench", "ops", "--merge", *map(str, parts), "--out", str(tmp_path / "merged")]) == cli.PASSED
    out = capsys.readouterr().out
    assert "Short of the goals at 1 of 2 workloads:" in out
    assert "rms_norm, helios qk_norm 384x640: 1.50 x the time of liger" in out
    assert "91" in next(line for line in out.splitlines() if line.startswith("  shapes width")).split()
    (path,) = (tmp_path / "merged").glob("*.json")
    found, where = ops_results.read([path])
    assert [row.to_dict() for row in found] == [row.to_dict() for row in (rows[0], row_of("scale_shift", {OURS: 99}))]
    assert where["environment"]["device"] == "a device"
    rows[0].left_out[OURS] = "ValueError: planted"
    del rows[0].arms[OURS]
    broken = ops_results.write(rows, ops_results.about(CpuTimer(), "a device"), tmp_path, "broken")[0]
    assert cli.main(["bench", "ops", "--merge", str(broken), "--out", str(tmp_path / "merged")]) == cli.FAILED
    elsewhere = ops_results.write(found, ops_results.about(CpuTimer(), "another"), tmp_path, "elsewhere")[0]
    for paths, says in (([path, elsewhere], "another device"), ([tmp_path / "none"], "FileNotFoundError")):
        with pytest.raises(UsageError, match=says):
            ops_results.read(paths)


def test_the_picture_shows_every_arm_and_the_goal() -> None:
    bars = [
        ("rms_norm", "a <site>", {"reference_ops": 0.2, "fused_ops": 0.95, "liger": 3.0}, 0.9),
        ("rms_norm", "another", {"fused_ops": 0.5}, 0.8),
    ]
    root = ET.fromstring(share_of_roof(bars, OURS, "now"))
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in root.iter(f"{space}title")]
    assert titles == ["fused_ops: 95%", "reference_ops: 20%", "liger: 300%", "fused_ops: 50%"]
    shown = [float(rect.attrib["width"]) for rect in root.iter(f"{space}rect") if list(rect)]
    assert shown[0] / shown[1] == pytest.approx(0.95 / 0.5, rel=1e-2)
    width = float(root.attrib["width"])
    assert all(float(circle.attrib["cx"]) < width for circle in root.iter(f"{space}circle"))
    goals = [line for line in root.iter(f"{space}line") if line.attrib["class"] == "goal"]
    assert len(goals) == 1 + len(bars)


# The command


def test_without_a_gpu_nothing_is_timed_and_that_is_said() -> None:
    lines = ops_results.without_gpu(selection.chosen(["qk_norm"], ["hunyuan3d"])).splitlines()
    assert lines[-1] == "Nothing is timed: timings need a GPU (validate bench ops --gpu)."
    single = next(line for line in lines if "qk_norm single, packed" in line)
    assert single.split()[-4:] == ["float16", "36.39", "36.39", "72.78"]
    made = lines[lines.index("Compiled ahead of time for sm_90:") :]
    header, *kernels = [line for line in made if line.startswith("  ")]
    assert header.split()[-6:] == ["registers", "local", "B", "shared", "B", "warps"]
    assert len(kernels) == len(selection.chosen(["qk_norm"], ["hunyuan3d"])) == 6
    for line in kernels:
        assert "8 x 128 bits  4 x 128 bits" in line
        assert line.split()[-3] == "0"


def test_kernels_at_every_width_with_a_goal_use_128_bits_and_no_local_memory() -> None:
    """Also with strided float32 modulation; except for cos and sin of which every second element is read."""
    found = selection.chosen(models=[GROUP])
    for workload, kernel in zip(found, aot.compile_cases("sm_90", [w.make(True) for w in found]), strict=True):
        strided = workload.op in ("rotary_embedding", "qk_norm_rope")
        assert set(kernel.load_bits) == ({128, 32} if strided else {128}), workload
        assert set(kernel.store_bits) == {128}, workload
        assert kernel.local_bytes == 0, workload
        assert kernel.registers <= REGISTER_LIMIT, workload
        assert not kernel.flushes_subnormals, workload
    assert {w.make(True).tensors["x"].shape[-1] for w in found if "float32" in w.site} == set(WIDTHS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--gpu", "sees no usable GPU"),
        ("--op odd", "unknown op 'odd'"),
        ("--model odd", "unknown model 'odd'"),
        ("--rounds 0", "expected an integer >= 1"),
        ("--arm odd", "unknown arm 'odd'"),
        ("--merge nowhere.json", "--merge: nowhere.json: FileNotFoundError"),
    ],
)
def test_bad_input_is_one_line(arguments: str, says: str, refused: Callable[[list[str], str], None]) -> None:
    refused(["bench", "ops", *arguments.split()], says)


def test_rows_keep_their_fields_in_json() -> None:
    row = row_of("rms_norm", {OURS: 100})
    kept = row.to_dict()
    assert set(kept) >= {field.name for field in dataclasses.fields(row)} - {"workload", "traffic", "sets"}
    json.dumps(kept, allow_nan=False)
