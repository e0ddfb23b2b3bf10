"""Shared by all reports: records gathered into rows and failures, the verdict, numbers as text."""

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from validation.record import Level, Record, numbered_outputs, size_of
from validation.report.unfinished import NOTHING, UNFINISHED, Left
from validation.verdict import REPORT_ORDER, UNREACHED, Status, Tier

NOT_JUDGED = "Nothing was judged: the run holds no op, model or sample record."
NOUNS = {
    Level.OP: "op case",
    Level.MODEL: "model check",
    Level.SAMPLE: "sample",
    Level.FAULT: "check of planted faults",
    Level.RUN: "check of the whole run",
}


def judged(record: Record) -> bool:
    """Whether a record says anything about what was asked for: it was run, and a library had a call for it."""
    return record.status.judged


def verdict_of(records: Sequence[Record]) -> str:
    """PASSED, FAILED or INCONCLUSIVE; a failure outweighs the rest, and nothing judged is a failure."""
    if not any(map(judged, records)) or any(record.status.failed for record in records):
        return "FAILED"
    return "INCONCLUSIVE" if any(record.status is Status.INCONCLUSIVE for record in records) else "PASSED"


@dataclasses.dataclass(frozen=True)
class Row:
    """All results of one op or model with one op set.

    Attributes:
        level: the records' level.
        subject: the op's or the model's name.
        op_set: the candidate op set's name.
        records: at least one.
        checks: records of the run about the op or model as a whole: corners not reached, the tier of the whole op.
        anchor: names the row inside one report.
        cut: whether the run was cut before all of it was judged.
    """

    level: Level
    subject: str
    op_set: str
    records: list[Record]
    checks: list[Record] = dataclasses.field(default_factory=list)
    anchor: str = ""
    cut: bool = False

    @property
    def failed(self) -> int:
        """The number of records that failed."""
        return sum(record.status.failed for record in self.records)

    @property
    def verdict(self) -> str:
        """PASSED, FAILED or INCONCLUSIVE, the checks included; else why no case was judged, or UNFINISHED."""
        every = [*self.records, *self.checks]
        if self.cut and not any(record.status.failed for record in every):
            return UNFINISHED
        if not any(record.status.failed for record in self.checks) and not any(map(judged, self.records)):
            return str(self.records[0].status) if self.records else verdict_of(every)
        return verdict_of(every)

    @property
    def tier(self) -> str | None:
        """The loosest tier among records and checks; None where a record failed or none has a tier."""
        return None if self.failed else Tier.loosest(record.tier for record in [*self.records, *self.checks])

    @property
    def worst_arithmetic(self) -> float | None:
        """The greatest percent of the arithmetic's allowance that a case used."""
        return worst(self.records, "arithmetic_percent")

    @property
    def rms_ratio(self) -> float | None:
        """The candidate's RMS error over the reference path's: geometric mean of the cases, in the worst dtype.

        Cases without an error on one side have no such mean and are left out.
        """
        means = [
            statistics.geometric_mean(ratios)
            for output, dtype in numbered_outputs(self.records)
            if (
                ratios := [
                    r for one in self.records if (r := one.of_output("rms_ratio", output, dtype)) and r < math.inf
                ]
            )
        ]
        return max(means, default=None)

    def of_dtype(self, dtype: str) -> list[Record]:
        """The records of one working dtype."""
        return [record for record in self.records if record.dtype == dtype]


def rows(records: Sequence[Record], left: Left = NOTHING) -> list[Row]:
    """One row per level, op or model, and op set: ops first, in alphabetical order, the run itself last.

    Records of the run about an op or model as a whole go into its row. `left` is what the run has not judged.
    """
    levels = list(Level)
    found: dict[tuple[int, str, str], list[Record]] = {}
    for record in records:
        if record.level is not Level.RUN:
            found.setdefault((levels.index(record.level), record.subject, record.op_set), []).append(record)
    made = [
        Row(
            levels[level],
            subject,
            op_set,
            found[level, subject, op_set],
            anchor=f"{levels[level]}-{n}",
            cut=subject in left.subjects,
        )
        for n, (level, subject, op_set) in enumerate(sorted(found))
    ]
    of_run: list[Record] = []
    for record in records:
        if record.level is Level.RUN:
            row = next((row for row in made if (row.subject, row.op_set) == (record.subject, record.op_set)), None)
            (of_run if row is None else row.checks).append(record)
    return [*made, Row(Level.RUN, "the run itself", "", of_run, anchor="run")] if of_run else made


@dataclasses.dataclass(frozen=True)
class Group:
    """Records that did not pass, of one op or model, one op set and one status.

    Attributes:
        status: their status.
        records: the smallest case first, those without elements and of one channel last.
        subject, op_set: what they are about.
        anchor: names the group inside one report.
        only_where: what an op's failing cases share and its passing ones lack, in words; "" if nothing is known.
    """

    subject: str
    op_set: str
    status: Status
    records: list[Record]
    anchor: str
    only_where: str = ""


def not_passed(records: Sequence[Record]) -> list[Group]:
    """The results to look at: failures in the rows' order, then inconclusive ones and those of `UNREACHED`.

    A model's checks say different things, and so do records without a case: each forms its own group.
    """
    found: dict[tuple[bool, int, str, str, int, bool, int], list[Record]] = {}
    levels = list(Level)
    shared = {(r.subject, r.op_set): str(r.numbers["only_where"]) for r in records if "only_where" in r.numbers}
    for n, record in enumerate(records):
        if record.status.failed or record.status in (Status.INCONCLUSIVE, *UNREACHED):
            where = (levels.index(record.level), record.subject, record.op_set, REPORT_ORDER.index(record.status))
            last = record.level is Level.MODEL and record.check != "teacher-forced"
            alone = -1 if record.case else n
            found.setdefault((not record.status.failed, *where, last, alone), []).append(record)
    groups = []
    for n, key in enumerate(sorted(found)):
        unsure, level, subject, op_set, status, _, _ = key
        of_cases = levels[level] is Level.OP and not unsure
        words = shared.get((subject, op_set), "") if of_cases else ""
        # A sentence about one status says nothing of the others.
        words = words if words.startswith(("fails only", f"{REPORT_ORDER[status]} only")) else ""
        groups.append(
            Group(subject, op_set, REPORT_ORDER[status], sorted(found[key], key=size_of), f"group-{n}", words)
        )
    return groups


