"""Cases that are only too slow for the interpreter, and those that hang; op sets that are edited during a run."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from validation import cli
from validation.cases.case import Case, TensorSpec
from validation.cases.corners import all_rows
from validation.device import select
from validation.device.launches import Counts
from validation.errors import UsageError
from validation.executor import InProcess, Isolated, load
from validation.executor.watch import Progress, shared_counts
from validation.meta_tests.op_records import summary_of
from validation.ops import load_op_set
from validation.parity import profiles
from validation.parity.one_case import judge_case
from validation.parity.plan import LAST_ROWS, Plan
from validation.parity.sweep import Sweep
from validation.record import Level
from validation.report import summary
from validation.verdict import Status, Verdict

OP = "residual_gate_add"

# The width decides what it does: a row a program (4), a program that never ends (5), launches without end (6), an edit
# of its own file before it dies (7), of its neighbour's (8).
ROWS = """
import os
from pathlib import Path

import torch
import triton
import triton.language as tl

import {neighbour} as neighbour


@triton.jit
def one_row(r, x, g, y, D: tl.constexpr):
    at = tl.program_id(0) * D + tl.arange(0, D)
    tl.store(y + at, tl.load(r + at) + tl.load(x + at) * tl.load(g + at))


@triton.jit
def endless(y):
    tl.store(y, 0.0)
    while tl.load(y) < 1.0:
        tl.store(y, 0.0)


def residual_gate_add(residual, x, gate, *, casting_mode="float32"):
    y = torch.empty_like(x)
    rows = x.numel() // x.shape[-1]
    if x.shape[-1] == 5:
        endless[(1,)](y)
    while x.shape[-1] == 6:
        one_row[(3,)](residual, x, gate, y, 4)
    if x.shape[-1] in (7, 8):
        path = Path(__file__ if x.shape[-1] == 7 else neighbour.__file__)
        path.write_text(path.read_text() + "# edited")
        os._exit(1)
    if x.shape[-1] == 4:
        one_row[(rows,)](residual, x, gate, y, 4)
        return y
    return residual + x * gate
