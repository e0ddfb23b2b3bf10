"""The contract of an executor, which runs candidates for parity. Implementations are files beside it."""

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from validation.cases.case import Case
from validation.cases.errors import BadCall
from validation.device import Device
from validation.ops import OpSet
from validation.verdict import Status, Verdict

# The statuses of a candidate that ended the process that runs it.
DEATHS = frozenset({Status.TIMEOUT, Status.CRASHED})

# Modules whose ops are ours.
OURS = ("fused_ops", "reference_ops", "validation.faults", "validation.controls")


@dataclasses.dataclass(frozen=True)
class Death:
    """How a process ended before it answered.

    Attributes:
        status: one of `DEATHS`, or NOT_RUN: it was ended, for the device is too slow for the case.
        reason: in words, with the Python line that was running.
    """

    status: Status
    reason: str


@dataclasses.dataclass(frozen=True)
class Executor(ABC):
    """Runs the candidates of one op set on one device.

    Attributes:
        ops: the op set.
        device: where its kernels run.
    """

    ops: OpSet
    device: Device

    @abstractmethod
    def judge(self, case: Case, *, grad: bool = False) -> Verdict:
        """Call the case's op and judge the result.

        Args:
            case: the case; the op set provides its op.
            grad: pass each floating-point tensor as an ``nn.Parameter`` under ``torch.no_grad()``, by keyword;
                otherwise the case's seed decides the form of the call (`validation.judge.calls`).
        """

    @abstractmethod
    def repeated(self, case: Case, calls: int) -> Verdict:
        """Call the case's op several times with the same arguments; NOT_REPRODUCIBLE if one gives other bits.

        Args:
            case: a case that the op set passes.
            calls: how many in all.
        """

    @abstractmethod
    def not_refused(self, bad: BadCall) -> str | Death:
        """Describe what the op did with a call that it must refuse; "" if it refused it."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The command line options, beside ``--ops`` and the device, that give this executor; None: the default."""

    @property
    @abstractmethod
    def deaths(self) -> int:
        """How many processes the candidates have ended so far."""

    @abstractmethod
    def print_to(self, path: Path) -> None:
        """Lead what candidates print to a file, if they run in a process of their own."""

    @abstractmethod
    def close(self) -> None:
        """End the running processes; a later call starts new ones."""


def isolated_by_default(origin: str) -> bool:
    """Whether the op set named by ``--ops`` runs in a process of its own unless the command line says otherwise."""
    return origin.partition(":")[0] not in OURS
