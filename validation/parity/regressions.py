"""Past failures, kept as files: judged first in every run, written by a run that fails."""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from validation.cases.case import Case
from validation.errors import UsageError
from validation.files import FIXTURES
from validation.ops import check_op_name
from validation.parity.one_case import check_fits
from validation.record import Record

REGRESSIONS = FIXTURES / "regressions"


def regressions(op: str) -> Iterator[Case]:
    """The confirmed past failures of one op, kept in ``fixtures/regressions/``.

    A run writes its failures into its folder (`save_failure`). Once a failure is understood and its cause is fixed,
    copy its file to ``fixtures/regressions/`` under a name that says what was wrong: from then on every run judges
    it first, whatever the seed.

    Raises:
        UsageError: a file there holds no case, or its op does not exist or does not take the case; the message names
            the file and the entry.
    """
    for path in sorted(REGRESSIONS.glob("*.json")):
        case = read_case(path)
        try:
            check_op_name(case.op)
        except UsageError as error:
            raise UsageError(f"{path}: case: op: {error}") from error
        if case.op == op:
            _check_kept(path, case.to_json())
            yield case


@functools.cache  # the planted faults of an op share them
def _check_kept(path: Path, text: str) -> None:
    try:
        check_fits(Case.from_json(text), "cpu")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_case(path: Path) -> Case:
    """The case in a file that `read_failure` reads."""
    return read_failure(path)[0]


def read_failure(path: Path) -> tuple[Case, str]:
    """A case from a file: a failure or a regression, as `save_failure` writes them, or a case alone.

    Returns:
        The case, and the value of ``--ops`` when it failed; "" if the file does not say.

    Raises:
        UsageError: the file cannot be read as a case; the message names it and the defect.
    """
    try:
        data = json.loads(path.read_text())
        kept = data if isinstance(data, dict) and "case" in data else {"case": data}
        return Case.from_dict(kept["case"]), str(kept.get("ops", ""))
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}, expected the JSON text of a case or a file that holds it"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}), expected a case, or an object with a case") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def save_failure(folder: Path, record: Record, ops: str) -> Path:
    """Write a failed case to ``failures/<op>-<status>.json`` below a run's folder; `read_failure` reads it.

    There is one file for each op and status, with the smallest of those cases (the shrunk one, if there is one), the
    value of ``--ops`` and the command line that shows the failure again.
    """
    path = folder / "failures" / f"{record.subject}-{record.status.lower()}.json"
    data = {"op_set": record.op_set, "ops": ops, "status": record.status, "reason": record.reason, "case": record.case}
    data["repeat"] = record.repro
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if not path.exists() or _elements(record.case) <= _elements(json.loads(path.read_text())["case"]):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def _elements(case: Mapping[str, Any]) -> int:
    return sum(math.prod(spec["shape"]) for spec in case["tensors"].values())
