"""The table that a command ends with: one row for each op or model, then every kind of failure in full."""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from validation.record import Level, Record
from validation.report import summary
from validation.report.unfinished import NOTHING, Left

WIDTH = 100
_COLUMNS = ("op or model", "op set", "cases", "failed", "arith. %", "RMS x", "tier", "verdict")
_TEXT_COLUMNS = (0, 1, 6, 7)  # the others are numbers, aligned right
_LEGEND = (
    "arith. %: worst share used of what float32 arithmetic may add to the roundings; over 100 fails.",
    "RMS x: RMS error against the float64 truth over the reference path's, geometric mean of the cases",
    "in the worst dtype. tier: the loosest.",
)
_KINDS = {Level.MODEL: " drift", Level.SAMPLE: " samples"}
_COLOURS = {"FAILED": "31", "INCONCLUSIVE": "33", "UNFINISHED": "33", "PASSED": "32"}


def print_table(
    records: Sequence[Record], *, report: Path | None = None, file: TextIO | None = None, left: Left = NOTHING
) -> None:
    """Print the table, the results that did not pass, the verdict, and the report's path.

    Lines fit 100 columns, except repro commands, which stay on one line to be pasted. Coloured only on a
    terminal, and not if NO_COLOR is set.

    Args:
        records: the records of one run, in any order.
        report: the HTML report, named at the end.
        file: where to print; standard output by default.
        left: what the run was to judge and has not.
    """
    file = sys.stdout if file is None else file
    out = _Printer(file)
    rows = summary.rows(records, left)
    if rows:
        _print_rows(out, rows)
    for group in summary.not_passed(records):
        _print_group(out, group)
    verdict, sentence = summary.headline(records, left)
    out.line()
    out.wrapped(f"{verdict}: {sentence}", colour=verdict)
    if left.text and not left.unfinished:
        out.line(left.text)
    if report is not None:
        out.line(f"report: {report}")


def print_text(text: str, *, file: TextIO | None = None) -> None:
    """Print lines without terminal escape sequences; to standard output by default."""
    out = _Printer(sys.stdout if file is None else file)
    for line in text.splitlines():
        out.line(line)


class _Printer:
    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.coloured = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, text: str = "", colour: str = "") -> None:
        # Messages come from candidates: their escape sequences must not reach the terminal.
        text = re.sub(r"[^\S\n]|[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text)
        encoding = self.file.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self.coloured and colour in _COLOURS:
            text = f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
        self.file.write(text + "\n")

    def wrapped(self, text: str, indent: str = "", colour: str = "") -> None:
        for line in text.splitlines():
            hanging = indent + " " * (len(line) - len(line.lstrip()))
            # Does not break at hyphens: 1e-3 and --op stay whole.
            for piece in textwrap.wrap(line.strip(), WIDTH - len(hanging), break_on_hyphens=False) or [""]:
                self.line(hanging + piece if piece else "", colour)


def _print_rows(out: _Printer, rows: list[summary.Row]) -> None:
    cells = [
        (
            row.subject + _KINDS.get(row.level, ""),
            row.op_set,
            f"{len(row.records):,}",
            f"{row.failed:,}",
            summary.percent(row.worst_arithmetic),
            summary.number(row.rms_ratio, zeros=True),
            row.tier or "-",
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    # Only names can be long: they share the width that the numbers leave.
    spare = WIDTH - sum(widths[2:]) - 2 * (len(widths) - 1)
    widths[1] = min(widths[1], max(spare - widths[0], 12))
    widths[0] = min(widths[0], spare - widths[1])

    def text(row: Sequence[str]) -> str:
        return "  ".join(
            _shortened(cell, width).ljust(width) if n in _TEXT_COLUMNS else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    out.line(text(_COLUMNS))
    for row in cells:
        out.line(text(row), colour=row[-1])
    for line in _LEGEND if any(row.worst_arithmetic is not None for row in rows) else ():
        out.line(line)


def _shortened(text: str, width: int) -> str:
    head = (width - 2) // 2
    return text if len(text) <= width else f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def _print_group(out: _Printer, group: summary.Group) -> None:
    smallest, count = group.records[0], len(group.records)
    out.line()
    title = "  ".join(part for part in (group.subject, group.op_set, str(group.status)) if part)
    times = "" if count == 1 else f"  {count:,} times, the smallest case:"
    unsure = not group.status.failed
    out.wrapped(title + times, colour="INCONCLUSIVE" if unsure else "FAILED")
    if group.only_where:
        out.wrapped(group.only_where, indent="  ")
    out.wrapped(summary.failure_text(smallest), indent="  ")
    if smallest.repro:
        out.line(f"  repeat: {smallest.repro}")
