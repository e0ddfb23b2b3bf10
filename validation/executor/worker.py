"""The parent's side of an isolated executor: start the child, ask it, and say how it died."""

import atexit
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from validation.device import Device
from validation.device.launches import Counts
from validation.errors import UsageError
from validation.executor import process
from validation.executor.base import DEATHS, Death
from validation.executor.protocol import Defect
from validation.executor.watch import Clock, Overrun, Progress, shared_counts
from validation.forking.forked import Process, how_it_ended
from validation.ops import tracebacks
from validation.ops.sources import check_unchanged
from validation.verdict import Status

# Time limit of one case, truth included (`watch` says of which time). The slowest of ours takes 2 s under the
# interpreter; a compiled candidate may first compile for some 30 s.
LIMIT_SECONDS = 120.0
# A case of so many elements in its tensors has the limit once, a larger one as many times more: a site at full size has
# 221 million at most, and one of 44 million took 145 s of processor time where PTX is executed, on two busy cores.
LIMIT_ELEMENTS = 2**24
START_SECONDS = 300.0


class Worker:
    """A process that judges cases of one op set; started by the first request, and again after a death.

    Attributes:
        process: the running process, if there is one.
        deaths: how many processes were lost.
        digests: of the op set's files, which must not have changed when a process is started again.
        printed: the file that takes what the process prints; None: our stderr.
    """

    def __init__(self, origin: str, device: Device, *, limit: float = LIMIT_SECONDS) -> None:
        """Prepare; no process is started yet.

        Args:
            origin: the op set as ``--ops`` names it.
            device: the process selects the same.
            limit: seconds that one case may take.
        """
        self.origin, self.device, self.limit = origin, device, limit
        self.process: Process | None = None
        self.deaths = 0
        self.digests: Mapping[str, str] = {}
        self.printed: Path | None = None
        self._folder = Path.cwd()  # base of a relative origin: a candidate may change folder in our process
        self._used = False  # whether the process has had a request after loading the op set
        self._number = 0  # the last request's number
        self._requests: IO[bytes] | None = None
        self._replies = -1
        self._read = b""
        self._trace = self._counted = -1
        self._counts: Counts | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the process, unless one runs, and have it load the op set.

        Raises:
            UsageError: it could not load the op set, died of it or did not answer in time.
            RuntimeError: it failed for another reason: a defect of the suite.
        """
        death = None if self.process is not None else self._start()
        if death is not None:
            wanted = "expected a module or .py file that can be imported"
            raise UsageError(f"--ops: cannot import {self.origin}: {death.reason}, {wanted}")

    def ask(self, request: dict[str, Any], *, limits: float = 1.0) -> Any:
        """Send a request; return the process's answer, or a `Death`.

        Args:
            request: of `validation.executor.child`.
            limits: how many times the limit of a case it may take.

        Raises:
            UsageError: the process could not load the op set, or refused the request.
            RuntimeError: a new process failed to start, and did not die: a defect of the suite.
        """
        new = not self.used
        answer = self._asked(request, limits)
        if isinstance(answer, Defect) and not new:
            self.close()
            self.deaths += 1
            answer = self._asked(request, limits)
        if isinstance(answer, Defect):
            self.close()  # the process itself may be broken, and fail all later requests
            answer = answer.death
        self.deaths += isinstance(answer, Death) and answer.status in DEATHS
        return answer

    @property
    def used(self) -> bool:
        """Whether the next request goes to a process that has answered others."""
        return self.process is not None and self._used

    def _asked(self, request: dict[str, Any], limits: float) -> Any:
        death = None if self.process is not None else self._start()
        if death is not None:
            return death
        self._used = True
        if self._counts is None or self.process is None:
            return self._exchange(request, Clock(self.limit * limits))
        self._counts.clear()
        return self._exchange(request, Progress(self.process.pid, self._counts, self.limit * limits))

    def _start(self) -> Death | None:
        """Start a process that loads the op set; a `Death` if it died before it answered."""
        check_unchanged(self.digests)
        self._launch()
        path = [folder for folder in sys.path if isinstance(folder, str)]  # Python itself skips other entries
        try:
            start = {"ops": self.origin, "device": self.device.options, "path": path}
            answer = self._exchange(start, Clock(START_SECONDS))
        except UsageError:
            self.close()
            raise
        if not isinstance(answer, Defect):
            return answer if isinstance(answer, Death) else None
        self.close()
        if not answer.accelerator:
            raise RuntimeError(f"the isolated process could not be started:\n{answer.trace}")
        return answer.death

    def _launch(self) -> None:
        read, requests = os.pipe()
        self._replies, write = os.pipe()
        self._trace = os.memfd_create("trace")
        self._counted, counts = shared_counts()
        self._counts = None if self.device.gpu else counts
        descriptors = (read, write, self._trace, self._counted)
        self.process = process.start(descriptors, self._folder, forked=not self.device.gpu)
        os.close(read)
        os.close(write)
        self._requests, self._read, self._used = os.fdopen(requests, "wb"), b"", False

    def _exchange(self, request: dict[str, Any], watch: Clock | Progress) -> Any:
        assert self.process is not None
        assert self._requests is not None
        self._number += 1
        with contextlib.suppress(BrokenPipeError):  # it died after its last answer: the reply pipe's end shows that
            printed = str(self.printed.resolve()) if self.printed is not None else ""
            self._requests.write(json.dumps({**request, "printed": printed, "number": self._number}).encode() + b"\n")
            self._requests.flush()
        line = self._line(watch)
        if isinstance(line, Overrun) and line.status is Status.NOT_RUN:
            self.close()
            return Death(line.status, line.reason)
        if isinstance(line, Overrun):
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes its stack
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
            death = Death(Status.TIMEOUT, f"{line.reason}{self._place()}")
            self.close()
            return death
        if not line:
            ended = how_it_ended(self.process.wait())
            death = Death(Status.CRASHED, f"the process that ran it {ended}{self._place()}")
            self.close()
            return death
        return self._answer_in(line)

    def _answer_in(self, line: bytes) -> Any:
        """Read the answer to the last request from a line: the result, a `Defect` or a `Death`.

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
            return Defect(**answer["defect"])
        return answer["answer"]

    def _line(self, watch: Clock | Progress) -> bytes | Overrun:
        """The next line of the reply pipe; empty at its end; an `Overrun` if it did not come in time."""
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._replies], [], [], watch.wait())
            if not ready:
                overrun = watch.overrun()
                if overrun is not None:
                    return overrun
                continue
            chunk = os.read(self._replies, 1 << 16)
            if not chunk:
                return b""
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _place(self) -> str:
        """The process's place in the code when it died, from the Python frames that faulthandler wrote."""
        # The thread that died comes first or last, named "Current"; its innermost frame comes first.
        text = os.pread(self._trace, 1 << 20, 0).decode(errors="replace").partition("Current thread")[2]
        found = [(f[1], int(f[2]), f[3]) for f in re.finditer(r'File "(.+)", line (\d+) in (\S+)', text)]
        place = tracebacks.place(found)
        if place or not found:
            return place
        file, line, _ = found[0]
        why = ": an earlier call may have damaged memory" if self._used else ""
        return f", while no code of the candidate ran ({file}, line {line}){why}"

    def close(self) -> None:
        """End the process and its children."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)  # it has no group of its own yet if it was forked just now
        self.process.wait()
        assert self._requests is not None
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        os.close(self._replies)
        os.close(self._trace)
        os.close(self._counted)
        self.process = None
