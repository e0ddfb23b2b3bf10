"""The repeat line of a failure shows it again: alone, after the case before it, or with the whole sweep."""

import shlex
from pathlib import Path

import pytest

from validation import cli
from validation.device import select
from validation.executor import Executor, InProcess, load
from validation.faults import FAULTS
from validation.faults import load as load_faults
from validation.ops import OpSet
from validation.parity import shrink
from validation.parity.profiles import Profile
from validation.parity.sweep import Sweep
from validation.record import Level, Record, size_of

SHORT = Profile("short", 1, 20)

# Right but for what it keeps between calls.
STATEFUL = """
import reference_ops
calls, last = 0, None
def layer_norm(x, weight=None, bias=None, eps=1e-6):
    global calls, last
    before, last, calls = last, x.dtype, calls + bool(x.numel())
    y = reference_ops.layer_norm(x, weight, bias, eps)
    return y.neg() if x.numel() and {condition} else y
"""


def swept(executor: Executor, op: str) -> list[Record]:
    """The records of a sweep's failed cases, the smallest of a kind first, as reports show them."""
    records = list(Sweep(executor, SHORT, 0).of_op(op))
    return sorted((r for r in records if r.level is Level.OP and r.status.failed), key=size_of)


@pytest.fixture
def little_shrinking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrink, "SHRINK_SECONDS", 1.0)


def status_of(repro: str) -> int:
    return cli.main(shlex.split(repro)[1:])


@pytest.mark.parametrize(
    "name",
    [
        "one buffer for all results",
        "casting mode kept with the shape",
        "scale cached by address",
        "order of the sum at random",
        "order of the sum by batch",
    ],
)
@pytest.mark.usefixtures("little_shrinking")
def test_the_repeat_line_of_a_stateful_fault_fails(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load_faults()
    executor = InProcess(FAULTS[name].op_set(), select(gpu=False))
    failed = swept(executor, FAULTS[name].op)
    shown = {record.status: record for record in reversed(failed)}
    assert shown
    for record in shown.values():
        assert f"repeat: {record.repro}" in record.message
        if "validate parity" in record.repro:  # not of this sweep's profile, which has no name
            assert "passes" in record.message
        else:
            assert status_of(record.repro) == cli.FAILED, record.message
    capsys.readouterr()


def failures_where(folder: Path, condition: str) -> list[Record]:
    """`swept` of a stateful ``layer_norm`` that is wrong where a condition holds."""
    path = folder / "stateful.py"
    path.write_text(STATEFUL.format(condition=condition))
    executor = load(str(path), select(gpu=False))
    failed = swept(executor, "layer_norm")
    executor.close()
    return failed


@pytest.mark.usefixtures("little_shrinking")
def test_where_the_call_before_matters_the_repeat_line_has_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each case makes one call or two of one dtype, so that a case never fails by itself.
    failed = failures_where(tmp_path, "before not in (None, x.dtype)")
    pairs = [record for record in failed if record.repro.count('"op": "layer_norm"') == 2]
    assert pairs, failed[0].message
    assert failed[0] in pairs or "validate parity" in failed[0].repro, failed[0].message
    assert "alone, in a new process, it passes; after the case before it, it is " in pairs[0].message
    assert status_of(pairs[0].repro) == cli.FAILED
    capsys.readouterr()


@pytest.mark.usefixtures("little_shrinking")
def test_where_many_calls_matter_the_repeat_line_is_the_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of 200 calls. Each failure that is smaller than those before is tried in two processes, here and again below.
    failed = failures_where(tmp_path, "calls > 170")
    assert len(failed) > 5
    assert all("validate parity --op layer_norm" in r.repro and "--seed 0" in r.repro for r in failed)
    assert "alone, in a new process, it passes, and after the case before it too" in "".join(r.message for r in failed)
    assert "not tried alone: another case of this sweep" in "".join(r.message for r in failed)
    out = tmp_path / "run"
    assert status_of(f"{failed[0].repro} --profile quick --out {out}") == cli.FAILED
    capsys.readouterr()


@pytest.mark.usefixtures("little_shrinking")
def test_what_fails_alone_keeps_its_line(tmp_path: Path) -> None:
    failed = failures_where(tmp_path, "True")
    assert all(record.repro.startswith("validate repro '{") for record in failed)
    assert not any("alone, in a new process" in record.message for record in failed)
    assert all(record.repro.count('"op": "layer_norm"') == 1 for record in failed)


def test_an_op_set_made_in_memory_is_not_tried() -> None:
    import reference_ops

    ops = OpSet("in memory", {"layer_norm": lambda x, *_, **__: reference_ops.layer_norm(x).neg()}, "")
    record = next(r for r in Sweep(InProcess(ops, select(gpu=False)), SHORT, 0).of_op("layer_norm") if r.status.failed)
    assert "alone, in a new process" not in record.message
