"""Samples, and the rungs on which two of them are compared."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from validation.verdict import Numbers, Series, Status


class SampleError(Exception):
    """A sample cannot be finished: its output is invalid, and nothing further can be made from it.

    Attributes:
        status: the status of its `Record`.
        check: the check that found it, such as a rung's name.
        numbers, series: findings for the record.
    """

    def __init__(
        self,
        status: Status,
        check: str,
        reason: str,
        numbers: Mapping[str, float | int | str | None] | None = None,
        series: Mapping[str, list[float]] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.check = status, check
        self.numbers, self.series = dict(numbers or {}), dict(series or {})


@dataclasses.dataclass(frozen=True)
class Sample:
    """The result of one sampling, as far as it got.

    Attributes:
        latents: after each denoising step, on the CPU.
        made: what was made from them, by rung name. The first rung's is a numpy array, the last one computed on
            the device.
        problem: why it ends early.
        seconds: wall-clock seconds by stage; a stage that was not reached is left out.
        peak_bytes: peak memory during sampling: allocated on the GPU, resident on the CPU.
        calls: calls of each mounted site. forwards: forwards of the denoiser.
    """

    latents: list[Tensor]
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: SampleError | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_bytes: int = 0
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    forwards: int = 0


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that says how far apart two samples are on a rung.

    Attributes:
        name: its key in `Record.numbers`. label: its heading in a table. unit: such as "dB", or "".
        better: whether a low or a high value is nearer.
        required: a file of gates must bound it.
    """

    name: str
    label: str
    unit: str
    better: Literal["low", "high"]
    required: bool = False


class Rung(ABC):
    """One form of a sample, and how two of that form are compared.

    Attributes:
        name: for ``--until``, and the key in `Sample.made`.
        stage: the key in `Sample.seconds` for the time to make it.
        check: the record's check if its gates decide; by default its name.
        measures: what `compare` returns and gates may bound, in the order in which failures are reported.
    """

    name: ClassVar[str]
    stage: ClassVar[str] = "decode"
    check: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Set a rung's check to its name, unless the class defines one."""
        super().__init_subclass__(**options)
        if not cls.check:
            cls.check = cls.name

    @abstractmethod
    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """Return the measures and any further numbers, and series; a measure that does not apply is None.

        Raises:
            SampleError: they cannot be compared.
        """

    def require(self, _made: Any) -> None:
        """Raise SampleError if no later rung can be made from ``_made``; no check by default."""
        return

    def demands(self, _numbers: Numbers) -> list[str]:
        """Messages for what is wrong regardless of the gates; none by default."""
        return []

    def words(self, numbers: Numbers) -> str:
        """The measures, for the sentence on a sample that passed."""
        return ", ".join(f"{m.label} {numbers[m.name]:.3g} {m.unit}".rstrip() for m in self.measures[:2])

    def worst(self, _numbers: Numbers) -> str:
        """The worst place, for the message of a failure; "" by default."""
        return ""

    def same(self, _made: Any) -> str:
        """Subject and verb of the sentence on samples that are equal bit for bit."""
        return f"the {self.name} is"


@dataclasses.dataclass(frozen=True)
class Player:
    """How to show artifacts: see ``players`` in `validation.samples.model`."""

    role: str
    unit: str
    rate: float
    width: int | None = None
    captions: list[str] | None = None
    worst: int | None = None


@dataclasses.dataclass(frozen=True)
class Kept:
    """The files written for some samples.

    Attributes:
        artifacts: files by role, relative to the run folder.
        numbers: for the record. seconds: by stage.
    """

    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    numbers: Numbers = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def as_number(value: object) -> float:
    """Convert to float; NaN for anything that is not a number."""
    return float(value) if isinstance(value, (int, float)) else math.nan
