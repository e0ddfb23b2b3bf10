"""Candidates in a process of their own: one that hangs or crashes costs its case, not the run.

The process stays between cases. It loads the op set and selects the device itself, judges a case there and
sends the judgement back; requests and answers are numbered lines of JSON over two pipes, and nothing else is shared.
Where it dies the case gets ``CRASHED``, where it does not answer in time ``TIMEOUT``, and the next case a new
process. So does a case whose tensors cannot be made or judged any more in a process that was used before: after an
illegal memory access all that is asked of an accelerator in that process fails. What a new process cannot judge
either is ``CRASHED``: the candidate changed what it is judged with, or returned what torch cannot treat.

What is not ours runs so by default, what is ours on request (``--isolate``): the process takes some eight
seconds to start, and then a few milliseconds a case. ``--no-isolate`` is for a debugger. An op set that was
made in memory cannot be isolated: the process loads it from what ``--ops`` names, and before ours does (`load`), for
an import may exit, crash and hang too.
"""

import atexit
import contextlib
import ctypes
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
from typing import IO, Any, Self

import torch

from validation.cases.case import Case
from validation.errors import UsageError
from validation.files import PACKAGE
from validation.judge import calls
from validation.ops import OpSet, load_op_set, tracebacks
from validation.verdict import Status, Verdict

# For one case, truth included. The slowest of ours takes 2 s under the interpreter; a compiled candidate may
# compile first, some 30 s.
LIMIT_SECONDS = 120.0
START_SECONDS = 300.0

# Of Linux' prctl: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1

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
        self._folder = Path.cwd()  # where a relative origin is found: a candidate may go elsewhere in our process
        self._used = False  # whether the process was asked for more than to load the op set
        self._number = 0  # of the last request
        self._requests: IO[bytes] | None = None
        self._replies = -1
        self._read = b""
        self._trace = -1
        atexit.register(self.close)

    def start(self) -> None:
        """Start the process, unless one runs, and have it load the op set.

        Raises:
            UsageError: it could not load the op set, died of it or did not come back in time.
            RuntimeError: it failed otherwise: a defect of the suite.
        """
        death = None if self.process is not None else self._start()
        if death is not None:
            wanted = "expected a module or .py file that can be imported"
            raise UsageError(f"--ops: cannot import {self.origin}: {death.reason}, {wanted}")

    def ask(self, request: dict[str, Any]) -> Any:
        """What the process answers, or a `Death`.

        Raises:
            UsageError: the process could not load the op set, or the request asks for what cannot be done.
            RuntimeError: a new process failed to start otherwise than by dying: a defect of the suite.
        """
        new = self.process is None or not self._used
        answer = self._asked(request)
        if isinstance(answer, _Defect) and not new:
            self.close()
            self.deaths += 1
            answer = self._asked(request)
        if isinstance(answer, _Defect):
            self.close()  # whatever failed may be of the process, and fail for all that is asked next
            answer = answer.death
        self.deaths += isinstance(answer, Death)
        return answer

    def _asked(self, request: dict[str, Any]) -> Any:
        death = None if self.process is not None else self._start()
        if death is not None:
            return death
        self._used = True
        return self._exchange(request, self.limit)

    def _start(self) -> Death | None:
        """Start a process that loads the op set; a `Death` if it did not live to say so."""
        self._launch()
        path = [folder for folder in sys.path if isinstance(folder, str)]  # as Python itself does
        try:
            answer = self._exchange({"ops": self.origin, "gpu": self.gpu, "path": path}, START_SECONDS)
        except UsageError:
            self.close()
            raise
        if not isinstance(answer, _Defect):
            return answer if isinstance(answer, Death) else None
        self.close()
        if not answer.accelerator:
            raise RuntimeError(f"the isolated process could not be started:\n{answer.trace}")
        return answer.death

    def _launch(self) -> None:
        read, requests = os.pipe()
        self._replies, write = os.pipe()
        self._trace = os.memfd_create("trace")
        theirs = (read, write, self._trace)
        # -P, and no empty element in PYTHONPATH: the current folder is the user's, and a select.py in it would be
        # imported for Python's. The process takes over our sys.path once it has imported what it needs itself.
        command = [sys.executable, "-P", "-m", "validation.executor.isolation", *map(str, (*theirs, os.getpid()))]
        folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        root = str(PACKAGE.parent)
        # What a candidate prints goes to stderr, and it reads nothing: what it asks for on a terminal nobody sees.
        # A session of its own, so that its children die with it.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=theirs,
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *folders])},
            start_new_session=True,
        )
        os.close(read)
        os.close(write)
        self._requests, self._read, self._used = os.fdopen(requests, "wb"), b"", False

    def _exchange(self, request: dict[str, Any], limit: float) -> Any:
        assert self.process is not None
        assert self._requests is not None
        self._number += 1
        with contextlib.suppress(BrokenPipeError):  # dead since the last answer: the pipe's end says so
            self._requests.write(json.dumps({**request, "number": self._number}).encode() + b"\n")
            self._requests.flush()
        line = self._line(time.monotonic() + limit)
        if line is None:
            self.process.send_signal(signal.SIGABRT)  # it writes down where it is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
            death = Death(Status.TIMEOUT, f"did not return within {limit:g} s{self._place()}")
            self.close()
            return death
        if not line:
            ended = _how_it_ended(self.process.wait())
            death = Death(Status.CRASHED, f"the process that ran it {ended}{self._place()}")
            self.close()
            return death
        return self._answer_in(line)

    def _answer_in(self, line: bytes) -> Any:
        """The answer to the last request that a line holds: what was asked for, a `_Defect` or a `Death`.

        Raises:
            UsageError: the process refused the request.
        """
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or answer.get("number") != self._number:
            self.close()
            words = "was answered out of turn: the candidate writes where the process answers, or a child process does"
            return Death(Status.CRASHED, f"{words} that this call or an earlier one left behind")
        if "usage_error" in answer:
            raise UsageError(answer["usage_error"])
        if "defect" in answer:
            return _Defect(**answer["defect"])
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
        place = tracebacks.place(found)
        if place or not found:
            return place
        file, line, _ = found[0]
        why = ": an earlier call may have damaged memory" if self._used else ""
        return f", while no code of the candidate ran ({file}, line {line}){why}"

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self._requests is not None
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        os.close(self._replies)
        os.close(self._trace)
        self.process = None


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"


