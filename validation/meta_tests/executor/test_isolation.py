"""Candidates that raise, hang, crash or return nonsense: a verdict for each case, in either process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from validation import cli
from validation.cases.case import Case, TensorSpec
from validation.cases.errors import bad_calls
from validation.device import Device, select
from validation.errors import UsageError
from validation.executor import Death, InProcess, Isolated, load, worker
from validation.executor.base import isolated_by_default
from validation.executor.worker import LIMIT_SECONDS, Worker
from validation.forking import forked
from validation.judge.signature import signature_of
from validation.ops import OpSet, load_op_set
from validation.parity import profiles
from validation.parity.one_case import judge_case
from validation.parity.refusals import bad_input_record, grad_record
from validation.parity.sweep import Sweep
from validation.parity.xfail import XFail
from validation.record import Record, read_run
from validation.verdict import Status

OP = "residual_gate_add"

# The size of the case decides what it does, because nothing else reaches it in another process.
CANDIDATE = """
import ctypes, os, signal, sys, time
import torch
import reference_ops


def hang():
    time.sleep(1000)


def fork():
    globals()["fork"] = int  # once
    if os.fork() == 0:
        time.sleep(0.5)  # and then it judges and answers too


def write_everywhere():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"none of yours\\n")
        except OSError:
            pass


def lost(*_, **__):
    raise RuntimeError("an illegal memory access was encountered")


def residual_gate_add(residual, x, gate, *, casting_mode="float32"):
    if x.dim() != 3:
        ctypes.string_at(0)
    y = reference_ops.residual_gate_add(residual, x, gate, casting_mode=casting_mode)
    print("on stdout")
    match x.shape[-1]:
        case 2:
            return None
        case 3:
            return y, y
        case 4:
            return y.to("meta")
        case 5:
            raise RuntimeError("no kernel image")
        case 6:
            sys.exit(3)
        case 7:
            ctypes.string_at(0)
        case 8:
            hang()
        case 9:
            os._exit(7)
        case 10:
            return y.double()
        case 11:
            sys.stdout.close()
        case 13:
            torch.randn = lost  # as of a lost accelerator: nothing can be made in this process any more
            lost()
        case 14:
            os.kill(os.getpid(), signal.SIGRTMIN + 6)
        case 15:
            input()
        case 16:
            fork()
        case 17:
            write_everywhere()
        case 18:
            sys.modules["validation.judge.verdict"].judge = None
        case 19:
            raise KeyboardInterrupt
    return y
