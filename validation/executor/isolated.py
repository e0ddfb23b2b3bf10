"""Candidates in a process of their own: one that hangs or crashes costs its case, not the run.

The process stays between cases. It loads the op set and selects the device itself, judges each case and sends the
verdict back. If it dies the case gets ``CRASHED``, if it does not answer in time ``TIMEOUT``, and the next case gets a
new process. A case also gets a new process if its tensors can no longer be made or judged in a used one: after an
illegal memory access every later request to the accelerator fails in that process. A case that a new process cannot
judge either is ``CRASHED``: the candidate changed the state that it is judged with, or returned an object that torch
cannot handle. If it is the reference op that raises, in a new process too, the case is ``REFERENCE_ERROR``; if the
interpreter is too slow for a case, it is ``NOT_RUN`` (`validation.executor.watch`). A new process refuses to load an op
set whose files have changed since the first.

Other op sets than ours are isolated by default, ours on request (``--isolate``). On the CPU a new process is forked
from one that has imported torch and Triton: 1.0 s for the first, 0.23 s for each after it, and a few milliseconds a
case. On a GPU each process imports them itself, for CUDA does not survive a fork. ``--no-isolate`` is for a debugger.
An op set made in memory cannot be isolated: the process loads it by the name in ``--ops``.
"""

import dataclasses
from pathlib import Path
from typing import Any

from validation.cases.case import Case
from validation.cases.errors import BadCall
from validation.executor.base import Death, Executor, isolated_by_default
from validation.executor.worker import LIMIT_ELEMENTS, LIMIT_SECONDS, Worker
from validation.verdict import Status, Tier, Verdict


@dataclasses.dataclass(frozen=True)
class Isolated(Executor):
    """Runs candidates in a child process.

    Attributes:
        worker: the child process.
    """

    worker: Worker

    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        """As `Executor` says.

        Raises:
            UsageError: the process could not load the op set.
            RuntimeError: the process could not start for another reason: a defect of the suite.
        """
        return self._judged({"case": case.to_dict(), "grad": grad}, case)

    def repeated(self, case: Case, calls: int) -> Verdict:
        """As `Executor` says. Raises as `judge`."""
        return self._judged({"case": case.to_dict(), "calls": calls}, case)

    def _judged(self, request: dict[str, Any], case: Case) -> Verdict:
        used = self.worker.used
        limits = max(sum(spec.numel for spec in case.tensors.values()) / LIMIT_ELEMENTS, 1.0)
        answer = self.worker.ask(request, limits=limits)
        if used and not isinstance(answer, Death) and answer["status"] == Status.REFERENCE_ERROR:
            # The candidate may have changed what the reference computes with: a new process tells.
            self.worker.close()
            answer = self.worker.ask(request, limits=limits)
        if isinstance(answer, Death):
            return Verdict(answer.status, "runs", answer.reason)
        tier = None if answer["tier"] is None else Tier(answer["tier"])
        return Verdict(**{**answer, "status": Status(answer["status"]), "tier": tier, "lines": tuple(answer["lines"])})

    def not_refused(self, bad: BadCall) -> str | Death:
        """As `Executor` says; a `Death` if the call ended the process. Raises as `judge`."""
        answer = self.worker.ask({"op": bad.case.op, "bad_call": bad.name})
        return answer if isinstance(answer, Death) else str(answer)

    def print_to(self, path: Path) -> None:
        """As `Executor` says."""
        self.worker.printed = path

    @property
    def options(self) -> dict[str, Any]:
        """As `Executor` says."""
        return {
            "isolate": None if isolated_by_default(self.ops.origin) else True,
            "case_seconds": None if self.worker.limit == LIMIT_SECONDS else self.worker.limit,
        }

    @property
    def deaths(self) -> int:
        """As `Executor` says."""
        return self.worker.deaths

    def close(self) -> None:
        """As `Executor` says."""
        self.worker.close()
