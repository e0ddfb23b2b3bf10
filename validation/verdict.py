"""What a judge says: the statuses, the tiers in their one order, and a verdict with its numbers."""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum

Number = float | int | str | None
Numbers = dict[str, Number]
Series = dict[str, list[float]]


class Status(StrEnum):
    """What a record says. Everything but the first four is a failure."""

    PASSED = "PASSED"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_EXPRESSED = "NOT_EXPRESSED"  # an adapter's library has no call for it: not judged
    XFAILED = "XFAILED"  # failed as an entry of the xfail file says
    # Of one op.
    COMPILE_ERROR = "COMPILE_ERROR"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    INCORRECT_STRUCTURE = "INCORRECT_STRUCTURE"  # None, a tuple of another length, not a tensor
    INCORRECT_DTYPE = "INCORRECT_DTYPE"
    INCORRECT_SHAPE = "INCORRECT_SHAPE"
    INCORRECT_DEVICE = "INCORRECT_DEVICE"
    STATE_CHANGED = "STATE_CHANGED"  # what torch computes with after the call, for all of the process
    INPUT_MODIFIED = "INPUT_MODIFIED"
    OUTPUT_ALIASES_INPUT = "OUTPUT_ALIASES_INPUT"
    OUT_OF_BOUNDS_WRITE = "OUT_OF_BOUNDS_WRITE"
    NOT_WRITTEN = "NOT_WRITTEN"
    INCORRECT_NONFINITE = "INCORRECT_NONFINITE"
    INCORRECT_NUMERICAL = "INCORRECT_NUMERICAL"
    BIASED = "BIASED"
    NOT_REPRODUCIBLE = "NOT_REPRODUCIBLE"
    BELOW_REQUIRED_TIER = "BELOW_REQUIRED_TIER"
    BAD_INPUT_ACCEPTED = "BAD_INPUT_ACCEPTED"  # or refused without naming the argument, or after writing
    SILENT_FALLBACK = "SILENT_FALLBACK"  # launches its kernel for some inputs only
    # Sampled output.
    SITE_NOT_REACHED = "SITE_NOT_REACHED"
    MISSING_LATENTS = "MISSING_LATENTS"  # fewer than the decoder was trained with
    NO_SURFACE = "NO_SURFACE"  # the field has one sign everywhere
    DEGENERATE_MESH = "DEGENERATE_MESH"  # no faces, or flat
    INCORRECT_FRAMES = "INCORRECT_FRAMES"  # count, size or rate differ
    BELOW_FLOOR = "BELOW_FLOOR"
    OUTSIDE_BAND = "OUTSIDE_BAND"
    # The run itself.
    CORNER_NOT_REACHED = "CORNER_NOT_REACHED"
    BFLOAT16_NOT_JUDGED = "BFLOAT16_NOT_JUDGED"
    FAULT_SURVIVED = "FAULT_SURVIVED"  # a planted fault that no check caught
    FAULT_MISNAMED = "FAULT_MISNAMED"  # a planted fault that no check caught which names it
    XFAIL_UNUSED = "XFAIL_UNUSED"  # an entry of the xfail file that no failure matched

    @property
    def failed(self) -> bool:
        """True for every status that must turn a run red."""
        return self not in (Status.PASSED, Status.INCONCLUSIVE, Status.NOT_EXPRESSED, Status.XFAILED)


# The order in which reports list statuses: that of their declaration. What the judge asks first is in its `STAGES`.
REPORT_ORDER = tuple(Status)


class Tier(StrEnum):
    """How near a candidate comes to the path that it replaces; from the strictest to the loosest."""

    BIT_EXACT = "bit-exact"  # equal to the reference path to the bit
    LOSSLESS = "lossless"  # no further from the truth than the reference path
    CLOSE = "close"  # within the error budget

    def meets(self, required: "Tier | str") -> bool:
        """Whether what was reached is as strict as what is required, or stricter."""
        return TIERS.index(self) <= TIERS.index(Tier(required))

    @classmethod
    def loosest(cls, tiers: Iterable["Tier | str | None"]) -> "Tier | None":
        """The loosest of some tiers, those that are None left out; None where there is none."""
        found = [TIERS.index(cls(tier)) for tier in tiers if tier is not None]
        return TIERS[max(found)] if found else None


TIERS = tuple(Tier)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says of one comparison; the fields are those of a `validation.record.Record`.

    Attributes:
        status: passed, inconclusive, or how it failed.
        check: the check that decided.
        reason: in one sentence, with its numbers.
        tier: reached; None where it failed or has none.
        numbers: scalars by name. series: lists of numbers by name.
        lines: further lines of a failure's message.
        seconds: wall-clock seconds by stage.
    """

    status: Status
    check: str
    reason: str
    tier: Tier | None = None
    numbers: Numbers = dataclasses.field(default_factory=dict)
    series: Series = dataclasses.field(default_factory=dict)
    lines: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
