"""The search for every fault, in the order in which one would hide another."""

import numpy as np

from validation.media.findings.finding import ROUNDING, Finding, Frames, mse
from validation.media.findings.levels import find_levels
from validation.media.findings.order import find_frozen, find_order, find_whole_order, frame_distances
from validation.media.findings.part import find_parts
from validation.media.findings.picture import find_turned, find_uniform


def find(reference: Frames, candidate: Frames) -> list[Finding]:
    """The faults of a candidate's frames; none where it is right but for roundings.

    A frame that has one fault is not searched for the next: a uniform frame is frozen too, and matches any frame as
    well as any other.

    Args:
        reference, candidate: uint8 ``[T, H, W, C]`` of one shape; may be memory-mapped.

    Raises:
        ValueError: another dtype, or shapes that differ.
    """
    for name, frames in (("reference", reference), ("candidate", candidate)):
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape != reference.shape:
            expected = f"uint8 [T, H, W, C] = {list(reference.shape)}"
            raise ValueError(f"{name} is {frames.dtype} {list(frames.shape)}, expected {expected}")
    errors = np.array([mse(a, b) for a, b in zip(reference, candidate, strict=True)])
    left = [t for t in range(len(reference)) if _furthest(reference[t], candidate[t]) > ROUNDING]
    found: list[Finding] = []

    def keep(findings: list[Finding]) -> None:
        found.extend(findings)
        named = {frame for finding in findings for frame in finding.frames}
        left[:] = [frame for frame in left if frame not in named]

    keep(find_uniform(reference, candidate, left))
    distances = frame_distances(reference, candidate) if len(reference) > 1 and left else None
    if not found and distances is not None:
        # Of a symmetric thing that moves to and fro, single frames of a reversed video look flipped.
        keep(find_whole_order(distances))
    nearest = errors if distances is None else distances.min(axis=1)
    # Both tried over the same frames, and the one kept that leaves less: a flip with a swap can bring an inverted video
    # nearer too, and a gain of each channel one whose channels are swapped.
    turned, levels = find_turned(reference, candidate, nearest, left), find_levels(reference, candidate, left)
    keep(levels if levels and not any(one.undone < levels[0].undone for one in turned) else turned)
    keep(find_frozen(reference, candidate, left))
    # All frames that are no other fault's can have moved, those that are right by chance too.
    named = {frame for finding in found for frame in finding.frames}
    if distances is not None:
        keep(find_order(distances, left, [t for t in range(len(reference)) if t not in named]))
    keep(find_levels(reference, candidate, left) if found else [])
    keep(find_parts(reference, candidate, left))
    return found


def _furthest(a: Frames, b: Frames) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())
