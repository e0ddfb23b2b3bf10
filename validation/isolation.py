"""Candidates in a process of their own: one that hangs or crashes costs its case, not the run.

The process stays between cases. It loads the op set and selects the device itself, judges a case there and
sends the judgement back, as lines of JSON over a pipe; nothing else is shared. Where it dies the case gets
``CRASHED``, where it does not answer in time ``TIMEOUT``, and the next case a new process. So does a case whose
tensors cannot be made or judged any more in a process that was used before: after an illegal memory access all that
is asked of an accelerator in that process fails.

What is not ours runs so by default, what is ours on request (``--isolate``): the process takes some five
seconds to start, and then a few milliseconds a case. ``--no-isolate`` is for a debugger. An op set that was
made in memory cannot be isolated: the process loads it from what ``--ops`` names.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from validation.cases.case import Case
from validation.errors import UsageError
from validation.judge import calls, frames
from validation.judge.verdict import Judgement
from validation.ops import OpSet
from validation.record import Status

# For one case, truth included. The slowest of ours takes 2 s under the interpreter; a compiled candidate may
# compile first, some 30 s.
LIMIT_SECONDS = 120.0
START_SECONDS = 300.0

# Modules whose ops are ours.
OURS = ("fused_ops", "reference_ops", "validation.faults", "validation.controls")


@dataclasses.dataclass(frozen=True)
class Death:
    """How a process ended before it answered.

    Attributes:
        status: ``TIMEOUT`` or ``CRASHED``.
        reason: in words, with the line of Python that ran.
    """

    status: Status
    reason: str


class Worker:
    """A process that judges cases of one op set; started when first asked, and again after a death.

    Attributes:
        process: the one that runs, if one does.
        deaths: how many processes were lost.
    """

    def __init__(self, origin: str, *, gpu: bool, limit: float = LIMIT_SECONDS) -> None:
        """Prepare; nothing is started yet.

        Args:
            origin: of the op set, what ``--ops`` names.
            gpu: which device the process selects.
            limit: seconds that one case may take.
        """
        self.origin, self.gpu, self.limit = origin, gpu, limit
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self._replies = -1
        self._read = b""
        self._trace = -1
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> Any:
        """What the process answers, or a `Death`.

        Raises:
            UsageError: the process could not load the op set, or the request asks for what cannot be done.
            RuntimeError: a new process failed otherwise than by dying: a defect of the suite.
        """
        new = self.process is None
        answer = self._asked(request)
        if isinstance(answer, _Defect) and not new:
            self.close()
            self.deaths += 1
            answer = self._asked(request)
        if isinstance(answer, _Defect):
            if not answer.accelerator:
                raise RuntimeError(f"judging failed in the isolated process:\n{answer.trace}")
            self.close()
            last = answer.trace.strip().splitlines()[-1]
            answer = Death(Status.CRASHED, f"the accelerator was lost while its results were judged: {last}")
        self.deaths += isinstance(answer, Death)
        return answer

    def _asked(self, request: dict[str, Any]) -> Any:
        if self.process is None:
            answer = self._start()
            if isinstance(answer, Death | _Defect):
                return answer
        return self._exchange(request, self.limit)

    def _start(self) -> Any:
        replies, write = os.pipe()
        self._trace = os.memfd_create("trace")
        command = [sys.executable, "-m", "validation.isolation", str(write), str(self._trace)]
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        # What a candidate prints goes to stderr; a session of its own, so that its children die with it.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=(write, self._trace),
            env=environment,
            start_new_session=True,
        )
        os.close(write)
        self._replies, self._read = replies, b""
        return self._exchange({"ops": self.origin, "gpu": self.gpu, "path": sys.path}, START_SECONDS)

    def _exchange(self, request: dict[str, Any], limit: float) -> Any:
        assert self.process is not None
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # dead since the last answer: the pipe's end says so
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        line = self._line(time.monotonic() + limit)
        if line is None:
            self.process.send_signal(signal.SIGABRT)  # it writes down where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
            death = Death(Status.TIMEOUT, f"did not return within {limit:g} s{self._place()}")
            self.close()
            return death
        if not line:
            code = self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
            death = Death(Status.CRASHED, f"the process that ran it {how}{self._place()}")
            self.close()
            return death
        answer = json.loads(line)
        if "usage_error" in answer:
            raise UsageError(answer["usage_error"])
        if "defect" in answer:
            return _Defect(answer["defect"], answer["accelerator"])
        return answer["answer"]

    def _line(self, deadline: float) -> bytes | None:
        """The next line of the answer; empty at the end of the pipe, None at the deadline."""
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._replies], [], [], max(deadline - time.monotonic(), 0.0))
            if not ready:
                return None
            chunk = os.read(self._replies, 1 << 16)
            if not chunk:
                return b""
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _place(self) -> str:
        """Where the process was when it died, by the Python frames that faulthandler wrote down."""
        # The thread that died comes first or last, and is called "Current"; in it, the innermost frame first.
        text = os.pread(self._trace, 1 << 20, 0).decode(errors="replace").partition("Current thread")[2]
        found = [(f[1], int(f[2]), f[3]) for f in re.finditer(r'File "(.+)", line (\d+) in (\S+)', text)]
        place = frames.place(found)
        if place or not found:
            return place
        file, line, _ = found[0]
        return f", while no code of the candidate ran ({file}, line {line}): an earlier call may have damaged memory"

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        os.close(self._replies)
        os.close(self._trace)
        self.process = None


@dataclasses.dataclass(frozen=True)
class _Defect:
    """An exception of the process that is no candidate's: its traceback, and whether the accelerator raised it."""

    trace: str
    accelerator: bool