@dataclasses.dataclass(frozen=True)
class _Defect:
    """An exception of the process that is no candidate's.

    Attributes:
        trace: its traceback.
        place: file and line that raised it, as messages end with them.
        accelerator: whether the accelerator raised it.
    """

    trace: str
    place: str
    accelerator: bool

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """That of an exception that was caught."""
        trace = "".join(traceback.format_exception(error))
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        place = f", in {innermost.filename}, line {innermost.lineno}"
        return cls(trace, place, isinstance(error, torch.AcceleratorError))

    @property
    def death(self) -> Death:
        """What it is of a case that a new process could not judge either."""
        last = self.trace.strip().splitlines()[-1]
        if self.accelerator:
            return Death(Status.CRASHED, f"the accelerator was lost while its results were judged: {last}")
        return Death(Status.CRASHED, f"its result could not be judged: {last}{self.place}")


@dataclasses.dataclass(frozen=True)
class IsolatedOpSet(OpSet):
    """An op set whose calls are judged in a process of their own.

    Attributes:
        worker: that process.
    """

    worker: Worker

    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        """`validation.judge.verdict.judge_call`, over there; with grad of `calls.requiring_grad`."""
        answer = self.worker.ask({"case": case.to_dict(), "grad": grad})
        if isinstance(answer, Death):
            return Verdict(answer.status, "runs", answer.reason)
        return Verdict(**{**answer, "status": Status(answer["status"]), "lines": tuple(answer["lines"])})

    def not_refused(self, op: str, bad_call: str) -> str | Death:
        """What the candidate did with the bad call of that name, in words; "" if it refused it."""
        answer = self.worker.ask({"op": op, "bad_call": bad_call})
        return answer if isinstance(answer, Death) else str(answer)


