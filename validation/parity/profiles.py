"""How many cases an op gets."""

import dataclasses

from validation.errors import UsageError

# How many cases of an op may end their process before the rest is left; and of the calls that it must refuse.
MAX_DEATHS = 5


@dataclasses.dataclass(frozen=True)
class Profile:
    """How many cases an op gets.

    Attributes:
        name: quick, default or nightly.
        per_corner: cases forced into each declared corner.
        free: cases drawn freely besides.
    """

    name: str
    per_corner: int
    free: int


PROFILES = {p.name: p for p in (Profile("quick", 1, 60), Profile("default", 2, 200), Profile("nightly", 10, 10_000))}


def profile_named(name: str) -> Profile:
    """The profile of that name; UsageError if there is none."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}, expected one of: {', '.join(PROFILES)}")
    return PROFILES[name]