"""

DEATHS = {
    7: (Status.CRASHED, "killed by SIGSEGV"),
    8: (Status.TIMEOUT, "did not return within 3 s"),
    9: (Status.CRASHED, "exited with status 7"),
    14: (Status.CRASHED, f"killed by signal {signal.SIGRTMIN + 6}"),
    17: (Status.CRASHED, "was answered out of turn: the candidate writes where the process answers"),
}
VERDICTS = {
    1: (Status.PASSED, ""),
    2: (Status.INCORRECT_STRUCTURE, "returned NoneType, expected a tensor"),
    3: (Status.INCORRECT_STRUCTURE, "returned (Tensor, Tensor), expected a tensor"),
    4: (Status.INCORRECT_DEVICE, "output is meta, expected cpu"),
    5: (Status.RUNTIME_ERROR, "raised RuntimeError: no kernel image"),
    6: (Status.RUNTIME_ERROR, "raised SystemExit: 3"),
    10: (Status.INCORRECT_DTYPE, "float64"),
}


LINE_OF_RAISE = {
    5: 1 + CANDIDATE[: CANDIDATE.index('raise RuntimeError("no kernel')].count("\n"),
    6: 1 + CANDIDATE[: CANDIDATE.index("sys.exit")].count("\n"),
}


def a_case(width: int) -> Case:
    tensors = {
        name: TensorSpec((2, 3, width), "float32", (3 * width, width, 1), 0, name) for name in ("residual", "x", "gate")
    }
    return Case(OP, tensors, {"casting_mode": "float32"}, "normal", 7)


@pytest.fixture(scope="module")
def device() -> Device:
    return select(gpu=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candidate") / "candidate.py"
    path.write_text(CANDIDATE)
    return path


def apart(path: Path, limit: float = LIMIT_SECONDS) -> Isolated:
    executor = load(str(path), select(gpu=False), limit=limit)
    assert isinstance(executor, Isolated)
    return executor


@pytest.fixture(scope="module")
def executor(path: Path) -> Iterator[Isolated]:
    executor = apart(path)
    yield executor
    executor.close()


@pytest.mark.parametrize("width", sorted(VERDICTS))
def test_the_same_verdict_in_either_process(width: int, path: Path, executor: Isolated, device: Device) -> None:
    status, words = VERDICTS[width]
    for either in (InProcess(load_op_set(str(path)), device), executor):
        record = judge_case(a_case(width), either)
        assert record.status is status
        assert words in record.reason
        if status is Status.RUNTIME_ERROR:
            assert record.reason.endswith(f", in {path}, line {LINE_OF_RAISE[width]}, in residual_gate_add")
    assert isinstance(record.numbers.get("launches", 0), int)


@pytest.mark.parametrize("width", sorted(DEATHS))
def test_a_death_has_its_case_and_the_run_goes_on(
    width: int, executor: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, words = DEATHS[width]
    # Only for the hanging one: at load 6 a fresh process did not judge its first case in 3 s.
    with monkeypatch.context() as patched:
        if status is Status.TIMEOUT:
            patched.setattr(executor.worker, "limit", 3.0)
        record = judge_case(a_case(width), executor)
    assert (record.status, record.check) == (status, "runs")
    assert words in record.reason
    assert Case.from_dict(record.case) == a_case(width)
    assert f"--ops {executor.ops.origin}" in record.repro
    if width == 8:
        assert record.reason.endswith("in hang")
    assert judge_case(a_case(1), executor).status is Status.PASSED


def test_numbers_come_through(path: Path, executor: Isolated, device: Device) -> None:
    there, here = (judge_case(a_case(12), e) for e in (executor, InProcess(load_op_set(str(path)), device)))
    assert there.numbers == here.numbers
    assert there.tier == here.tier == "bit-exact"
    assert set(there.seconds) == set(here.seconds) >= {"truth", "candidate", "judge", "same bits"}


def test_what_a_candidate_prints_is_no_answer(executor: Isolated) -> None:
    # It also closes its stdout; the answers go through a separate pipe.
    assert judge_case(a_case(11), executor).status in (Status.PASSED, Status.NOT_REPRODUCIBLE)
    assert judge_case(a_case(12), executor).status is not Status.CRASHED


def test_bad_calls_are_made_over_there(executor: Isolated) -> None:
    calls = {bad.name: bad for bad in bad_calls(signature_of(OP))}
    assert executor.not_refused(calls["residual one channel too wide"]) == ""
    came = executor.not_refused(next(bad for name, bad in calls.items() if name.startswith("x of rank")))
    assert isinstance(came, Death)
    assert came.status is Status.CRASHED
    assert "killed by SIGSEGV" in came.reason


def test_a_lost_accelerator_costs_its_case_alone(executor: Isolated) -> None:
    assert judge_case(a_case(1), executor).status is Status.PASSED
    deaths = executor.worker.deaths
    record = judge_case(a_case(13), executor)
    assert record.status is Status.RUNTIME_ERROR
    assert "an illegal memory access" in record.reason
    assert executor.worker.deaths == deaths
    assert judge_case(a_case(1), executor).status is Status.PASSED
    assert executor.worker.deaths == deaths + 1


def test_what_a_new_process_cannot_judge_has_its_case_and_the_run_goes_on(executor: Isolated) -> None:
    assert judge_case(a_case(1), executor).status is Status.PASSED
    record = judge_case(a_case(18), executor)
    assert (record.status, record.check) == (Status.CRASHED, "runs")
    assert record.reason.startswith("its result could not be judged: TypeError: 'NoneType' object")
    assert re.search(r", in /.*verdict\.py, line \d+$", record.reason)
    assert executor.worker.process is None, "what is damaged in it may be of more than the case"
    assert judge_case(a_case(1), executor).status is Status.PASSED


def test_a_defect_while_starting_is_one_of_the_suite(device: Device) -> None:
    odd = Worker(3, device)  # type: ignore[arg-type]
    executor = Isolated(OpSet("odd", {OP: lambda **_: None}, "odd"), device, odd)
    with pytest.raises(RuntimeError, match="the isolated process could not be started") as caught:
        judge_case(a_case(1), executor)
    assert "AttributeError" in str(caught.value)
    assert odd.process is None


def test_an_answer_of_a_child_process_is_none_to_the_next_case(executor: Isolated) -> None:
    assert judge_case(a_case(16), executor).status in (Status.PASSED, Status.NOT_REPRODUCIBLE)
    time.sleep(2.0)  # the child's answer comes
    record = judge_case(a_case(5), executor)
    assert record.status is Status.CRASHED
    assert "or a child process does that this call or an earlier one left behind" in record.reason
    assert judge_case(a_case(5), executor).status is Status.RUNTIME_ERROR


# In the test's own process pytest takes the input, and an interrupt would end the test.
@pytest.mark.parametrize(("width", "words"), [(15, "raised EOFError"), (19, "raised KeyboardInterrupt")])
def test_what_comes_from_a_terminal_elsewhere_is_the_candidates(width: int, words: str, executor: Isolated) -> None:
    record = judge_case(a_case(width), executor)
    assert record.status is Status.RUNTIME_ERROR
    assert words in record.reason


def bad_input(tmp_path: Path, body: str, limit: float = 60.0) -> tuple[Record, Record]:
    path = tmp_path / "bad.py"
    path.write_text(f"import os, sys, time\ndef residual_gate_add(*_, **__):\n    {body}\n")
    there = apart(path, limit)
    try:
        return bad_input_record(OP, there), grad_record(OP, there)
    finally:
        there.close()


def test_bad_calls_that_end_the_process_have_a_limit_and_their_own_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_DEATHS", 2)
    for body, status, words in (
        ("os._exit(4)", Status.CRASHED, "2 of which hung or crashed; the first the process that ran it exited with"),
        ("time.sleep(100)", Status.TIMEOUT, "did not return within 2 s"),
    ):
        record, grad = bad_input(tmp_path, body, limit=2.0 if status is Status.TIMEOUT else 60.0)
        assert (record.status, record.check) == (status, "bad input")
        assert words in record.reason
        assert "; stopped before " in record.reason
        assert record.numbers["bad_calls"] == 2
        assert grad.status is status


def test_a_bad_call_that_exits_is_not_refused_in_either_process(tmp_path: Path) -> None:
    record, _ = bad_input(tmp_path, "sys.exit(3)")
    assert record.status is Status.BAD_INPUT_ACCEPTED
    assert "SystemExit, expected a TypeError, ValueError or NotImplementedError: 3" in record.message
    here = bad_input_record(OP, InProcess(load_op_set(str(tmp_path / "bad.py")), select(gpu=False)))
    # Without the repeat line, which says where it ran.
    assert here.message.partition("\nrepeat: ")[0] == record.message.partition("\nrepeat: ")[0]


def test_no_process_is_left_behind(executor: Isolated) -> None:
    assert judge_case(a_case(1), executor).status is Status.PASSED
    child = executor.worker.process
    assert child is not None
    executor.close()
    assert child.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_lost_fork_server_costs_the_case_that_ran_and_is_replaced(executor: Isolated) -> None:
    assert judge_case(a_case(1), executor).status is Status.PASSED
    server = forked.servers[()]
    server.process.kill()
    server.process.wait()
    record = judge_case(a_case(1), executor)
    assert (record.status, "killed by SIGKILL" in record.reason) == (Status.CRASHED, True)
    assert judge_case(a_case(1), executor).status is Status.PASSED
    assert forked.servers[()] is not server


def test_another_environment_has_a_fork_server_of_its_own_and_the_first_ones_children_go_on(
    path: Path, executor: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge_case(a_case(1), executor).status is Status.PASSED
    server = forked.servers[()]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    other = apart(path)
    assert judge_case(a_case(1), other).status is Status.PASSED
    assert forked.servers[()] is not server
    deaths = executor.worker.deaths
    assert judge_case(a_case(1), executor).status is Status.PASSED
    assert executor.worker.deaths == deaths
    other.close()
    executor.close()
    assert server.process.wait(20.0) == 0


def test_an_op_set_that_cannot_be_loaded_is_a_usage_error(device: Device) -> None:
    made = OpSet("made here", {OP: lambda **_: None}, "")
    executor = Isolated(made, device, Worker("no_such_module", device))
    with pytest.raises(UsageError, match="no_such_module"):
        judge_case(a_case(1), executor)
    executor.close()


# Only in the process that loads first; the test's own process would end too.
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os\nos._exit(0)\n", "the process that ran it exited with status 0, expected"),
        ("import ctypes\nctypes.string_at(0)\n", "was killed by SIGSEGV, in {path}, line 2, in <module>, expected"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt, in {path}, line 1, in <module>, expected"),
    ],
)
def test_an_import_that_ends_its_process_is_a_usage_error(tmp_path: Path, body: str, words: str) -> None:
    path = tmp_path / "ends.py"
    path.write_text(body)
    with pytest.raises(UsageError) as caught:
        load(str(path), select(gpu=False))
    assert str(caught.value).startswith(f"--ops: cannot import {path}: ")
    assert words.format(path=path) in str(caught.value)


def test_an_import_that_hangs_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "START_SECONDS", 3.0)
    path = tmp_path / "hangs.py"
    path.write_text("import time\ntime.sleep(1000)\n")
    with pytest.raises(UsageError, match=f"--ops: cannot import {path}: did not return within 3 s"):
        load(str(path), select(gpu=False))


def test_the_process_that_loaded_goes_on_with_the_cases(
    path: Path, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(path.parent)
    # Triton's runtime and torch._dynamo take some 3 s to import, which must not count for the first case.
    executor = load(path.name, device, limit=2.0)
    assert isinstance(executor, Isolated)
    assert (executor.ops.name, executor.ops.origin, set(executor.ops.functions)) == ("candidate", "candidate.py", {OP})
    child = executor.worker.process
    record = judge_case(a_case(1), executor)
    assert record.status is Status.PASSED, record.reason
    assert child is not None
    assert executor.worker.process is child
    # A relative path stays relative to the folder in which it was given.
    monkeypatch.chdir(tmp_path)
    executor.close()
    assert judge_case(a_case(1), executor).status is Status.PASSED
    executor.close()


def test_ours_and_what_is_not_to_be_isolated_is_loaded_here_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "start", lambda _: pytest.fail("started"))
    assert type(load("reference_ops", select(gpu=False))) is InProcess
    assert type(load("validation.faults:one plus dropped", select(gpu=False))) is InProcess
    assert type(load(str(path), select(gpu=False), isolate=False)) is InProcess


def test_nothing_in_the_current_folder_is_taken_for_what_the_process_imports(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").mkdir()
    for name in ("select.py", "torch/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('not the one that was meant')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # two empty elements, which mean the current folder
    executor = load(str(path), select(gpu=False))
    assert isinstance(executor, Isolated)
    assert judge_case(a_case(1), executor).status is Status.PASSED
    executor.close()


SPINS = """
import os

