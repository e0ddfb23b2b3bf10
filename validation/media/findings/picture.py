"""Faults of single frames: uniform, flipped, channels swapped."""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from validation.media.findings.finding import MARGIN, ROUNDING, Finding, Floats, Frames, finding, ranges

# A uniform colour, rounded, varies by no more than this; a picture must vary by this many times more, in grey levels
# squared, before its loss is a fault: below, two levels of noise could be all there is to lose.
_UNIFORM = ROUNDING**2
_PICTURE = 4 * MARGIN * _UNIFORM

_FLIPS: dict[str, Callable[[Frames], Frames]] = {
    "": lambda frame: frame,
    "upside down": lambda frame: frame[::-1],
    "left and right flipped": lambda frame: frame[:, ::-1],
    "turned by 180 degrees": lambda frame: frame[::-1, ::-1],
}
_COLOURS = ("red", "green", "blue")


def find_uniform(reference: Frames, candidate: Frames, left: Sequence[int]) -> list[Finding]:
    """Frames of one colour where the reference has a picture.

    The measure is the MSE of a frame to its own mean colour: of the candidate a rounding's, of the reference at least
    16 times more.

    Args:
        reference, candidate: see `search.find`. left: frames to search.
    """
    variances = {t: (_variance(candidate[t]), _variance(reference[t])) for t in left}
    frames = tuple(t for t, (own, others) in variances.items() if own <= _UNIFORM and others >= _PICTURE)
    if not frames:
        return []
    own, others = (float(np.mean([variances[t][n] for t in frames])) for n in (0, 1))
    colours = {tuple(np.rint(candidate[t].mean(axis=(0, 1))).astype(int).tolist()) for t in frames}
    colour = f"the colour {min(colours)}" if len(colours) == 1 else f"{len(colours)} colours"
    reason = f"MSE {own:.3g} to {colour}, where the reference has {others:.3g} to its mean colour"
    return [Finding("uniform", frames, f"uniform ({ranges(frames, len(reference))}): {reason}", others, own)]


def _variance(frame: Frames) -> float:
    """Of the channel that varies most."""
    return float(frame.reshape(-1, frame.shape[2]).var(axis=0).max())


def find_turned(reference: Frames, candidate: Frames, nearest: Floats, left: Sequence[int]) -> list[Finding]:
    """Frames that are flipped, or whose channels are swapped, or both: of two faults, neither alone is nearer.

    Of 23 turns the best is taken, so that the margin is its square, 16; and it is taken against the nearest frame of
    the reference at any index, since single frames of a video in another order can look flipped.

    Args:
        reference, candidate: see `search.find`. left: frames to search.
        nearest: MSE of each frame to the nearest of the reference's as it stands, ``[T]``.
    """
    by_name: dict[str, list[tuple[int, float]]] = {}
    for t in left:
        tried = _turned(reference[t], candidate[t])
        name = min(tried, key=lambda name: tried[name])
        if MARGIN**2 * tried[name] <= nearest[t]:
            by_name.setdefault(name, []).append((t, tried[name]))
    found = []
    for name, rows in by_name.items():
        frames, undone = [t for t, _ in rows], float(np.mean([value for _, value in rows]))
        found.append(finding(name, frames, len(reference), nearest[frames].mean(), undone, "undone"))
    return found


def _turned(reference: Frames, candidate: Frames) -> dict[str, float]:
    """MSE with each fault undone, by its name, of a frame ``[H, W, C]``.

    From sums of squares and of products of each pair of channels, which are integers below 2^53 and so exact.
    """
    channels = reference.shape[2]
    x = reference.reshape(-1, channels).astype(np.float64)
    squares = [np.square(frame.astype(np.float64)).sum(axis=(0, 1)) for frame in (reference, candidate)]
    tried = {}
    for flipped, flip in _FLIPS.items():
        products = x.T @ flip(candidate).reshape(-1, channels).astype(np.float64)
        for swapped, order in _orders(channels).items():
            error = squares[0].sum() + squares[1].sum() - 2 * sum(products[m, n] for n, m in enumerate(order))
            if name := ", ".join(filter(None, (flipped, swapped))):
                tried[name] = float(error) / reference.size
    return tried


@functools.cache
def _orders(channels: int) -> dict[str, tuple[int, ...]]:
    """Which of the reference's channels each of the candidate's holds, by the fault's name; "" for the right order."""
    right = tuple(range(channels))
    orders = {"": right}
    for order in itertools.permutations(range(3)) if channels >= 3 else ():
        moved = [_COLOURS[n] for n in range(3) if order[n] != n]
        if moved:
            named = ", ".join(_COLOURS[n] for n in order)
            word = f"{' and '.join(moved)} swapped" if len(moved) == 2 else f"channels in the order {named}"
            orders[word] = (*order, *right[3:])
    return orders
