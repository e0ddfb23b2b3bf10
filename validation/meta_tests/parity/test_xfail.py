"""The xfail file: expected failures, entries that match nothing, and lines that are not entries."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from validation import cli
from validation.cases.case import Case
from validation.device import select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.ops import OpSet, reference_op
from validation.parity.profiles import PROFILES
from validation.parity.sweep import Sweep
from validation.parity.xfail import XFail
from validation.record import Level, read_run
from validation.verdict import Status, Verdict

WRONG_OPS = '''
import reference_ops

def layer_norm(x, weight=None, bias=None, eps=1e-6):
    """Right but in bfloat16."""
    y = reference_ops.layer_norm(x, weight, bias, eps)
    return y * 1.5 if str(x.dtype) == "torch.bfloat16" else y
'''


def _wrong_in_bfloat16(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-6) -> Tensor:
    y: Tensor = reference_op("layer_norm")(x, weight, bias, eps)
    return y * 1.5 if x.dtype is torch.bfloat16 else y


class Remembers(InProcess):
    """Judges each case once for all tests: they differ in what is expected of its verdict."""

    verdicts: ClassVar[dict[tuple[str, bool], Verdict]] = {}

    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        key = (case.to_json(), grad)
        if key not in self.verdicts:
            self.verdicts[key] = super().judge(case, grad=grad)
        return self.verdicts[key]


OPS = OpSet("mine", {"layer_norm": _wrong_in_bfloat16, "rms_norm": reference_op("rms_norm")}, "mine.py")


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], XFail]:
    def read(text: str) -> XFail:
        path = tmp_path / "xfail.txt"
        path.write_text(text)
        return XFail.read(path)

    return read


def _statuses(xfail: XFail, op: str = "layer_norm") -> set[Status]:
    quick = PROFILES["quick"]
    return {record.status for record in Sweep(Remembers(OPS, select(gpu=False)), quick, 0, xfail=xfail).of_op(op)}


def test_without_a_file_the_failure_fails() -> None:
    assert Status.INCORRECT_NUMERICAL in _statuses(XFail())


@pytest.mark.parametrize(
    "entry",
    ["layer_norm", "layer_norm:INCORRECT_NUMERICAL:bfloat16", "layer_norm:dtype=bfloat16", "layer_norm:bfloat16"],
)
def test_a_failure_that_an_entry_matches_is_expected(read: Callable[[str], XFail], entry: str) -> None:
    statuses = _statuses(read(f"# ours\n\n{entry}  # issue 12\n"))
    assert Status.XFAILED in statuses
    assert not any(status.failed for status in statuses)


def test_an_entry_covers_no_other_failure(read: Callable[[str], XFail]) -> None:
    statuses = _statuses(read("layer_norm:INCORRECT_NUMERICAL:float16  # another dtype\n"))
    assert {Status.INCORRECT_NUMERICAL, Status.XFAIL_UNUSED} <= statuses


def test_an_entry_that_matches_nothing_fails_the_run(read: Callable[[str], XFail]) -> None:
    xfail = read("layer_norm  # known\nrms_norm:RUNTIME_ERROR  # was repaired\n")
    quick = PROFILES["quick"]
    records = list(Sweep(Remembers(OPS, select(gpu=False)), quick, 0, xfail=xfail).of_op("rms_norm"))
    unused = [record for record in records if record.status.failed]
    assert [record.status for record in unused] == [Status.XFAIL_UNUSED]
    assert unused[0].level is Level.RUN
    assert "xfail.txt:2: 'rms_norm:RUNTIME_ERROR' matched no failure" in unused[0].message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("layer_norm", "xfail.txt:1: 'layer_norm' has no reason"),
        ("softmax  # no such op", "xfail.txt:1: unknown op 'softmax'"),
        ("layer_norm:PASSED  # no failure", "'PASSED' is no failure and no corner of layer_norm"),
        ("layer_norm:H=0  # of other ops", "'H=0' is no failure and no corner of layer_norm"),
        ("layer_norm:BIASED:int8  # no such dtype", "'BIASED:int8' is no failure"),
    ],
)
def test_a_line_that_is_no_entry_is_a_usage_error(read: Callable[[str], XFail], line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(line + "\n")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--xfail: cannot read"):
        XFail.read(tmp_path / "none.txt")


def test_the_command_line_takes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, entries = tmp_path / "mine.py", tmp_path / "xfail.txt"
    module.write_text(WRONG_OPS)

    def run(text: str, out: str) -> int:
        entries.write_text(text)
        options = ["--profile", "quick", "--xfail", str(entries), "--out", str(tmp_path / out)]
        return cli.main(["parity", "--ops", str(module), *options])

    assert (
        run("layer_norm:INCORRECT_NUMERICAL:bfloat16  # issue 12\nlayer_norm:BIASED  # issue 13\n", "a") == cli.FAILED
    )
    assert "XFAIL_UNUSED" in capsys.readouterr().out
    known = "layer_norm:INCORRECT_NUMERICAL:bfloat16  # issue 12\nlayer_norm:BAD_INPUT_ACCEPTED  # issue 14\n"
    assert run(known.splitlines()[0] + "\n", "b") == cli.PASSED
    out = capsys.readouterr().out
    assert "xfailed" in out
    assert "PASSED" in out
    _, records = read_run(tmp_path / "b")
    assert {record.reason.partition(":")[0] for record in records if record.status is Status.XFAILED} == {
        "expected (issue 12)"
    }
    assert run("rms_norm  # not in the set\n", "c") == cli.USAGE
    assert "does not provide rms_norm" in capsys.readouterr().err


@pytest.mark.parametrize("corner", ["same bits: graph replay", "x: rows past 2^31"])
def test_corners_of_other_devices_and_of_calls_compared_have_names_too(
    read: Callable[[str], XFail], corner: str
) -> None:
    (entry,) = read(f"layer_norm:{corner}:float16  # ours\n").entries
    assert (entry.what, entry.dtype) == (corner, "float16")


def test_the_repeat_line_asks_for_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its ``--require`` an op below that tier would pass."""
    monkeypatch.chdir(tmp_path)
    Path("known.txt").write_text("split_rotary_embedding:BIASED  # gone\n")
    asked = ["--profile", "quick", "--seed", "3", "--require", "bit-exact", "--xfail", "known.txt"]
    ops = "validation.controls:float64_inside"
    assert cli.main(["parity", "--op", "split_rotary_embedding", "--ops", ops, *asked, "--out", "a"]) == cli.FAILED
    (below,) = (record for record in read_run(Path("a"))[1] if record.status is Status.BELOW_REQUIRED_TIER)
    repeat = shlex.split(below.message.splitlines()[-1].removeprefix("repeat: "))
    assert repeat == ["validate", "parity", "--op", "split_rotary_embedding", "--ops", ops, *asked]
    assert cli.main([*repeat[1:], "--out", "b"]) == cli.FAILED
    again = {record.status for record in read_run(Path("b"))[1] if record.status.failed}
    assert again == {Status.BELOW_REQUIRED_TIER, Status.XFAIL_UNUSED}
    assert "XFAIL_UNUSED" in capsys.readouterr().out
