"""The report's section on ops: numbers, use of the arithmetic's allowance, and coverage."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from validation.record import Level, Record
from validation.report import page, summary
from validation.report.summary import Row

WIDTHS = (1, 16, 128, 1024, 4096)  # lower ends of the classes of row widths


def section(folder: Path, records: Sequence[Record]) -> page.Section | None:  # noqa: ARG001 - all sections take both
    """The section, or None where no op was judged."""
    rows = [row for row in summary.rows(records) if row.level is Level.OP]
    if not rows:
        return None
    everything = [record for row in rows for record in row.records]
    dtypes = sorted({record.dtype for record in everything})
    ops = [
        {
            "row": row,
            "numbers": [_numbers(name, some) for name, some in _by_dtype(row.records)],
            "histogram": page.histogram(summary.numbers_of(row.records, "arithmetic_percent")),
            "unnumbered": sum(not _has_share(record) for record in row.records),
            "coverage": _coverage(row.records, everything, dtypes),
            "corners": sorted(Counter(corner for record in row.records for corner in record.corners).items()),
            "fingerprints": [check.numbers for check in row.checks if "fingerprint_cases" in check.numbers],
            "seconds": summary.seconds(row.records),
        }
        for row in rows
    ]
    body = page.render("ops.html", ops=ops, dtypes=dtypes, few=len(ops) <= 3)
    return page.Section("Ops", body, frozenset(row.anchor for row in rows))


def _by_dtype(records: list[Record]) -> list[tuple[str, list[Record]]]:
    names = sorted({record.dtype for record in records})
    parts = [(name or "no dtype", [r for r in records if r.dtype == name]) for name in names]
    return parts if len(parts) == 1 else [*parts, ("all", records)]


def _has_share(record: Record) -> bool:
    return any(not math.isnan(value) for value in summary.numbers_of([record], "arithmetic_percent"))


def _numbers(name: str, records: list[Record]) -> dict[str, Any]:
    # The signed bias or the bias in magnitude, whichever is greater.
    biases = [b for key in ("bias_ulp", "magnitude_bias_ulp") if (b := summary.median(records, key)) is not None]
    return {
        "name": name,
        "row": Row(Level.OP, "", "", records),
        "rms": summary.median(records, "rms_ulp"),
        "baseline_rms": summary.median(records, "baseline_rms_ulp"),
        "worst_ratio": summary.worst(records, "rms_ratio"),
        "max": summary.worst(records, "max_ulp"),
        "baseline_max": summary.worst(records, "baseline_max_ulp"),
        "bias": max(biases, key=abs, default=None),
        "equal": _equal_share(records),
    }


def _equal_share(records: list[Record]) -> float | None:
    """The percent of all elements that are bit-equal to the reference."""
    pairs = [
        (share, elements)
        for record in records
        for share in summary.numbers_of([record], "equal_share")
        for elements in summary.numbers_of([record], "elements")
    ]
    total = sum(elements for _, elements in pairs)
    return 100 * sum(share * elements for share, elements in pairs) / total if total else None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the coverage table.

    Attributes:
        cases: number of cases drawn.
        failed: number of them that failed.
        used: the worst percent of the arithmetic's allowance among them.
    """

    cases: int
    failed: int
    used: float | None

    @property
    def heat(self) -> int:
        """How strongly the cell is coloured, in percent."""
        known = self.used is not None and not math.isnan(self.used)
        return round(min(max(self.used, 0), 100)) if known and self.used is not None else 0


def _coverage(records: list[Record], everything: list[Record], dtypes: list[str]) -> list[dict[str, Any]]:
    """Rows of the table, grouped by what divides the cases; a cell for each dtype, then one for all."""
    axes: tuple[tuple[str, Callable[[Record], str], list[Record]], ...] = (
        # Regimes of all ops: one that other ops were given and this one was not is a gap worth seeing.
        ("values", _regime, everything),
        ("casting mode", _casting_mode, records),
        ("width", _width, records),
    )
    table = []
    for title, key, among in axes:
        lines = []
        for name in sorted({key(record) for record in among} - {""}, key=_numeric_first):
            here = [record for record in records if key(record) == name]
            by_dtype = [[record for record in here if record.dtype == dtype] for dtype in dtypes]
            lines.append({"name": name, "cells": [_cell(some) for some in (*by_dtype, here)]})
        if lines:
            table.append({"title": title, "lines": lines})
    return table


def _cell(records: list[Record]) -> Cell:
    failed = sum(record.status.failed for record in records)
    return Cell(len(records), failed, summary.worst(records, "arithmetic_percent"))


def _regime(record: Record) -> str:
    return str(record.case.get("values", ""))


def _casting_mode(record: Record) -> str:
    flags = record.case.get("flags")
    return str(flags.get("casting_mode", "")) if isinstance(flags, dict) else ""


def _width(record: Record) -> str:
    """The class of the row width: the last dimension of x, or of q."""
    tensors = record.case.get("tensors")
    spec = tensors.get("x", tensors.get("q")) if isinstance(tensors, dict) else None
    shape = spec.get("shape") if isinstance(spec, dict) else None
    width = shape[-1] if isinstance(shape, list) and shape else None
    if not isinstance(width, int) or width < 1:
        return ""
    n = sum(width >= low for low in WIDTHS)
    if n == len(WIDTHS):
        return f"{WIDTHS[-1]} and more"
    return f"{WIDTHS[n - 1]} to {WIDTHS[n] - 1}"


def _numeric_first(name: str) -> tuple[float, str]:
    head = name.split(" ", 1)[0]
    return (float(head) if head.isdigit() else math.inf, name)
