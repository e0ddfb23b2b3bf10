"""The judge's answers: the statuses, the tiers in their one order, and a verdict with its numbers."""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum

Number = float | int | str | None
Numbers = dict[str, Number]
Series = dict[str, list[float]]


class Status(StrEnum):
    """The outcome of a record. Those of `NOT_FAILED` are no failures."""

    PASSED = "PASSED"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_EXPRESSED = "NOT_EXPRESSED"  # an adapter's library has no call for it: not judged
    NOT_RUN = "NOT_RUN"  # too slow for this device: not judged
    NOT_EXECUTED = "NOT_EXECUTED"  # its compiled kernel does what the suite does not execute: not judged
    XFAILED = "XFAILED"  # failed as an entry of the xfail file says
    MISTRUSTED = "MISTRUSTED"  # right, but nearly all of it is zero, NaN or one number: counts for nothing
    # One op.
    REFERENCE_ERROR = "REFERENCE_ERROR"  # the reference op raised or is wrong: nothing is known about the candidate
    COMPILE_ERROR = "COMPILE_ERROR"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    INCORRECT_STRUCTURE = "INCORRECT_STRUCTURE"  # None, a tuple of another length, not a tensor
    INCORRECT_DTYPE = "INCORRECT_DTYPE"
    INCORRECT_SHAPE = "INCORRECT_SHAPE"
    INCORRECT_DEVICE = "INCORRECT_DEVICE"
    STATE_CHANGED = "STATE_CHANGED"  # the call left process-wide torch state changed
    INPUT_MODIFIED = "INPUT_MODIFIED"
    OUTPUT_ALIASES_INPUT = "OUTPUT_ALIASES_INPUT"
    OUT_OF_BOUNDS_WRITE = "OUT_OF_BOUNDS_WRITE"
    OUT_OF_BOUNDS_READ = "OUT_OF_BOUNDS_READ"  # also where what was read is not used
    MISALIGNED = "MISALIGNED"  # of a compiled kernel: an address is no multiple of the access's size
    RACE = "RACE"  # of a compiled kernel: the result depends on which thread comes first
    UNINITIALISED_READ = "UNINITIALISED_READ"  # of a compiled kernel: shared memory that no thread has written
    ASSERTION_FAILED = "ASSERTION_FAILED"  # of a compiled kernel: a tl.device_assert is false
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
    BROKEN_FRAMES = "BROKEN_FRAMES"  # reordered, frozen, uniform, flipped, other channels or levels, a part alone
    BELOW_FLOOR = "BELOW_FLOOR"
    OUTSIDE_BAND = "OUTSIDE_BAND"
    MISSING_FILE = "MISSING_FILE"  # one of two folders lacks it
    # The run itself.
    CORNER_NOT_REACHED = "CORNER_NOT_REACHED"
    BFLOAT16_NOT_JUDGED = "BFLOAT16_NOT_JUDGED"
    FAULT_SURVIVED = "FAULT_SURVIVED"  # a planted fault that no check caught
    FAULT_MISNAMED = "FAULT_MISNAMED"  # a planted fault that was caught, but by no check that names it
    XFAIL_UNUSED = "XFAIL_UNUSED"  # an entry of the xfail file that no failure matched

    @property
    def failed(self) -> bool:
        """True for every status that must turn a run red."""
        return self not in NOT_FAILED

    @property
    def judged(self) -> bool:
        """False if nothing was judged: a library has no call for it, or this device cannot judge it."""
        return self not in (Status.NOT_EXPRESSED, *UNREACHED)


# What another device may judge.
UNREACHED = (Status.NOT_RUN, Status.NOT_EXECUTED)

NOT_FAILED = frozenset(
    {
        Status.PASSED,
        Status.INCONCLUSIVE,
        Status.NOT_EXPRESSED,
        *UNREACHED,
        Status.XFAILED,
        Status.MISTRUSTED,
    }
)

# Reports list what is worst first: foreign memory, then wrong numbers, then what did not run, then manners. The judge's
# own order of checks is its `STAGES`.
_WORST_FIRST = (
    Status.OUT_OF_BOUNDS_WRITE,
    Status.OUT_OF_BOUNDS_READ,
    Status.MISALIGNED,
    Status.RACE,
    Status.UNINITIALISED_READ,
    Status.ASSERTION_FAILED,
    Status.INPUT_MODIFIED,
    Status.OUTPUT_ALIASES_INPUT,
    Status.CRASHED,
    Status.NOT_WRITTEN,
    Status.INCORRECT_NUMERICAL,
    Status.INCORRECT_NONFINITE,
    Status.BIASED,
    Status.NOT_REPRODUCIBLE,
    Status.STATE_CHANGED,
    Status.INCORRECT_STRUCTURE,
    Status.INCORRECT_DTYPE,
    Status.INCORRECT_SHAPE,
    Status.INCORRECT_DEVICE,
)
REPORT_ORDER = (*_WORST_FIRST, *(status for status in Status if status not in _WORST_FIRST))


class Tier(StrEnum):
    """How near a candidate comes to the path that it replaces; from the strictest to the loosest."""

    BIT_EXACT = "bit-exact"  # equal to the reference path to the bit
    LOSSLESS = "lossless"  # no further from the truth than the reference path
    CLOSE = "close"  # within the error budget

    def meets(self, required: "Tier | str") -> bool:
        """Whether this tier is at least as strict as the required one."""
        return TIERS.index(self) <= TIERS.index(Tier(required))

    @classmethod
    def loosest(cls, tiers: Iterable["Tier | str | None"]) -> "Tier | None":
        """The loosest of some tiers, ignoring None; None if there are none."""
        found = [TIERS.index(cls(tier)) for tier in tiers if tier is not None]
        return TIERS[max(found)] if found else None


TIERS = tuple(Tier)

# What every op set is held to unless ``--require`` asks otherwise: the rule.
DEFAULT_TIER = Tier.LOSSLESS


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one comparison; the fields are those of a `validation.record.Record`.

    Attributes:
        status: passed, inconclusive, or how it failed.
        check: the check that decided.
        reason: in one sentence, with its numbers.
        tier: the tier reached; None if it failed or has none.
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
