"""Does a failed case fail by itself? If not, its repeat line names the calls before it that matter.

An op may keep something between calls: weights by their address, a tuned buffer, the flags of the call before. Then a
case fails after other cases and passes alone, and so it may if its calls race. So a failed case is judged again in a
new process, which has made no call: alone, then after the case that came before it in the sweep. If it passes both ways
its repeat line is the whole sweep's, with its seed.

A new process takes 0.25 s on the CPU. Only the first failure of a kind is tried, and each that is smaller than those
tried before: reports show the smallest of a kind. The others of a kind get the sweep's line if one that was tried
passed alone.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

from validation.cases.case import Case
from validation.errors import UsageError
from validation.executor import Executor, anew
from validation.parity.repro import case_command
from validation.record import Record, size_of
from validation.verdict import Status, Verdict

# A hang costs the time limit again; of the reference op's own failure the candidate knows nothing.
_NOT_TRIED = frozenset({Status.TIMEOUT, Status.REFERENCE_ERROR})

Kind = tuple[Status, str]


class Alone:
    """The failures of an op's sweep that were tried alone."""

    def __init__(self, executor: Executor, command: str) -> None:
        """Begin a sweep.

        Args:
            executor: runs the sweep's candidates.
            command: the command line that repeats the sweep.
        """
        self._executor, self._command = executor, command
        self._smallest: dict[Kind, tuple[bool, float, int]] = {}
        self._pass: set[Kind] = set()
        self._loads = True  # False: no new process can load the op set, and asking for one takes 0.25 s each time

    def passes(self, status: Status) -> bool:
        """Whether a failure of that status passed alone."""
        return any(kind[0] is status for kind in self._pass)

    def with_repeat_line(self, record: Record, before: Case | None) -> Record:
        """The record of a failed case with the repeat line that shows the failure again, as far as one is known.

        Args:
            record: of the case.
            before: the case that was judged before it; None if it was the first.
        """
        kind = record.status, record.check
        if record.status in _NOT_TRIED:
            return record
        if kind in self._smallest and size_of(record) >= self._smallest[kind]:
            words = f"not tried alone: another case of this sweep with {record.status} passes alone"
            return _with_line(record, words, self._command) if kind in self._pass else record
        case = Case.from_dict(record.case)
        alone = self._last([case])
        if alone is None:
            return record
        self._smallest[kind] = size_of(record)
        if alone.status.failed:
            words = f"alone, in a new process, it is {alone.status}: {alone.reason}"
            return record if alone.status is record.status else _with_line(record, words, record.repro)
        self._pass.add(kind)
        words = "alone, in a new process, it passes"
        after = self._last([before, case]) if before is not None else None
        if before is not None and after is not None and after.status.failed:
            words = f"{words}; after the case before it, it is {after.status}: the op keeps something between calls"
            return _with_line(record, words, case_command(before, case, executor=self._executor))
        also = ", and after the case before it too" if after is not None else ""
        words = f"{words}{also}: earlier calls matter, or chance; what follows repeats the sweep"
        return _with_line(record, words, self._command)

    def holds(self, record: Record) -> bool:
        """Whether the failure of a record that no case of the sweep gave (a shrunk one) shows alone too."""
        alone = self._last([Case.from_dict(record.case)])
        return alone is None or alone.status.failed

    def _last(self, cases: Sequence[Case]) -> Verdict | None:
        """The verdict on the last of some cases, judged one after another in a new process; None if there can be none.

        There can be none for an op set made in memory, or whose files have changed.
        """
        if not self._loads:
            return None
        try:
            fresh = anew(self._executor)
        except UsageError:
            self._loads = False
            return None
        with contextlib.closing(fresh):
            try:
                return [fresh.judge(case) for case in cases][-1]
            except UsageError:  # it died, and the files have changed
                return None


def _with_line(record: Record, words: str, command: str) -> Record:
    lines = [line for line in record.message.splitlines() if not line.startswith("repeat: ")]
    return dataclasses.replace(record, message="\n".join([*lines, words, f"repeat: {command}"]), repro=command)
