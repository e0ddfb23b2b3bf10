"""What changed from one run folder to another, record by record.

Records are matched by level, subject, op set and case (by check if they have no case); a case that occurs several
times in a run is matched in order. Wall-clock seconds and peak memory (``*_peak_mib``) are not results and are left
out. A changed environment (commit, versions, device, seed) is reported, but is not a difference by itself.
"""

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from validation.files import finite_json
from validation.record import Environment, Level, Record, read_run

SHOWN = 3  # differences of one op or model, in the text


class Kind(StrEnum):
    """Which part of a record changed."""

    GONE = "gone"  # only the old run has the record
    NEW = "new"  # only the new run has it
    VERDICT = "verdict"
    TIER = "tier"
    CHECK = "check"
    NUMBER = "number"
    SERIES = "series"
    BITS = "bits"  # the content of an artifact
    CORNERS = "corners"
    CASE = "case"  # a sample's or a model's case changed, and the rest matches
    TEXT = "text"  # reason, message, repeat line


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that changed.

    Attributes:
        kind: which part of the record changed.
        level, subject, op_set: the record's.
        about: the record's case in a few words, or its check.
        what: the name of the number, series, artifact or field; "" for a whole record.
        old, new: the two values as JSON; None where a side has none.
        text: the change in words.
    """

    kind: Kind
    level: Level
    subject: str
    op_set: str
    about: str
    what: str
    old: Any
    new: Any
    text: str


@dataclasses.dataclass(frozen=True)
class Diff:
    """Two runs compared.

    Attributes:
        old, new: the run folders.
        records: how many records each has.
        changed: how many matched records differ.
        differences: in the old run's order, new records last.
        environment: the fields of `Environment` that differ, old and new; start and command line left out.
    """

    old: Path
    new: Path
    records: tuple[int, int]
    changed: int
    differences: list[Difference]
    environment: dict[str, tuple[Any, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """How many differences there are of each kind."""
        found = Counter(difference.kind for difference in self.differences)
        return {str(kind): found[kind] for kind in Kind if found[kind]}

    def lines(self) -> Iterator[str]:
        """A headline, the counts by kind, and the first differences of each op or model."""
        gone, new = (self.counts.get(kind, 0) for kind in (Kind.GONE, Kind.NEW))
        same = self.records[0] - gone - self.changed
        yield f"{self.old} -> {self.new}: {'something' if self.differences else 'nothing'} changed"
        yield f"{same:,} of {self.records[0]:,} records are equal; {self.changed:,} changed, {gone:,} gone, {new:,} new"
        if self.differences:
            yield "differences by kind: " + ", ".join(f"{kind} {count:,}" for kind, count in self.counts.items())
        for name, (before, after) in self.environment.items():
            yield f"another environment: {name} {before!r} -> {after!r}"
        groups: dict[tuple[Level, str, str], list[Difference]] = defaultdict(list)
        for difference in self.differences:
            groups[difference.level, difference.subject, difference.op_set].append(difference)
        for (level, subject, op_set), found in groups.items():
            yield f"{' '.join(filter(None, (subject, op_set)))} ({level}): {len(found):,}"
            # One record may differ in a dozen numbers: the gravest kinds first.
            for difference in sorted(found, key=lambda difference: list(Kind).index(difference.kind))[:SHOWN]:
                yield f"  {difference.about}: {difference.text}"
            if len(found) > SHOWN:
                yield f"  and {len(found) - SHOWN:,} more"

    def to_json(self) -> str:
        """All fields and `counts` as strict JSON, without NaN or Infinity."""
        data = dataclasses.asdict(self) | {"old": str(self.old), "new": str(self.new), "counts": self.counts}
        return finite_json(data)


def diff(old: Path, new: Path) -> Diff:
    """Compare two run folders.

    Raises:
        UsageError: one is no run folder, or a file in it is damaged.
    """
    (old_environment, old_records), (new_environment, new_records) = read_run(old), read_run(new)
    pairs, _, added = match(old_records, new_records)
    matched = {id(record): other for record, other in pairs}
    differences, changed = [], 0
    for record in old_records:
        if (other := matched.get(id(record))) is None:
            differences.append(_difference(record, Kind.GONE, "", record.status, None, f"gone (was {record.status})"))
        else:
            found = list(_compare(old, record, new, other))
            differences += found
            changed += bool(found)
    for record in added:
        differences.append(_difference(record, Kind.NEW, "", None, record.status, f"new ({record.status})"))
    environment = {
        field.name: pair
        for field in dataclasses.fields(Environment)
        if field.name not in ("started", "command")
        and (pair := (getattr(old_environment, field.name), getattr(new_environment, field.name)))[0] != pair[1]
    }
    return Diff(old, new, (len(old_records), len(new_records)), changed, differences, environment)


def match(
    old: Sequence[Record], new: Sequence[Record]
) -> tuple[list[tuple[Record, Record]], list[Record], list[Record]]:
    """Pair the records about the same thing; returns the pairs, then those of the old and of the new run alone."""
    pairs: list[tuple[Record, Record]] = []
    for key in (_exact, _without_check, _sampled):
        waiting: dict[Hashable, list[Record]] = defaultdict(list)
        for record in reversed(new):
            waiting[key(record)].append(record)
        found = [(record, waiting[key(record)].pop() if waiting[key(record)] else None) for record in old]
        pairs += [(record, other) for record, other in found if other is not None]
        taken = {id(other) for _, other in pairs}
        old = [record for record, other in found if other is None]
        new = [record for record in new if id(record) not in taken]
    return pairs, list(old), list(new)


def _exact(record: Record) -> tuple[str, ...]:
    return record.level, record.subject, record.op_set, json.dumps(record.case, sort_keys=True), record.check


def _without_check(record: Record) -> tuple[str, ...]:
    # In a record about a whole model or run the check says what was asked; elsewhere it is part of the answer.
    asked = record.level in (Level.MODEL, Level.RUN) or not record.case
    return _exact(record) if asked else _exact(record)[:-1]


def _sampled(record: Record) -> tuple[str, ...]:
    """The key of a sample (prompt, seed) or a model (check) without the rest of its case, which may have changed."""
    if record.level not in (Level.MODEL, Level.SAMPLE):
        return _exact(record)
    prompt = [str(record.case.get(name)) for name in ("prompt_name", "seed")]
    last = [record.check] if record.level is Level.MODEL else prompt
    return record.level, record.subject, record.op_set, *last


def _compare(old_folder: Path, old: Record, new_folder: Path, new: Record) -> Iterator[Difference]:
    fields = {"status": Kind.VERDICT, "tier": Kind.TIER, "check": Kind.CHECK, "corners": Kind.CORNERS}
    fields |= dict.fromkeys(("dtype", "reason", "message", "repro"), Kind.TEXT)
    for field, kind in fields.items():
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            word = str(kind) if kind is not Kind.TEXT else field
            yield _difference(old, kind, field, before, after, f"{word} {_changed(before, after)}")
    for field in ("measures", "players"):
        # How results are displayed; earlier runs did not record it.
        before, after = getattr(old, field), getattr(new, field)
        if before and after and before != after:
            yield _difference(old, Kind.TEXT, field, before, after, f"{field} {_changed(before, after)}")
    for name in _names(old.case, new.case):
        before, after = old.case.get(name), new.case.get(name)
        if before != after:
            yield _difference(old, Kind.CASE, name, before, after, f"case {name} {_changed(before, after)}")
    for name in _names(old.numbers, new.numbers):
        before, after = old.numbers.get(name), new.numbers.get(name)
        if not name.endswith("_peak_mib") and not _same(before, after):
            yield _difference(old, Kind.NUMBER, name, before, after, f"{name} {_changed(before, after)}")
    for name in _names(old.series, new.series):
        a, b = old.series.get(name), new.series.get(name)
        if not _same(a, b):
            yield _difference(old, Kind.SERIES, name, a, b, f"series {name} {_series_change(a, b)}")
    for role in _names(old.artifacts, new.artifacts):
        names = old.artifacts.get(role), new.artifacts.get(role)
        if names[0] is None or names[1] is None:
            change: str | None = f"{_short(names[0])} -> {_short(names[1])}"
        else:
            change = _file_change(old_folder / names[0], new_folder / names[1])
        if change is not None:
            yield _difference(old, Kind.BITS, role, *names, f"bits of {role}: {change}")


def _difference(record: Record, kind: Kind, what: str, old: Any, new: Any, text: str) -> Difference:
    return Difference(kind, record.level, record.subject, record.op_set, _about(record), what, old, new, text)


def _about(record: Record) -> str:
    case = record.case
    if tensors := case.get("tensors"):
        shapes = ", ".join(f"{name}{spec['shape']} {spec['dtype']}" for name, spec in tensors.items())
        return f"{shapes} values={case.get('values')} seed={case.get('seed')}"
    prompt = [str(case[name]) for name in ("prompt_name", "seed") if name in case]
    return ", ".join([*prompt, *([] if prompt else [record.check])])


def _names(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [*old, *(name for name in new if name not in old)]


def _same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal to the bit; NaN is equal to NaN, 0.0 is not -0.0."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return type(a) is type(b) and bool(a == b)


def _changed(old: Any, new: Any) -> str:
    text = f"{_short(old)} -> {_short(new)}"
    if isinstance(old, float) and isinstance(new, float) and old and math.isfinite(old) and math.isfinite(new):
        text += f" ({(new - old) / abs(old):+.1e} relative)"
    return text


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else repr(value)
    text = " | ".join(text.splitlines())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _series_change(old: list[float] | None, new: list[float] | None) -> str:
    if old is None or new is None or len(old) != len(new):
        return " -> ".join("none" if values is None else f"{len(values)} values" for values in (old, new))
    at = [n for n, (a, b) in enumerate(zip(old, new, strict=True)) if not _same(a, b)]
    return f"[{at[0]}] {_changed(old[at[0]], new[at[0]])}, first of {len(at)} of {len(old)} that differ"


def _file_change(old: Path, new: Path) -> str | None:
    """How two files differ: None where both have the same content, or neither is there."""
    if not (old.is_file() and new.is_file()):
        here = [path.is_file() for path in (old, new)]
        return None if not any(here) else f"the file is only in the {'old' if here[0] else 'new'} run"
    if old.suffix == new.suffix == ".npz":
        try:
            arrays = _read_arrays(old), _read_arrays(new)
        except (OSError, ValueError, EOFError, BadZipFile):
            pass  # damaged: its bytes still say whether it changed
        else:
            changes = (_array_change(name, *(file.get(name) for file in arrays)) for name in _names(*arrays))
            return next((change for change in changes if change is not None), None)
    a, b = old.read_bytes(), new.read_bytes()
    return None if a == b else f"{len(a):,} bytes -> {len(b):,} other bytes"


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _array_change(name: str, old: npt.NDArray[Any] | None, new: npt.NDArray[Any] | None) -> str | None:
    if old is None or new is None or old.dtype != new.dtype or old.shape != new.shape:
        kinds = ("none" if array is None else f"{array.dtype} {list(array.shape)}" for array in (old, new))
        return f"{name} {' -> '.join(kinds)}"
    size = max(old.dtype.itemsize, 1)
    a, b = (np.frombuffer(array.tobytes(), np.uint8).reshape(-1, size) for array in (old, new))
    differ = np.flatnonzero((a != b).any(axis=1))
    if not differ.size:
        return None
    index = [int(i) for i in np.unravel_index(differ[0], old.shape)]
    where = f"{name}{index or ''}"
    return f"{where} {old[tuple(index)]} -> {new[tuple(index)]}, first of {differ.size:,} of {old.size:,} that differ"
