"""Known failures of an op set, in a file that its owners keep: ``--xfail FILE``.

One entry a line; empty lines and lines that begin with ``#`` are skipped::

    rms_norm_scale_shift:INCORRECT_NUMERICAL:bfloat16  # rounds before the modulation, our issue 12
    rotary_embedding:H=0                               # launches with an empty tile
    qk_norm                                            # not ported yet

An entry names an op; after a colon, a failing status or a corner; after another, a dtype. A failure
that an entry matches is reported as ``XFAILED`` and does not fail the run. An entry that matched nothing although
its op was judged fails the run: a repaired failure must leave the file. No entry covers an op whose candidate hung
or crashed so often that the rest of its cases was not judged: they may hold anything.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from validation.cases.case import FLOAT_DTYPES
from validation.cases.corners import declared_corners
from validation.errors import UsageError
from validation.judge import same_bits
from validation.judge.signature import signature_of
from validation.ops import check_op_name
from validation.parity.workloads import workloads
from validation.record import Level, Record
from validation.verdict import Status


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        where: file and line, ``xfail.txt:3``.
        text: the entry as written.
        op: the op's name.
        what: a failing status or a corner; "" for any failure.
        dtype: the working dtype; "" for any.
        reason: the text after the ``#``.
    """

    where: str
    text: str
    op: str
    what: str
    dtype: str
    reason: str

    def matches(self, record: Record) -> bool:
        """Whether the entry covers a failed record."""
        return (
            record.subject == self.op
            and self.what in ("", record.status, *record.corners)
            and self.dtype in ("", record.dtype)
        )


class XFail:
    """The entries of a file, and which of them matched.

    Attributes:
        entries: in the file's order.
        path: the file's path; None if there is no file.
    """

    def __init__(self, entries: tuple[Entry, ...] = (), path: Path | None = None) -> None:
        self.entries, self.path = entries, path
        self._used: set[Entry] = set()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            UsageError: it cannot be read, or a line is no entry; the message names the line.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"--xfail: cannot read {path}: {error}, expected a text file") from error
        entries = [_entry(f"{path}:{n}", line) for n, line in enumerate(lines, 1)]
        return cls(tuple(entry for entry in entries if entry), path)

    def apply(self, record: Record) -> Record:
        """The record, with status ``XFAILED`` if it failed and an entry matches it."""
        matching = [entry for entry in self.entries if record.status.failed and entry.matches(record)]
        if not matching:
            return record
        self._used.update(matching)
        reason = f"expected ({matching[0].reason}): {record.status}: {record.reason}"
        return dataclasses.replace(record, status=Status.XFAILED, reason=reason, tier=None)

    def unused(self, op: str, op_set: str) -> Iterator[Record]:
        """A failed record for each entry of that op that matched nothing so far."""
        for entry in self.entries:
            if entry.op == op and entry not in self._used:
                reason = f"{entry.where}: {entry.text!r} matched no failure, expected one (or the entry gone)"
                yield Record(
                    level=Level.RUN,
                    subject=op,
                    op_set=op_set,
                    status=Status.XFAIL_UNUSED,
                    check="xfail",
                    reason=reason,
                    message=f"{op}  {op_set}  {Status.XFAIL_UNUSED}\n{reason}",
                )


def _entry(where: str, line: str) -> Entry | None:
    text, _, reason = (part.strip() for part in line.partition("#"))
    if not text:
        return None
    if not reason:
        raise UsageError(f"--xfail: {where}: {text!r} has no reason, expected one behind a #")
    op, _, rest = text.partition(":")
    what, _, dtype = rest.rpartition(":") if rest.rpartition(":")[2] in FLOAT_DTYPES else (rest, "", "")
    try:
        check_op_name(op)
    except UsageError as error:
        raise UsageError(f"--xfail: {where}: {error}") from error
    corners = [corner.name for corner in declared_corners(signature_of(op), gpu=True)]
    corners += [workload.name for workload in workloads(op)]
    corners += [f"{same_bits.CORNER}{check}" for check in same_bits.CHECKS]
    failing = [status for status in Status if status.failed]
    if what and what not in (*failing, *corners):
        raise UsageError(
            f"--xfail: {where}: {what!r} is no failure and no corner of {op}, expected one of: "
            f"{', '.join(failing)}; {', '.join(corners)}; or, as the last part, of: {', '.join(FLOAT_DTYPES)}"
        )
    return Entry(where, text, op, what, dtype, reason)
