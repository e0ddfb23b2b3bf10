"""A finding, and the two numbers by which one is told from a rounding."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

MARGIN = 4.0
"""How many times lower (6 dB) the MSE must be with the fault undone.

Noise of mean square n, independent of the picture, adds n to the MSE under every transformation. Of a right video the
MSE as it stands is n and that under a transformation which moves the picture by d is n + d: never lower. Of a
transformed one it is n + d as it stands and n undone: a fault is named where d is at least 3 n, that is, unless noise
hides most of it.
"""

ROUNDING = 1
"""Grey levels by which two roundings of nearly the same number differ at most.

A frame with no value further away than that is not searched: in a still scene a few such values can equal another
frame's by chance.
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault that was seen.

    Attributes:
        name: such as "upside down".
        frames: indices of the candidate's frames that have it, in order.
        reason: in one line, with its numbers.
        as_it_stands, undone: MSE over these frames, in grey levels squared, with the fault and without.
    """

    name: str
    frames: tuple[int, ...]
    reason: str
    as_it_stands: float
    undone: float

    def as_json(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return dataclasses.asdict(self) | {"frames": list(self.frames)}


def finding(
    name: str, frames: Iterable[int], total: int, as_it_stands: float, undone: float, how: str, more: str = ""
) -> Finding:
    """A finding with its reason.

    Args:
        name: see `Finding`.
        frames: see `Finding`. total: how many frames there are.
        as_it_stands, undone: see `Finding`.
        how: what undoes it, after "MSE 100, but 2".
        more: what else is to be said.
    """
    found = tuple(sorted(int(frame) for frame in frames))
    reason = f"{name} ({ranges(found, total)}): MSE {as_it_stands:.3g}, but {undone:.3g} {how}{more}"
    return Finding(name, found, reason, float(as_it_stands), float(undone))


def ranges(frames: Iterable[int], total: int) -> str:
    """Frame numbers in words, such as "all 24 frames" or "frames 3 to 7, 9 of 24"; at most four runs are listed."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    if runs == [[0, total - 1]]:
        return f"all {total} frames" if total > 1 else "the one frame"
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in runs[:4]]
    left = f" and {len(runs) - 4} more runs" if len(runs) > 4 else ""
    one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"frame{'' if one else 's'} {', '.join(words)}{left} of {total}"


def mse(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Mean squared error of two pictures of one shape, in grey levels squared; exact up to 2^53."""
    difference = a.astype(np.int32) - b.astype(np.int32)
    return float(np.square(difference).sum(dtype=np.float64)) / difference.size
