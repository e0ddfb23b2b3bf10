"""A rectangle of the picture, such as one tile, that differs alone."""

from collections.abc import Sequence

import numpy as np

from validation.media.findings.finding import MARGIN, Finding, Frames, finding

# Grey levels from which a pixel counts as another one: a rounding is one, an encoder's loss a few.
_OTHER = 8
# Sides in pixels from which on a rectangle is a part of the picture, and the most of a frame that it may cover.
_SIDE, _MOST = 8, 0.5
# Sizes of rectangles in one video: that of a tile, and that of one at an edge.
_SIZES = 2
# The share of the rectangle's pixels that differ. Of a disc it would be 0.79, of the sickles of a moved one less, so
# that a thing in the picture which has moved is no such part.
_FILLED = 0.85


def find_parts(reference: Frames, candidate: Frames, left: Sequence[int]) -> list[Finding]:
    """Rectangles outside of which the MSE is at most a fourth, and inside of which nearly all pixels are other ones.

    None where the rectangles of different frames have more than two sizes. Then they hold a thing of the picture that
    moves and that a wrong kernel has drawn otherwise: in 5 of 6 videos of the embedded Helios with a gate left out its
    square or its triangle filled 20 to 50 rectangles of other sizes. A tile keeps its size.

    Args:
        reference, candidate: see `search.find`. left: frames to search.
    """
    boxes: dict[int, tuple[int, int, int, int]] = {}
    measured = []
    for t in left:
        distance = np.abs(reference[t].astype(np.int32) - candidate[t])
        other = distance.max(axis=2) >= _OTHER
        box = _box(other)
        if box is None:
            continue
        top, bottom, first, last = box
        inside = other[top : bottom + 1, first : last + 1]
        if min(inside.shape) < _SIDE or inside.size > _MOST * other.size or inside.mean() < _FILLED:
            continue
        squares = np.square(distance)
        stands = float(squares.mean())
        squares[top : bottom + 1, first : last + 1] = 0
        if MARGIN * (rest := float(squares.mean())) <= stands:
            boxes[t] = box
            measured.append((stands, rest))
    sizes = {(bottom - top, last - first) for top, bottom, first, last in boxes.values()}
    if not boxes or len(sizes) > _SIZES:
        return []
    places = list(dict.fromkeys(boxes.values()))
    top, bottom, first, last = places[0]
    more = f" and {len(places) - 1} other place{'s' if len(places) > 2 else ''}" if len(places) > 1 else ""
    where = f"without rows {top} to {bottom}, columns {first} to {last}{more}"
    stands, rest = np.mean(measured, axis=0).tolist()
    return [finding("one part differs alone", boxes, len(reference), stands, rest, where)]


def _box(other: np.ndarray) -> tuple[int, int, int, int] | None:
    """First and last row and column of the rectangle where most of a mask ``[H, W]`` lies; None for an empty one.

    Its rows have at least half as many pixels as the fullest row, so that some pixels elsewhere do not widen it.
    """
    if not other.any():
        return None
    sides = []
    for axis in (1, 0):
        counts = other.sum(axis=axis)
        full = np.flatnonzero(2 * counts >= counts.max())
        sides += [int(full[0]), int(full[-1])]
    top, bottom, first, last = sides
    return top, bottom, first, last
