"""The kill matrix of the planted faults: for the terminal, and as the report's section."""

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from validation.record import Level, Record
from validation.report import page, summary


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fault, one check, one column.

    Attributes:
        column: the value regime, or ``whole op``.
        failed: number of cases that the check failed.
        cases: number of all cases.
    """

    column: str
    failed: int
    cases: int

    @property
    def heat(self) -> int:
        """How strongly the cell is coloured, in percent."""
        return round(100 * self.failed / self.cases) if self.cases else 0

    @property
    def mark(self) -> str:
        """One character: a space for no case, a dot for no kill, a digit for tenths of the cases, # for all."""
        if not self.cases:
            return " "
        if not self.failed:
            return "."
        return "#" if self.failed == self.cases else str(max(1, min(9, 10 * self.failed // self.cases)))


@dataclasses.dataclass(frozen=True)
class Line:
    """A fault and one check that caught it.

    Attributes:
        check: the verdict's name; "" if nothing caught the fault.
        named: whether the check names the bug.
        failed, cases: number of cases that the check failed, and of all cases.
        cells: the same numbers by column.
    """

    check: str
    named: bool
    failed: int
    cases: int
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A fault over all its seeds.

    Attributes:
        fault, op, bug: as registered.
        records: one for each seed.
        lines: one for each check that caught it, those that name the bug first; one empty line if none did.
    """

    fault: str
    op: str
    bug: str
    records: tuple[Record, ...]
    lines: tuple[Line, ...]

    @property
    def killed(self) -> int:
        """The number of seeds with which a check that names the bug caught it."""
        return sum(not record.status.failed for record in self.records)

    @property
    def slowest(self) -> int:
        """The greatest number of cases that a kill took."""
        return max(int(sum(record.series["cases"])) for record in self.records)


def matrix(records: Sequence[Record]) -> list[Entry]:
    """The kill matrix of a run's records, by op."""
    by_fault: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.level is Level.FAULT:
            by_fault.setdefault((record.subject, str(record.case["fault"])), []).append(record)
    return [
        Entry(fault, op, str(here[0].case["bug"]), tuple(here), _lines(here))
        for (op, fault), here in sorted(by_fault.items(), key=lambda item: item[0][0])
    ]


def _lines(records: Sequence[Record]) -> tuple[Line, ...]:
    columns, expected = records[0].case["columns"], records[0].case["caught_by"]
    cases = _sums(records, "cases", len(columns))
    checks = {name for record in records for name in record.series} - {"cases"}
    lines = []
    for check in checks or {""}:
        failed = _sums(records, check, len(columns))
        cells = tuple(Cell(*cell) for cell in zip(columns, failed, cases, strict=True))
        lines.append(Line(check, check in expected, sum(failed), sum(cases), cells))
    return tuple(sorted(lines, key=lambda line: (not line.named, -line.failed, line.check)))


def _sums(records: Sequence[Record], name: str, columns: int) -> list[int]:
    return [sum(int(record.series.get(name, [0] * columns)[n]) for record in records) for n in range(columns)]


def print_matrix(records: Sequence[Record], *, file: TextIO | None = None) -> None:
    """Print the kill matrix: a line for each fault and check, a character for each value regime."""
    file = sys.stdout if file is None else file
    entries = matrix(records)
    if not entries:
        return
    columns = [cell.column for cell in entries[0].lines[0].cells]
    seeds = len(entries[0].records)
    letters = [chr(ord("a") + n) for n in range(len(columns))]
    print(f"{'planted fault':44} {'caught by':21} {'records':>12} {'seeds':>6} {''.join(letters)}", file=file)
    op = ""
    for entry in entries:
        if entry.op != op:
            op = entry.op
            print(op, file=file)
        for n, line in enumerate(entry.lines):
            name = f"  {entry.fault:42.42}" if n == 0 else " " * 44
            check = line.check + ("" if line.named else " (!)") if line.check else "SURVIVED"
            count = f"{line.failed:,}/{line.cases:,}"
            killed = f"{entry.killed}/{seeds}" if n == 0 else ""
            print(f"{name} {check:21} {count:>12} {killed:>6} {''.join(cell.mark for cell in line.cells)}", file=file)
    print("\n".join(_legend(entries, dict(zip(letters, columns, strict=True)))), file=file)


def _legend(entries: Sequence[Entry], columns: dict[str, str]) -> list[str]:
    killed = sum(entry.killed == len(entry.records) for entry in entries)
    seeds = summary.counted(len(entries[0].records), "seed")
    lines = [
        "records: those that failed so, of all. Columns: value regimes, with the tenths of their cases that failed",
        "(# all, . none, blank: no case). (!): a verdict that does not name the bug, beside one that does.",
        *textwrap.wrap("  ".join(f"{letter}={name}" for letter, name in columns.items()), 100),
    ]
    if entries[0].records[0].case["first_kill"]:
        lines.append(
            "With several seeds each sweep ends at the first verdict that names the bug: the counts end there."
        )
    lines.append(f"{killed} of {len(entries)} planted faults caught by a check that names them, with {seeds}.")
    return lines


def section(folder: Path, records: Sequence[Record]) -> page.Section | None:  # noqa: ARG001 - all sections take both
    """The section, or None if no fault was planted."""
    entries = matrix(records)
    if not entries:
        return None
    rows = [row for row in summary.rows(records) if row.level is Level.FAULT]
    body = page.render(
        "faults.html",
        groups=[(row, [entry for entry in entries if entry.op == row.subject]) for row in rows],
        columns=[cell.column for cell in entries[0].lines[0].cells],
        seeds=len(entries[0].records),
        first_kill=entries[0].records[0].case["first_kill"],
        killed=sum(entry.killed == len(entry.records) for entry in entries),
        total=len(entries),
    )
    return page.Section("Planted faults", body, frozenset(row.anchor for row in rows), page.source("faults.css"))
