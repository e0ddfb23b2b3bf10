"""Which files are compared with which: two files, or the files of two folders by name."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from validation.errors import UsageError
from validation.files import finite_json
from validation.kept.floors import Floors
from validation.kept.judge import Pair, Result, as_json, judge
from validation.kept.kinds import SUFFIXES, kind_of
from validation.verdict import Status

SCHEMA = 1


def compare(
    reference: Path, candidate: Path, floors: Floors, progress: Callable[[str], None] | None = None
) -> tuple[list[Result], list[str]]:
    """Judge one pair of files, or all pairs of two folders.

    Args:
        reference, candidate: two files, or two folders; files below them are matched by their path.
        floors: bounds.
        progress: called with the name of each pair of a folder.

    Returns:
        A result for each pair, in the order of names, and the names of files that are of no kind.

    Raises:
        UsageError: one is a file and one a folder, a suffix is unknown, or there is nothing to compare.
    """
    for name, path in (("reference", reference), ("candidate", candidate)):
        if not path.exists() and (name == "reference" or reference.is_dir()):
            raise UsageError(f"{name}: no file or folder {path}, expected {_expected(reference)}")
    for path in floors.second:
        if not path.exists():
            raise UsageError(f"--second-reference: no file or folder {path}, expected {_expected(reference)}")
        if path.is_dir() != reference.is_dir():
            raise UsageError(f"--second-reference: {path} is a {_what(path)}, expected a {_what(reference)}")
    if reference.is_dir() != candidate.is_dir():
        raise UsageError(f"candidate: {candidate} is a {_what(candidate)}, expected a {_what(reference)}")
    if not reference.is_dir():
        pairs, left_out = [_pair(reference, candidate)], list[str]()
    else:
        pairs, left_out = _of_folders(reference, candidate)
    floors.require(list(dict.fromkeys(pair.kind for pair in pairs)))
    results = []
    for pair in pairs:
        if progress is not None and pair.name:
            progress(pair.name)
        results.append(judge(pair, floors))
    return results, left_out


def _what(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def _expected(reference: Path) -> str:
    return "a folder" if reference.is_dir() else f"a folder or a file that ends in one of: {', '.join(SUFFIXES)}"


def _pair(reference: Path, candidate: Path) -> Pair:
    kind = kind_of(reference)
    if kind is None:
        raise UsageError(f"reference: {reference} ends in {reference.suffix!r}, expected one of: {', '.join(SUFFIXES)}")
    if candidate.suffix not in kind.suffixes:
        raise UsageError(
            f"candidate: {candidate} ends in {candidate.suffix!r}, expected one of: {', '.join(kind.suffixes)}"
        )
    return Pair("", reference, candidate, kind)


def _of_folders(reference: Path, candidate: Path) -> tuple[list[Pair], list[str]]:
    a, b = (_files(folder) for folder in (reference, candidate))
    pairs, left_out = [], []
    for name in sorted(a | b):
        first = reference / name if name in a else None
        second = candidate / name if name in b else None
        kind = kind_of(first or candidate / name)
        if kind is None:
            left_out.append(name)
        else:
            pairs.append(Pair(name, first, second, kind))
    if not any(pair.reference for pair in pairs):
        raise UsageError(f"reference: {reference} has no file that ends in one of: {', '.join(SUFFIXES)}")
    return pairs, left_out


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def lines(results: Sequence[Result], left_out: Sequence[str]) -> Iterator[str]:
    """One line a pair, one for each of its findings below it, and of several pairs how many have each status."""
    width = max(len(result.pair.name) for result in results)
    for result in results:
        verdict = result.verdict
        name = f"{result.pair.name:{width}}  " if result.pair.name else ""
        yield f"{name}{verdict.status}{f' ({verdict.tier})' if verdict.tier else ''}: {verdict.reason}"
        for finding in result.findings:
            yield f"  {finding.reason}"
    if results[0].pair.name:
        counts = Counter(result.verdict.status for result in results)
        said = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
        yield f"{len(results)} pair{'' if len(results) == 1 else 's'}: {said}"
    if left_out:
        yield f"not compared, of no kind that can be: {', '.join(left_out)}"


def to_json(results: Sequence[Result], left_out: Sequence[str], exit_status: int) -> str:
    """Everything as strict JSON; numbers that JSON lacks become the strings "inf", "-inf", "nan"."""
    data = {
        "schema": SCHEMA,
        "exit_status": exit_status,
        "pairs": [as_json(result) for result in results],
        "left_out": list(left_out),
    }
    return finite_json(data)
