"""The profiles of a sweep: how many cases an op gets."""

import dataclasses

from validation.errors import UsageError

# A sweep leaves the rest of an op's cases after this many ended their process; likewise of the calls to refuse.
MAX_DEATHS = 5


@dataclasses.dataclass(frozen=True)
class Profile:
    """Numbers of cases of an op.

    Attributes:
        name: quick, default or nightly.
        per_corner: cases forced into each declared corner.
        free: freely drawn cases.
        calls: calls that are judged or compared, at least (`validation.parity.repeats`); 0: those of the cases.
        whole: whether the real models' sites are judged at full size where PTX is executed too; on a GPU they always
            are, and the interpreter would take hours.
    """

    name: str
    per_corner: int
    free: int
    calls: int = 0
    whole: bool = False


# 690 calls show a fault in one call of 300 with probability 0.9.
PROFILES = {
    p.name: p
    for p in (Profile("quick", 1, 60), Profile("default", 2, 200, 690), Profile("nightly", 10, 10_000, whole=True))
}


def profile_named(name: str) -> Profile:
    """The profile of that name; UsageError if there is none."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}, expected one of: {', '.join(PROFILES)}")
    return PROFILES[name]
