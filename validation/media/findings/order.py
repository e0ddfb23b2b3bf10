"""Faults of order: frozen runs, reversal, a shift by some frames, frames that are dropped and doubled."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from validation.media.findings.finding import MARGIN, ROUNDING, Finding, Floats, Frames, finding, mse, ranges

# Equal frames in a row that make a frozen run; two are a doubled frame.
_FROZEN = 3
# Products of pixels for the distances between all frames: 10 seconds on one core. Where there are more, all frames are
# averaged over squares of pixels first, the frames as they stand too.
_PRODUCTS = 2.0**36
# Values of all frames in memory at a time, as float64: 128 MB for both videos.
_VALUES = 2**23


def find_frozen(reference: Frames, candidate: Frames, left: Sequence[int]) -> list[Finding]:
    """Runs of at least three equal frames where the reference moves.

    The measure is the MSE between a frame and the one before: of the candidate at most a sixteenth (a fourth of the
    motion, squared) of the reference's, whose frames differ by more than a rounding. What stays of the run without its
    first frame is named, as far as it is still to be searched.

    Args:
        reference, candidate: see `search.find`. left: frames to search.
    """
    still = [False]
    steps = [(0.0, 0.0)]
    for t in range(1, len(reference)):
        moved = np.abs(reference[t].astype(np.int16) - reference[t - 1]).max() > 2 * ROUNDING
        steps.append((mse(reference[t], reference[t - 1]), mse(candidate[t], candidate[t - 1])))
        still.append(bool(moved and steps[t][1] * MARGIN**2 <= steps[t][0]))
    runs, t = [], 1
    while t < len(still):
        end = t
        while end < len(still) and still[end]:
            end += 1
        if end - t + 1 >= _FROZEN:
            runs.append((t, end))
        t = max(end, t) + 1
    frames = [t for first, end in runs for t in range(first, end) if t in set(left)]
    if not frames:
        return []
    before = float(np.mean([steps[t][0] for t in frames]))
    after = float(np.mean([steps[t][1] for t in frames]))
    text = f"frames equal the one before: MSE {after:.3g} to it, where the reference moves by {before:.3g}"
    where = ranges(frames, len(reference))
    return [Finding("frozen", tuple(frames), f"frozen ({where}): {text}", before, after)]


def find_whole_order(distances: Floats) -> list[Finding]:
    """A reversed or a shifted video, from the distances between all frames, ``[T, T]``."""
    total, here = len(distances), np.diagonal(distances)
    back = float(distances[range(total), range(total - 1, -1, -1)].mean())
    if MARGIN * back <= here.mean():
        return [finding("reversed", range(total), total, here.mean(), back, "to the reference from its end")]
    shifted = _shifted(distances, here)
    return [shifted] if shifted else []


def find_order(distances: Floats, left: Sequence[int], movable: Sequence[int]) -> list[Finding]:
    """Frames that match better at another index.

    Of single frames the nearest of all is tried, so that the margin is its square, 16: in videos of a wrong op set
    whose motion was a little late, frames were 4 to 6 times nearer to earlier ones.

    Args:
        distances: between all frames, ``[T, T]``.
        left: frames to search. movable: frames that no other fault explains, in order.
    """
    total, here = len(distances), np.diagonal(distances)
    nearest = {t: int(np.argmin(distances[t])) for t in left}
    moved = {t: s for t, s in nearest.items() if s != t and MARGIN**2 * distances[t, s] <= here[t]}
    if not moved:
        return []
    matched = [moved.get(t, t) for t in range(total)]
    counts = Counter(matched[t] for t in movable)
    dropped = [s for s in range(total) if s not in matched]
    doubled = [t for t in movable if counts[matched[t]] > 1 and t > 0 and matched[t] == matched[t - 1]]
    offsets = Counter(s - t for t, s in moved.items()).most_common(3)
    by = ", ".join(f"{count} by {offset:+d}" for offset, count in offsets)
    lists = (("dropped", dropped), ("doubled", doubled))
    more = "".join(f"; {word}: {_listed(frames)}" for word, frames in lists if frames)
    words = [word for word, frames in lists if frames]
    name = f"frames {' and '.join(words)}" if words else "frames out of order"
    undone = float(np.mean([distances[t, s] for t, s in moved.items()]))
    stands = float(here[list(moved)].mean())
    return [finding(name, moved, total, stands, undone, f"at another index ({by})", more)]


def _listed(frames: Sequence[int]) -> str:
    return ", ".join(map(str, frames[:4])) + (f" and {len(frames) - 4} more" if len(frames) > 4 else "")


def _shifted(distances: Floats, here: Floats) -> Finding | None:
    """The finding that all frames have moved by the same number; None unless at least half of the video overlaps.

    No frame may match clearly better where it stands: then frames were dropped and doubled between others.
    """
    total = len(here)
    best: tuple[float, int, float, float] | None = None
    for offset in itertools.chain(range(-(total // 2), 0), range(1, total // 2 + 1)):
        frames = np.arange(max(0, -offset), min(total, total - offset))
        there = distances[frames, frames + offset]
        stands, undone = float(here[frames].mean()), float(there.mean())
        better_here = (MARGIN * here[frames] <= there) & (there > 0)
        if better_here.any() or MARGIN * undone > stands:
            continue
        ratio = undone / stands if stands else math.inf
        if best is None or ratio < best[0]:
            best = ratio, offset, stands, undone
    if best is None:
        return None
    _, offset, stands, undone = best
    side = "later" if offset > 0 else "earlier"
    counted = f"{abs(offset)} frame{'s' if abs(offset) > 1 else ''}"
    return finding(f"off by {counted}", range(total), total, stands, undone, f"to the reference {counted} {side}")


def frame_distances(reference: Frames, candidate: Frames) -> Floats:
    """MSE of each candidate frame (rows) to each reference frame (columns), ``[T, T]``, exact without averaging."""
    total, height, width, channels = reference.shape
    side = math.ceil(math.sqrt(max(1.0, total**2 * height * width * channels / _PRODUCTS)))
    side = min(side, height, width)
    rows = max(1, _VALUES // (total * width * channels * side)) * side
    sums = np.zeros((total, total))
    counted = 0
    for start in range(0, height - side + 1, rows):
        stop = min(start + rows, height - (height - start) % side)
        a, b = (_averaged(frames[:, start:stop], side) for frames in (candidate, reference))
        sums += np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * (a @ b.T)
        counted += a.shape[1]
    # Averages are no whole numbers: what their sums of squares leave of equal frames is 0.
    return np.where(sums < 1e-9 * counted, 0.0, sums) / counted


def _averaged(frames: Frames, side: int) -> Floats:
    """Values around mid-grey, averaged over squares of pixels, float64 ``[T, values]``."""
    total, height, width, channels = frames.shape
    values = frames[:, :, : width - width % side].astype(np.float64) - 128
    if side > 1:
        values = values.reshape(total, height // side, side, width // side, side, channels).mean(axis=(2, 4))
    return values.reshape(total, -1)