"""


def a_case(rows: int, width: int) -> Case:
    tensors = {
        name: TensorSpec((1, rows, width), "float32", (rows * width, width, 1), 0, name)
        for name in ("residual", "x", "gate")
    }
    return Case(OP, tensors, {"casting_mode": "float32"}, "normal", 7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # A name of its own: the test's process keeps what it has imported.
    neighbour = f"beside_{tmp_path.name}"
    (tmp_path / f"{neighbour}.py").write_text("")
    path = tmp_path / "rows.py"
    path.write_text(ROWS.replace("{neighbour}", neighbour))
    return path


@pytest.fixture
def executor(path: Path) -> Iterator[Isolated]:
    executor = load(str(path), select(gpu=False), limit=1.0)
    assert isinstance(executor, Isolated)
    yield executor
    executor.close()


def test_a_case_of_many_programs_is_not_run_and_costs_no_death(executor: Isolated) -> None:
    assert judge_case(a_case(3, 4), executor).status is Status.PASSED
    record = judge_case(a_case(40_000, 4), executor)
    assert record.status is Status.NOT_RUN
    assert not record.status.failed
    assert record.message == ""
    assert record.reason.startswith("not run on this device, too slow for the interpreter: ")
    assert " programs of 1 launches in " in record.reason
    assert executor.deaths == 0
    assert judge_case(a_case(3, 4), executor).status is Status.PASSED


def test_a_program_that_never_ends_is_a_timeout(executor: Isolated) -> None:
    record = judge_case(a_case(3, 5), executor)
    assert record.status is Status.TIMEOUT
    assert record.reason.startswith("did not return within 1 s of the last of 1 programs that it launched")
    assert executor.deaths == 1


def test_launches_without_end_are_a_timeout_and_no_slow_case(executor: Isolated) -> None:
    record = judge_case(a_case(3, 6), executor)
    assert record.status is Status.TIMEOUT
    assert "s and launches on and on: " in record.reason


def look(steps: list[tuple[float, float, bool]]) -> Callable[[Progress], tuple[float, float, bool]]:
    """Clock, processor time and whether it runs, one after another."""
    return lambda _: steps.pop(0)


@pytest.mark.parametrize(
    ("wall", "cpu", "running", "late"),
    [(500.0, 9.0, True, False), (20.0, 11.0, True, True), (11.0, 0.0, False, True), (9.0, 0.0, False, False)],
)
def test_what_a_process_waits_for_a_processor_does_not_count(
    wall: float, cpu: float, running: bool, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_look", look([(0.0, 0.0, True), (wall, cpu, running)]))
    _, counts = shared_counts()
    assert (Progress(0, counts, 10.0).overrun() is not None) is late


@pytest.mark.parametrize(
    ("programs", "launches", "seconds", "status"),
    [
        (5_000, 1, 14.0, None),  # each adds a millisecond to the ten seconds
        (5_000, 1, 16.0, Status.NOT_RUN),
        (90_000, 1, 29.0, None),
        (90_000, 1, 31.0, Status.NOT_RUN),  # three times the limit at most
        (90_000, 91, 31.0, Status.TIMEOUT),  # a thousand programs a launch at least
    ],
)
def test_the_limit_grows_with_the_programs(
    programs: int, launches: int, seconds: float, status: Status | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_look", look([(0.0, 0.0, True), (seconds, seconds, True)]))
    _, counts = shared_counts()
    progress = Progress(0, counts, 10.0)
    for _ in range(launches):
        counts.launch()
    for _ in range(programs):
        counts.program()
    overrun = progress.overrun()
    assert (None if overrun is None else overrun.status) is status


def test_counts_are_shared_and_begin_anew() -> None:
    descriptor, here = shared_counts()
    there = Counts(descriptor)
    there.launch()
    there.program()
    there.program()
    assert (here.launches, here.programs) == (1, 2)
    here.clear()
    assert (there.launches, there.programs) == (0, 0)


@dataclasses.dataclass(frozen=True)
class Slow(InProcess):
    """Too slow for more than 65,535 rows."""

    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        x = case.tensors["x"].shape
        if max(x[0], 1) * max(x[1], 1) > 65_535 and not grad:
            return Verdict(Status.NOT_RUN, "runs", "not run on this device")
        return super().judge(case, grad=grad)


def test_slow_cases_end_no_sweep_and_their_corners_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MAX_DEATHS", 1)
    executor = Slow(load_op_set("reference_ops"), select(gpu=False))
    records = list(Sweep(executor, profiles.PROFILES["quick"], 0).of_op("split_rotary_embedding"))
    slow = [record for record in records if record.status is Status.NOT_RUN]
    assert slow
    assert all(record.level is Level.OP for record in slow)
    whole = summary_of(records)
    assert whole.status is Status.PASSED
    assert whole.numbers["not_run"] == len(slow)
    only = set(slow[0].corners) - {c for r in records if r.status.judged for c in r.corners}
    assert only
    assert whole.numbers["corners_not_run"] >= len(only)  # type: ignore[operator]
    assert f"{len(slow)} of {whole.numbers['cases']} cases not run on this device" in whole.reason
    told = whole.reason.partition("; corners not reached on this device: ")[2].split(", ")
    assert only <= set(told)
    verdict, sentence = summary.headline(records)
    assert verdict == "PASSED"
    assert f"{len(slow)} of {whole.numbers['cases']} op cases not run on this device" in sentence
    (group,) = summary.not_passed(records)
    assert group.status is Status.NOT_RUN


@pytest.mark.parametrize("op", ["layer_norm", "split_rotary_embedding"])
def test_drawn_cases_of_many_rows_come_last(op: str) -> None:
    sweep = Plan.of(op, select(gpu=False), profiles.PROFILES["quick"], 0)
    planned = list(sweep.cases())
    assert len(planned) == sweep.count()
    many = [all_rows(p.case) > LAST_ROWS for p in planned if p.key]
    assert many == sorted(many)
    assert 1 < sum(many) < len(many) / 4
    # What failed before is still judged first.
    kept = [p for p in planned if not p.key]
    assert planned[: len(kept)] == kept


def test_an_op_set_of_slow_cases_alone_has_not_passed() -> None:
    executor = Slow(load_op_set("reference_ops"), select(gpu=False))
    always = dataclasses.replace(executor)
    object.__setattr__(always, "judge", lambda *_, **__: Verdict(Status.NOT_RUN, "runs", "not run on this device"))
    records = list(Sweep(always, profiles.PROFILES["quick"], 0).of_op("split_rotary_embedding"))
    assert {record.status for record in records} == {Status.NOT_RUN}
    assert cli.exit_status(record.status for record in records) == cli.FAILED
    assert summary.headline(records)[0] == "FAILED"


@pytest.mark.parametrize(("width", "edited"), [(7, "rows.py"), (8, "beside_.*.py")])
def test_a_new_process_loads_no_edited_op_set(width: int, edited: str, executor: Isolated) -> None:
    assert judge_case(a_case(3, width), executor).status is Status.CRASHED
    with pytest.raises(UsageError, match=rf"--ops: .*/{edited} was edited since the run began"):
        judge_case(a_case(3, 4), executor)


EDITS = """
import os


def split_rotary_embedding(x, cos, sin):
    with open(__file__, "a") as file:
        file.write("# edited")
    os._exit(1)
"""


def test_an_edit_during_a_run_is_one_line_and_the_run_unfinished(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(EDITS)
    assert cli.main(["parity", "--ops", "mine.py", "--profile", "quick", "--out", "run"]) == cli.USAGE
    err = capsys.readouterr().err
    assert "mine.py was edited since the run began" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "UNFINISHED" in (here / "run" / "report.html").read_text()
