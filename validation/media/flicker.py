"""Flicker: the energy of the differences between successive frames, of a candidate against a reference's.

PSNR of the differences (`metrics.Comparison.psnr_temporal`) says how far the motion is from the reference's; this one
says how much motion there is. A candidate that shimmers has more, one that is frozen or smoothed has less, however far
from the reference its frames are.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Flicker:
    """Energies of a pair.

    Attributes:
        reference, candidate: mean square of the difference from one frame to the next, in the squared units of the
            frames.
        change: of the candidate against the reference, in dB; above 0 where the candidate flickers more.
    """

    reference: float
    candidate: float
    change: float


def flicker(reference: npt.NDArray[Any], candidate: npt.NDArray[Any], data_range: float) -> Flicker | None:
    """Compare the energies of two videos; None for a single frame, which has none.

    To both energies that of 8-bit rounding is added, ``(data_range / 255)^2 / 6``: twice the variance 1/12 of one
    rounding. Otherwise a still reference would make any rounding an infinite change.

    Args:
        reference, candidate: ``[T, H, W, C]``.
        data_range: the distance between black and white.
    """
    if len(reference) < 2:
        return None
    rounding = (data_range / 255) ** 2 / 6
    before, after = _energy(reference), _energy(candidate)
    return Flicker(before, after, 10 * math.log10((after + rounding) / (before + rounding)))


def _energy(frames: npt.NDArray[Any]) -> float:
    sums, before = 0.0, frames[0].astype(np.float64)
    for frame in frames[1:]:
        after = frame.astype(np.float64)
        sums += float(np.square(after - before).sum())
        before = after
    return sums / frames[1:].size
