"""The verdict on one pair of files."""

import dataclasses
from pathlib import Path
from typing import Any

from validation.errors import UsageError
from validation.kept.floors import Floors
from validation.kept.kinds import FileError, Kind
from validation.media.findings import Finding
from validation.samples.gates import Gates
from validation.samples.rung import SampleError
from validation.verdict import Numbers, Series, Status, Tier, Verdict


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two files to compare.

    Attributes:
        name: below the two folders, with its suffix; "" for two files.
        reference, candidate: the files; None where a folder lacks it.
        kind: of the reference, or of the candidate where there is no reference.
    """

    name: str
    reference: Path | None
    candidate: Path | None
    kind: Kind


@dataclasses.dataclass(frozen=True)
class Result:
    """A judged pair.

    Attributes:
        pair: the two files.
        verdict: status, reason, numbers and series.
        findings: what is wrong by name.
        bounds: where bounds came from; "" where there were none.
    """

    pair: Pair
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    bounds: str = ""


def judge(pair: Pair, floors: Floors) -> Result:
    """Compare a pair.

    PASSED where the two are equal to the bit, or where all numbers are within bounds that belong to them.
    BROKEN_FRAMES where a fault is seen by name, whatever the bounds. BELOW_FLOOR past a bound. INCONCLUSIVE where
    there are no bounds. The status of the form where files cannot be compared: damaged, or of another count or size;
    nothing is trimmed.

    Raises:
        UsageError: the reference is missing or damaged, or too small to compare; a second reference is.
    """
    kind, rung = pair.kind, pair.kind.rung
    for path, side in ((pair.reference, "reference"), (pair.candidate, "candidate")):
        if path is None:
            other = "candidate" if side == "reference" else "reference"
            reason = f"the {side} has no {pair.name}, which the {other} has"
            return Result(pair, Verdict(Status.MISSING_FILE, "files", reason))
    assert pair.reference is not None
    assert pair.candidate is not None
    try:
        reference = kind.read(pair.reference)
    except FileError as error:
        raise UsageError(f"reference: {error}") from error
    try:
        candidate = kind.read(pair.candidate)
        kind.require_same_form(reference, candidate)
    except FileError as error:
        return Result(pair, Verdict(error.status, rung.name, str(error)))
    if same := kind.same_bits(reference, candidate):
        return Result(pair, Verdict(Status.PASSED, rung.check, f"{same} equal bit for bit", Tier.BIT_EXACT))
    try:
        numbers, series = rung.compare(reference, candidate)
        rung.require(candidate)
    except SampleError as error:
        return Result(pair, Verdict(error.status, error.check, str(error), numbers=dict(error.numbers)))
    except ValueError as error:
        raise UsageError(f"reference: {pair.reference}: {error}") from error
    bounds = floors.of(kind, pair.name, reference)
    return _judged(pair, bounds, numbers, series, tuple(kind.findings(reference, candidate)))


def _judged(pair: Pair, bounds: Gates | str, numbers: Numbers, series: Series, findings: tuple[Finding, ...]) -> Result:
    rung = pair.kind.rung
    gates = bounds if isinstance(bounds, Gates) else Gates("none")
    numbers = numbers | gates.bounds_of(numbers)
    name = "" if isinstance(bounds, str) else gates.name
    words = rung.words(numbers)

    def result(status: Status, check: str, reason: str) -> Result:
        return Result(pair, Verdict(status, check, reason, numbers=numbers, series=series), findings, name)

    if findings:
        # A clause each; with their numbers they follow as lines of their own.
        names = "; ".join(dict.fromkeys(finding.name for finding in findings))
        return result(Status.BROKEN_FRAMES, "findings", f"{names}; {words}")
    failures = [*rung.demands(numbers), *(text for _, text in gates.failures(numbers, [rung]))]
    if failures:
        return result(Status.BELOW_FLOOR, rung.check, f"past the gate: {', '.join(failures)}")
    if isinstance(bounds, str):
        return result(Status.INCONCLUSIVE, rung.check, f"{bounds}; {words}")
    return result(Status.PASSED, rung.check, words)


def as_json(result: Result) -> dict[str, Any]:
    """A result as JSON values, but for numbers that are not finite."""
    verdict, pair = result.verdict, result.pair
    return {
        "name": pair.name,
        "kind": pair.kind.name,
        "reference": None if pair.reference is None else str(pair.reference),
        "candidate": None if pair.candidate is None else str(pair.candidate),
        "status": str(verdict.status),
        "tier": None if verdict.tier is None else str(verdict.tier),
        "check": verdict.check,
        "reason": verdict.reason,
        "findings": [finding.as_json() for finding in result.findings],
        "bounds": result.bounds,
        "numbers": verdict.numbers,
        "series": verdict.series,
    }