@dataclasses.dataclass(frozen=True)
class IsolatedOpSet(OpSet):
    """An op set whose calls are judged in a process of their own.

    Attributes:
        worker: that process.
    """

    worker: Worker

    def judge(self, case: Case, *, grad: bool = False) -> Judgement:
        """`validation.judge.verdict.judge_call`, over there; with grad of `calls.requiring_grad`."""
        answer = self.worker.ask({"case": case.to_dict(), "grad": grad})
        if isinstance(answer, Death):
            return Judgement(answer.status, "runs", answer.reason)
        return Judgement(**{**answer, "status": Status(answer["status"]), "lines": tuple(answer["lines"])})

    def not_refused(self, op: str, bad_call: str) -> str | Death:
        """What the candidate did with the bad call of that name, in words; "" if it refused it."""
        answer = self.worker.ask({"op": op, "bad_call": bad_call})
        return answer if isinstance(answer, Death) else str(answer)


def isolated(ops: OpSet, *, gpu: bool, limit: float = LIMIT_SECONDS) -> IsolatedOpSet:
    """The op set, isolated."""
    return IsolatedOpSet(ops.name, ops.functions, ops.origin, Worker(ops.origin, gpu=gpu, limit=limit))


def limit_of(case_seconds: float | None) -> float:
    """The time limit that ``--case-seconds`` asks for; UsageError unless it is above 0."""
    if case_seconds is not None and not 0.0 < case_seconds < math.inf:
        raise UsageError(f"--case-seconds: {case_seconds:g}, expected a number above 0")
    return LIMIT_SECONDS if case_seconds is None else case_seconds


def isolated_by_default(ops: OpSet) -> bool:
    """Whether an op set runs in a process of its own unless told otherwise: true for all that is not ours."""
    return ops.origin.partition(":")[0] not in OURS


def _serve(replies: int, trace: int) -> None:
    """The process's side: answer the lines that come in until there are no more.

    Args:
        replies: file descriptor for the answers.
        trace: file descriptor to write the stack to on a fatal signal.
    """
    faulthandler.enable(trace)
    from validation import parity
    from validation.device import select as select_device
    from validation.judge.verdict import judge_call
    from validation.ops import load_op_set

    # As on the command line: NumPy says so under the interpreter wherever a case holds NaN or inf on purpose.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(triton|numpy)\.")

    def answer_to(request: dict[str, Any]) -> Any:
        if "case" in request:
            case = Case.from_dict(request["case"])
            candidate = ops[case.op]
            candidate = calls.requiring_grad(candidate) if request["grad"] else calls.as_callers_do(case, candidate)
            return dataclasses.asdict(judge_call(case, candidate, device.torch))
        return parity.not_refused(parity.bad_call(request["op"], request["bad_call"]), ops, device)

    def reply(work: Callable[[], Any]) -> None:
        try:
            text = {"answer": work()}
        except UsageError as error:
            text = {"usage_error": str(error)}
        except Exception as error:  # what a candidate raises is in the answer
            text = {"defect": traceback.format_exc(), "accelerator": isinstance(error, torch.AcceleratorError)}
        os.write(replies, json.dumps(text).encode() + b"\n")

    requests = (json.loads(line) for line in sys.stdin.buffer)
    start = next(requests)
    sys.path[:] = start["path"]
    loaded: list[Any] = []
    reply(lambda: loaded.extend((select_device(start["gpu"]), load_op_set(start["ops"]))))
    device, ops = loaded
    for request in requests:
        reply(lambda request=request: answer_to(request))  # type: ignore[misc]


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