def load(origin: str, *, gpu: bool, isolate: bool | None = None, limit: float = LIMIT_SECONDS) -> OpSet:
    """The op set that ``--ops`` names, isolated if that is asked for; comes after `validation.device.select`.

    Where it is isolated its process loads it first, and then ours: an import that exits, crashes or hangs does so
    there. The process stays for the cases; where none follow, ``worker.close()`` ends it.

    Args:
        origin: what ``--ops`` names.
        gpu: which device was selected.
        isolate: whether to isolate it; None: if it is not ours.
        limit: seconds that one case may take.

    Raises:
        UsageError: it cannot be loaded.
        RuntimeError: the process could not be started.
    """
    if not (isolated_by_default(origin) if isolate is None else isolate):
        return load_op_set(origin)
    worker = Worker(origin, gpu=gpu, limit=limit)
    try:
        worker.start()
        ops = load_op_set(origin)
    except BaseException:
        worker.close()
        raise
    return IsolatedOpSet(ops.name, ops.functions, ops.origin, worker)


def limit_of(case_seconds: float | None) -> float:
    """The time limit that ``--case-seconds`` asks for; UsageError unless it is above 0."""
    if case_seconds is not None and not 0.0 < case_seconds < math.inf:
        raise UsageError(f"--case-seconds: {case_seconds:g}, expected a number above 0")
    return LIMIT_SECONDS if case_seconds is None else case_seconds


def isolated_by_default(origin: str) -> bool:
    """Whether what ``--ops`` names runs in a process of its own unless told otherwise: all that is not ours."""
    return origin.partition(":")[0] not in OURS


def _serve(requests: int, replies: int, trace: int, parent: int) -> None:
    """The process's side: answer the lines that come in until there are no more.

    Args:
        requests: file descriptor of the requests.
        replies: file descriptor for the answers.
        trace: file descriptor to write the stack to on a fatal signal.
        parent: process id of the one that asks.
    """
    _die_with(parent)
    faulthandler.enable(trace)
    # Ctrl-C is the parent's. A KeyboardInterrupt is then one that the candidate raised (`tracebacks.is_interrupt`).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (requests, replies, trace):
        os.set_inheritable(descriptor, False)  # a process that the candidate starts would keep the pipes open

    def reply(request: dict[str, Any], work: Callable[[dict[str, Any]], Any]) -> None:
        try:
            text = json.dumps({"answer": work(request), "number": request["number"]})
        except UsageError as error:
            text = json.dumps({"usage_error": str(error), "number": request["number"]})
        except BaseException as error:  # what a candidate raises is in the answer
            text = json.dumps({"defect": dataclasses.asdict(_Defect.of(error)), "number": request["number"]})
        os.write(replies, text.encode() + b"\n")

    lines = (json.loads(line) for line in os.fdopen(requests, "rb"))
    answer_to: list[Callable[[dict[str, Any]], Any]] = []
    reply(next(lines), lambda start: answer_to.append(_loaded(start)))
    for request in lines:
        reply(request, answer_to[0])


def _die_with(parent: int) -> None:
    """End this process when its parent ends: a candidate that spins would go on for ever."""
    # When the thread ends, rather, that started this process: the suite does that in its main thread alone.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before
        sys.exit(1)


def _loaded(start: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Select the device and load the op set; returns the function that answers all other requests."""
    from validation.cases.errors import good_case
    from validation.device import select as select_device
    from validation.judge.verdict import judge_call
    from validation.ops import reference_op, reference_op_names
    from validation.parity import sweep as parity

    # As on the command line: NumPy says so under the interpreter wherever a case holds NaN or inf on purpose.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(triton|numpy)\.")
    device = select_device(start["gpu"])
    # The first case that is judged imports Triton's runtime and torch._dynamo, some three seconds: none of theirs.
    op = reference_op_names()[0]
    judge_call(good_case(parity.signature_of(op)), reference_op(op), device.torch)
    sys.path[:] = start["path"]
    ops = load_op_set(start["ops"])

    def answer_to(request: dict[str, Any]) -> Any:
        if "case" in request:
            case = Case.from_dict(request["case"])
            candidate = ops[case.op]
            candidate = calls.requiring_grad(candidate) if request["grad"] else calls.as_callers_do(case, candidate)
            return dataclasses.asdict(judge_call(case, candidate, device.torch))
        return parity.not_refused(parity.bad_call(request["op"], request["bad_call"]), ops, device)

    return answer_to


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
