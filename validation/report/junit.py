"""JUnit XML, which CI systems show beside their own results.

There is one test case for each op (or model), op set and dtype, not one for each record: CI systems follow a test
through its history by its name, and drawn cases have no name that the next run would use again; thousands of passing
ones would only bury the failure. The test case contains its failures in full.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from validation import files
from validation.record import Record
from validation.report import summary
from validation.report.unfinished import NOTHING, Left
from validation.verdict import UNREACHED


def write_junit(records: Sequence[Record], path: Path, left: Left = NOTHING) -> None:
    """Write JUnit XML: failures as ``failure``; inconclusive verdicts, an empty and an unfinished run as ``error``.

    Args:
        records: of one run.
        path: of the file.
        left: what the run was to judge and has not.

    Raises:
        UsageError: the file cannot be written; nothing half written is left.
    """
    root = ET.Element("testsuites", name="validation")
    suites: dict[str, list[ET.Element]] = {}
    for level, op_set, subject, dtype in sorted({_key(record) for record in records}):
        here = [record for record in records if _key(record) == (level, op_set, subject, dtype)]
        name = f"{subject}[{dtype}]" if dtype else subject
        suites.setdefault(level, []).append(_test_case(f"{level}.{op_set}".strip("."), name, here))
    verdict, sentence = summary.headline(records, left)
    if sentence == summary.NOT_JUDGED or left.unfinished:
        empty = ET.Element("testcase", classname="run", name="judged", time="0.000")
        ET.SubElement(empty, "error", type=verdict, message=sentence)
        suites.setdefault("run", []).append(empty)
    for name, cases in suites.items():
        suite = ET.SubElement(root, "testsuite", name=name)
        suite.extend(cases)
        _count(suite, cases)
    _count(root, [case for cases in suites.values() for case in cases])
    ET.indent(root)
    files.write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n")


def _key(record: Record) -> tuple[str, str, str, str]:
    return str(record.level), record.op_set, record.subject, record.dtype


def _test_case(classname: str, name: str, records: list[Record]) -> ET.Element:
    seconds = sum(sum(record.seconds.values()) for record in records)
    case = ET.Element("testcase", classname=_valid(classname), name=_valid(name), time=f"{seconds:.3f}")
    groups = summary.not_passed(records)
    for tag, failed in (("failure", True), ("error", False)):
        of_tag = [group for group in groups if group.status.failed is failed and group.status.judged]
        if of_tag:
            first = of_tag[0].records[0]
            element = ET.SubElement(case, tag, type=str(first.status), message=_valid(first.reason))
            element.text = _valid("\n\n".join(map(_group_text, of_tag)))
            break  # many readers take only the first result of a test case, and a failure outweighs a doubt
    used = summary.percent(summary.worst(records, "arithmetic_percent"))
    text = f"{summary.counted(len(records), 'record')}, at most {used} % of the arithmetic's allowance"
    not_run = sum(record.status in UNREACHED for record in records)
    text += f", {not_run} not run on this device" * bool(not_run)
    ET.SubElement(case, "system-out").text = text
    return case


def _group_text(group: summary.Group) -> str:
    smallest = group.records[0]
    lines = [f"{group.status}: {summary.counted(len(group.records), 'record')}, the smallest case:"]
    lines.append(summary.failure_text(smallest))
    if smallest.repro:
        lines.append(f"repeat: {smallest.repro}")
    return "\n".join(lines)


def _count(element: ET.Element, cases: list[ET.Element]) -> None:
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    element.set("errors", str(sum(case.find("error") is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _valid(text: str) -> str:
    """The text without the characters that XML 1.0 cannot represent."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