def headline(records: Sequence[Record], left: Left = NOTHING) -> tuple[str, str]:
    """The verdict of the whole run, and the same in one sentence with its counts; `left` is what was not judged."""
    if all(record.level is Level.RUN for record in records):
        return (UNFINISHED, f"{NOT_JUDGED} {_sentence(left.text)}") if left.unfinished else ("FAILED", NOT_JUDGED)
    parts = []
    for level, noun in NOUNS.items():
        here = Counter(record.status for record in records if record.level is level)
        failed = sum(n for status, n in here.items() if status.failed)
        others = [(failed, "failed"), *((here[status], word) for status, word in _WORDS.items())]
        of = f" of {counted(here.total(), noun)}"
        parts += [f"{n:,}{of} {word}" for n, word in others if n]
        little, passed = here[Status.MISTRUSTED], here[Status.PASSED]
        if here and not any(n for n, _ in others):
            parts.append(f"{f'{passed:,}{of}' if little else counted(passed, noun)} passed")
        if little:
            parts.append(f"{little:,} tell too little to count")
    if left.unfinished:
        return UNFINISHED, _sentence("; ".join([left.text, *parts]))
    accepted = _accepted(records)
    return verdict_of(records), "; ".join(parts) + "." + (f" {accepted}" if accepted else "")


def _accepted(records: Sequence[Record]) -> str:
    """What passed as `close` alone, where it is further from the truth than the path it replaces; "" if nothing did."""
    close = [
        record
        for record in records
        if record.tier == Tier.CLOSE and record.status is Status.PASSED and record.level in (Level.RUN, Level.MODEL)
    ]
    where: dict[str, str] = {}
    for record in close:
        site, factor = record.numbers.get("first_site"), _number(record, "first_factor")
        ratio = factor if factor is not None else _number(record, "mean_rms_ratio")
        if ratio is not None:
            where[str(site or record.subject)] = f"{ratio:.4g}x"
        elif not where:  # latents outside the lossless band, though no site alone was seen to be further
            where[f"the latents of {record.subject}"] = ""
    places = ", ".join(f"{place} {ratio}".strip() for place, ratio in where.items())
    how = "further from the truth than the path it replaces"
    if any(record.numbers.get("not_shown") for record in close):
        how += ", or not shown to be as near,"
    return f"Close, not lossless: {how} at {places}." if where else ""


# How results that neither passed nor failed are counted in a sentence.
_WORDS = {
    Status.INCONCLUSIVE: "inconclusive",
    Status.XFAILED: "xfailed",
    Status.NOT_EXPRESSED: "not expressed",
    Status.NOT_RUN: "not run on this device",
    Status.NOT_EXECUTED: "not executed",
}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def failure_text(record: Record) -> str:
    """The text shown for a record that did not pass: its message, or its reason if it has none.

    Lines that only repeat the repro command are left out: reports show that command by itself.
    """
    lines = (record.message or record.reason).splitlines()
    text = "\n".join(line for line in lines if not (record.repro and record.repro in line)).strip("\n")
    return text or record.reason


def _number(record: Record, name: str) -> float | None:
    value = record.numbers.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def numbers_of(records: Iterable[Record], name: str) -> list[float]:
    """The number of that name in each record that has it, NaN and infinities included."""
    return [value for record in records if (value := _number(record, name)) is not None]


def worst(records: Iterable[Record], name: str) -> float | None:
    """The greatest value of a number; NaN if one is NaN, which must not hide behind a finite one."""
    values = numbers_of(records, name)
    return math.nan if any(map(math.isnan, values)) else max(values, default=None)


def median(records: Iterable[Record], name: str) -> float | None:
    """The median of a number, without NaN (0/0 for a ratio)."""
    values = [value for value in numbers_of(records, name) if not math.isnan(value)]
    return statistics.median(values) if values else None


def counted(n: int, noun: str) -> str:
    """A count and its noun: ``1 case``, ``2,000 cases``, ``2 checks of the run``."""
    head, space, rest = noun.partition(" of ")
    return f"{n:,} {head}{'' if n == 1 else 's'}{space}{rest}"


def number(value: object, digits: int = 3, zeros: bool = False) -> str:
    """A number as text for a table: a few significant digits, ``inf``, ``NaN``, a dash for None.

    With ``zeros``, trailing zeros are kept, so that a column of numbers lines up.
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    return re.sub(
        r"e([+-])0*", lambda match: "e" + match[1].replace("+", ""), f"{value:{'#' if zeros else ''}.{digits}g}"
    ).rstrip(".")


def percent(value: float | None) -> str:
    """A percent of the budget to one decimal, rounded away from 100, so that the text never crosses the gate."""
    if value is None or not math.isfinite(value) or value >= 1000:
        return number(value)
    return f"{(math.ceil if value > 100 else math.floor)(value * 10) / 10:.1f}"


def seconds(records: Iterable[Record]) -> str:
    """Wall-clock time by stage, summed: ``truth 0.4 s, candidate 12.0 s``; empty where none was measured."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.seconds)
    return ", ".join(f"{stage} {value:,.1f} s" for stage, value in total.items())
