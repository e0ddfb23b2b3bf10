"""What a run set out to judge, written before it judges anything: a run that was cut must not read as a finished one.

A run folder holds ``plan.json`` (a `RunPlan`) from its first moment on, and from its last ``closed.json``, which says
how many records there are. A folder without the second, or with fewer records than it says, is UNFINISHED.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from validation.errors import UsageError
from validation.files import read_json, write_text

PLAN, CLOSED = "plan.json", "closed.json"
NO_PLAN = "no plan: older run, nothing says whether it was finished"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run sets out to judge.

    Attributes:
        ops: the number of cases of each op.
        models: the samples of each model, each named by its prompt and seed.
        faults: the planted faults, each with its seed.
        digests: SHA-256 by name: ``suite`` of our own Python files, and of each file of the op set by its path.
    """

    ops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    models: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    faults: Sequence[str] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``plan.json``; UsageError if it cannot be written."""
        write_text(folder / PLAN, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The plan of a run folder; None if it has none.

        Raises:
            UsageError: the file is damaged.
        """
        if not (folder / PLAN).exists():
            return None
        try:
            read = cls(**read_json(folder / PLAN))
            return dataclasses.replace(read, faults=tuple(read.faults))
        except TypeError as error:
            raise UsageError(f"{folder / PLAN}: {error}, expected the plan of a run") from error


@dataclasses.dataclass(frozen=True)
class RunState:
    """How far a run came.

    Attributes:
        plan: what it set out to judge; None: an older run, which has no plan.
        closed: the number of records that its closing record tells; None without one.
    """

    plan: RunPlan | None
    closed: int | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The state of a run folder.

        Raises:
            UsageError: a file is damaged.
        """
        records = read_json(folder / CLOSED).get("records") if (folder / CLOSED).exists() else None
        if records is not None and not isinstance(records, int):
            raise UsageError(f"{folder / CLOSED}: records is {records!r}, expected their number")
        return cls(RunPlan.read(folder), records)

    def finished(self, records: int) -> bool:
        """Whether a run with so many records was finished; True for an older run, of which nothing says otherwise."""
        return self.plan is None or (self.closed is not None and self.closed <= records)


def close(folder: Path, records: int) -> None:
    """Write ``closed.json``; UsageError if it cannot be written."""
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_text(folder / CLOSED, json.dumps({"ended": ended, "records": records}) + "\n")
