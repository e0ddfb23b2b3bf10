"""A run folder as one self-contained HTML file."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from validation import files
from validation.record import Level, Record, read_run
from validation.report import drift_section, fault_section, op_section, page, sample_section, summary
from validation.report.pull_request import pull_request_text
from validation.report.unfinished import left_of
from validation.run_plan import RunState
from validation.verdict import UNREACHED, Status

# To add a section, write a file with such a function and list it here.
SECTIONS: tuple[Callable[[Path, Sequence[Record]], page.Section | None], ...] = (
    op_section.section,
    drift_section.section,
    sample_section.section,
    fault_section.section,
)
# Appended to a model's name in the overview, where one model has several rows.
_KINDS = {**dict.fromkeys(Level, ""), Level.MODEL: ", drift", Level.SAMPLE: ", samples"}

MAX_OTHERS = 8  # further cases listed with each kind of failure; all of them are in records.jsonl


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder: what was judged, what failed, then each op and sample.

    The file needs nothing beside it and no network. It is replaced as a whole or not at all.

    Returns:
        The path of the file.

    Raises:
        UsageError: the folder is not a run folder, or the file cannot be written.
    """
    environment, records = read_run(folder)
    left = left_of(RunState.read(folder), records)
    verdict, sentence = summary.headline(records, left)
    sections = [section for make in SECTIONS if (section := make(folder, records)) is not None]
    script = page.source("report.js")
    groups = summary.not_passed(records)
    text = page.render(
        "report.html",
        environment=environment,
        run=folder.resolve().name,
        verdict=verdict,
        sentence=sentence,
        judged=_judged(records),
        paste=pull_request_text(environment, records, left),
        note="" if left.unfinished else left.text,
        rows=summary.rows(records, left),
        kinds=_KINDS,
        failures=[group for group in groups if group.status.failed],
        inconclusive=[group for group in groups if group.status is Status.INCONCLUSIVE],
        not_run=[group for group in groups if group.status in UNREACHED],
        sections=sections,
        linked=frozenset().union(*(section.anchors for section in sections)),
        max_others=MAX_OTHERS,
        style="\n".join([page.source("report.css"), *(section.style for section in sections)]),
        script=script,
        # The browser runs this script alone, whatever text a record holds.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = folder / "report.html"
    files.write_text(path, text)
    return path


def _judged(records: Sequence[Record]) -> str:
    """The op sets, and the ops and models in which they were judged."""
    here = [record for record in records if record.level not in (Level.RUN, Level.FAULT)]
    sets = ", ".join(sorted({record.op_set for record in here}))
    ops = {record.subject for record in here if record.level is Level.OP}
    models = sorted({record.subject for record in here if record.level is not Level.OP})
    return f"{sets} in {' and in '.join([summary.counted(len(ops), 'op')] * bool(ops) + models)}" if here else ""