def residual_gate_add(*_, **__):
    with open({started!r}, "w") as file:
        print(os.getpid(), file=file, flush=True)
    while True:
        pass
"""


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    started, path = tmp_path / "started", tmp_path / "spins.py"
    path.write_text(SPINS.format(started=str(started)))
    command = [sys.executable, "-m", "validation.cli", "repro", a_case(1).to_json(), "--ops", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: started.exists() and started.read_text().endswith("\n"))
        parent.kill()
    status = Path("/proc", started.read_text().strip(), "stat")
    wait_until(lambda: not status.exists() or status.read_text().rpartition(") ")[2].startswith("Z"))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_not_ours_is_isolated_by_default(path: Path) -> None:
    assert not isolated_by_default("fused_ops")
    assert not isolated_by_default("reference_ops")
    assert isolated_by_default(str(path))
    assert isolated_by_default("validation.adapters.torch_native")


def test_a_sweep_stops_after_some_deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MAX_DEATHS", 2)
    path = tmp_path / "dies.py"
    path.write_text("import os\ndef residual_gate_add(*_, **__):\n    os._exit(1)\n")
    (tmp_path / "xfail.txt").write_text(f"{OP}:CRASHED  # known\n")
    executor = apart(path)
    # With or without the xfail entry, a case that was not judged has not passed.
    for xfail, expected in (
        (XFail(), [Status.CRASHED] * 3),
        (XFail.read(tmp_path / "xfail.txt"), [Status.XFAILED] * 2 + [Status.CRASHED]),
    ):
        records = list(Sweep(executor, profiles.PROFILES["quick"], 0, xfail=xfail).of_op(OP))
        assert [record.status for record in records] == expected
        assert "stopped after 2 cases, 2 of which hung, crashed or lost the accelerator" in records[-1].reason
        assert "the last the process that ran it exited with status 1" in records[-1].reason
        assert records[-1].reason.endswith("the rest is not judged")
    said: list[str] = []
    list(Sweep(executor, profiles.PROFILES["quick"], 0).of_ops((OP,), said.append))
    executor.close()
    assert [line.partition(": ")[2].partition(",")[0] for line in said[1:-1]] == [
        "case 1 the process that ran it exited with status 1",
        "case 2 the process that ran it exited with status 1",
    ]


def test_the_command_line_isolates(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = a_case(7).to_json()
    assert cli.main(["repro", case, "--ops", str(path)]) == cli.FAILED
    assert "CRASHED" in capsys.readouterr().out
    assert cli.main(["repro", a_case(1).to_json(), "--ops", str(path), "--no-isolate"]) == cli.PASSED
    assert cli.main(["repro", a_case(8).to_json(), "--ops", str(path), "--case-seconds", "1.5"]) == cli.FAILED
    assert "did not return within 1.5 s" in capsys.readouterr().out
    out = tmp_path / "run"
    arguments = [
        "parity",
        "--ops",
        "reference_ops",
        "--op",
        "split_rotary_embedding",
        "--profile",
        "quick",
        "--out",
        str(out),
    ]
    assert cli.main([*arguments, "--isolate"]) == cli.PASSED
    assert len(read_run(out)[1]) > 100
