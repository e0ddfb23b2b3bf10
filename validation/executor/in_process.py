"""Candidates in this process: a debugger reaches them, and a crash ends the run."""

from pathlib import Path
from typing import Any

from validation.cases.case import Case
from validation.cases.errors import BadCall
from validation.executor.base import Executor, isolated_by_default
from validation.judge import refusal
from validation.judge.calls import as_callers_do, requiring_grad
from validation.judge.repeated import judge_repeated
from validation.judge.verdict import judge_call
from validation.verdict import Verdict


class InProcess(Executor):
    """Runs candidates in the process that asks."""

    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        """As `Executor` says; a case that the reference op does not take raises the reference op's exception."""
        candidate = self.ops[case.op]
        candidate = requiring_grad(candidate) if grad else as_callers_do(case, candidate)
        return judge_call(case, candidate, self.device.torch)

    def repeated(self, case: Case, calls: int) -> Verdict:
        """As `Executor` says."""
        return judge_repeated(case, as_callers_do(case, self.ops[case.op]), self.device.torch, calls)

    def not_refused(self, bad: BadCall) -> str:
        """As `Executor` says."""
        return refusal.not_refused(bad, self.ops[bad.case.op], self.device.torch)

    @property
    def options(self) -> dict[str, Any]:
        """As `Executor` says."""
        return {"isolate": False if isolated_by_default(self.ops.origin) else None}

    @property
    def deaths(self) -> int:
        """Always 0: a death would be this process's own."""
        return 0

    def print_to(self, path: Path) -> None:
        """Do nothing: a debugger prints here too."""

    def close(self) -> None:
        """Do nothing: no process was started."""
