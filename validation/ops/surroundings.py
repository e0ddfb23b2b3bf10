"""Process-wide torch state that a candidate may change: restored after each call, and reported.

Truth, baseline and inputs are computed in the candidate's own process. With denormals flushed, the float64 truth reads
float16's smallest numbers as 0, like the candidate that asked for it, and calls it right; with bfloat16 as the default
dtype the inputs are rounded before any op sees them (a fault that shows in 180 of 211 cases showed in 11).
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_SMALLEST, _ONE = 5e-324, 1.0


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """A snapshot of the state that a call may change.

    Attributes:
        dtype: torch's default dtype.
        device: torch's default device.
        flushes: whether this thread treats denormal numbers as 0.
        folder: the working directory; None if it is gone.
    """

    dtype: torch.dtype
    device: torch.device
    flushes: bool
    folder: str | None

    @classmethod
    def now(cls) -> "Surroundings":
        """Take a snapshot of this thread."""
        try:
            folder = str(Path.cwd())
        except OSError:
            folder = None
        return cls(torch.get_default_dtype(), torch.get_default_device(), _SMALLEST * _ONE == 0.0, folder)

    def difference(self, other: "Surroundings") -> str:
        """Describe how a later snapshot differs from this one; "" if it does not."""
        words = []
        if other.dtype != self.dtype:
            words.append(f"torch's default dtype is {str(other.dtype)[6:]}, it was {str(self.dtype)[6:]}")
        if other.device != self.device:
            words.append(f"torch's default device is {other.device}, it was {self.device}")
        if other.flushes != self.flushes:
            words.append(f"denormal numbers are {'' if other.flushes else 'no longer '}flushed to 0")
        if other.folder != self.folder:
            words.append(f"the working directory is {other.folder}, it was {self.folder}")
        return "; ".join(words)

    def put_back(self, other: "Surroundings") -> None:
        """Restore the parts of this snapshot that differ in ``other``, the current one."""
        if other.dtype != self.dtype:
            torch.set_default_dtype(self.dtype)
        if other.device != self.device:
            # None removes the device mode; "cpu" would leave one that slows every call.
            torch.set_default_device(None if self.device.type == "cpu" else self.device)
        if other.flushes != self.flushes:
            torch.set_flush_denormal(self.flushes)
        if other.folder != self.folder and self.folder is not None:
            os.chdir(self.folder)


@dataclasses.dataclass
class Kept:
    """The finding of `kept` at its end.

    Attributes:
        changed: describes the changes; "" if there were none.
    """

    changed: str = ""


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    """Put the surroundings back at the end of the ``with`` block, whether or not it raises."""
    before, found = Surroundings.now(), Kept()
    try:
        yield found
    finally:
        after = Surroundings.now()
        if after != before:
            found.changed = before.difference(after)
            before.put_back(after)
