"""What the sections on sampled videos and shapes share: one article a record, the failures of a row first."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from validation.record import Level, Record
from validation.report import page, summary

Made = tuple[dict[str, Any], list[str]]
"""The values of an article beside `common`'s, and the CSS of its images."""


def section(
    folder: Path,
    records: Sequence[Record],
    *,
    title: str,
    template: str,
    prefix: str,
    mine: Callable[[Record], bool],
    make: Callable[[Path, Record, str], Made],
) -> page.Section | None:
    """The section, or None where no sample is its own.

    Args:
        folder: of the run.
        records: of the run.
        title: its heading.
        template: of its body; gets ``samples``.
        prefix: of the articles' names.
        mine: whether a sample belongs to it.
        make: values and CSS of a record's article, which is given a name of its own.
    """
    rows = [row for row in summary.rows(records) if row.level is Level.SAMPLE and mine(row.records[0])]
    if not rows:
        return None
    samples: list[dict[str, Any]] = []
    style: list[str] = []
    for row in rows:
        # Failures first here as well.
        for n, record in enumerate(sorted(row.records, key=lambda r: not r.status.failed)):
            values, css = make(folder, record, f"{prefix}{len(samples)}")
            samples.append({**_common(folder, record), **values, "anchor": row.anchor if n == 0 else ""})
            style += css
    body = page.render(template, samples=samples)
    return page.Section(title, body, frozenset(row.anchor for row in rows), "\n".join(style))


def _common(folder: Path, record: Record) -> dict[str, Any]:
    files = [
        (role, file if (folder / file).is_file() else f"{file} (missing)") for role, file in record.artifacts.items()
    ]
    return {
        "record": record,
        "verdict": summary.verdict_of([record]),
        "title": _title(record),
        "case": json.dumps(record.case, indent=2),
        "files": files,
        "seconds": summary.seconds([record]),
    }


def _title(record: Record) -> str:
    """What was sampled, such as the prompt and the seed, as far as the case says."""
    prompt, seed = (record.case.get(key) for key in ("prompt", "seed"))
    return ", ".join([*([str(prompt)] if prompt else []), *([] if seed is None else [f"seed {seed}"])])


def calls(record: Record) -> list[tuple[str, str]]:
    """The calls of all sites as one number with its label, if the record has any."""
    found = [
        f"{name.removeprefix('calls_')} {summary.number(value)}"
        for name, value in record.numbers.items()
        if name.startswith("calls_")
    ]
    return [("calls of the sites", ", ".join(found))] if found else []
