"""Samples, and the rungs on which two of them are compared."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from validation.verdict import Numbers, Series, Status


class SampleError(Exception):
    """A sample is none: what came is known, and there is nothing further to make of it.

    Attributes:
        status: what a `Record` says of it.
        check: what found it, such as a rung's name.
        numbers, series: what was found, for the record.
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
    """What one sampling left behind, as far as it was made.

    Attributes:
        latents: after each denoising step, on the CPU.
        made: by rung's name, what was made of them. The first rung's is a numpy array, the last that is computed on
            the device.
        problem: why it ends early.
        seconds: wall-clock seconds by stage; a stage that was not reached is left out.
        peak_bytes: the greatest memory held meanwhile: allocated on the GPU, resident on the CPU.
        calls: calls of each mounted site. forwards: of the denoiser.
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
    """A number that says how far two samples are apart on a rung.

    Attributes:
        name: in `Record.numbers`. label: in a table. unit: such as "dB", or "".
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
        stage: of `Sample.seconds`: making it.
        check: that a record names where its gates decide; its name, unless it says otherwise.
        measures: what `compare` gives and gates may bound, in the order in which failures are told.
    """

    name: ClassVar[str]
    stage: ClassVar[str] = "decode"
    check: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        """A rung's check is named like the rung, unless it says otherwise."""
        super().__init_subclass__(**options)
        if not cls.check:
            cls.check = cls.name

    @abstractmethod
    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """The measures, and whatever else there is to say; a measure that does not apply is None.

        Raises:
            SampleError: they cannot be compared.
        """

    def require(self, _made: Any) -> None:
        """SampleError if nothing further can be made of what was made; nothing by default."""
        return

    def demands(self, _numbers: Numbers) -> list[str]:
        """What is wrong whatever the gates are, in words; nothing by default."""
        return []

    def words(self, numbers: Numbers) -> str:
        """The measures in a sentence that passed."""
        return ", ".join(f"{m.label} {numbers[m.name]:.3g} {m.unit}".rstrip() for m in self.measures[:2])

    def worst(self, _numbers: Numbers) -> str:
        """Where it is worst, for the message of a failure; "" by default."""
        return ""

    def same(self, _made: Any) -> str:
        """What is equal bit for bit where it is, with its verb."""
        return f"the {self.name} is"


@dataclasses.dataclass(frozen=True)
class Player:
    """How artifacts are shown: see ``players`` in `validation.samples.model`."""

    role: str
    unit: str
    rate: float
    width: int | None = None
    captions: list[str] | None = None
    worst: int | None = None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What was written of some samples.

    Attributes:
        artifacts: files by role, relative to the run folder.
        numbers: for the record. seconds: by stage.
    """

    artifacts: dict[str, str] = dataclasses.field(default_factory=dict)
    numbers: Numbers = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def as_number(value: object) -> float:
    """A float, NaN for anything that is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan
