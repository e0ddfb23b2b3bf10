"""Faults of levels over a whole video: shift, gain, inverted levels, limited range taken for full range and back."""

from collections.abc import Sequence

import numpy as np

from validation.media.findings.finding import MARGIN, Finding, Floats, Frames, finding

# Grey levels, RMS, that a change of levels must reach. A rounding moves a value by one level at most: half of one, in
# the mean, where all values are cut off and not rounded.
_LEAST = 1.5
# Limited range has black at 16 and white at 235 of 255.
_SQUEEZE = 219 / 255
_RANGES = {
    "limited range taken for full range": (_SQUEEZE, 16.0),
    "full range taken for limited range": (1 / _SQUEEZE, -16.0 / _SQUEEZE),
}


def find_levels(reference: Frames, candidate: Frames, left: Sequence[int]) -> list[Finding]:
    """One gain and one shift for each channel that turn the reference's values into the candidate's.

    Fitted once over all frames that are left, so that the slow changes of brightness that two right samples can have
    are no fault. With a gain, what stays must also be at most a fourth of the candidate's own variance: a gain of 0
    alone would bring any two videos nearer.

    Args:
        reference, candidate: see `search.find`. left: frames to search.
    """
    if not left:
        return []
    n, x, y, xx, yy, xy = _sums(reference, candidate, left)
    spread_x, spread_y, both = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2, xy / n - x * y / n**2
    stands = float((xx - 2 * xy + yy).mean() / n)

    def undone(gain: Floats, shift: Floats) -> float:
        error = yy - 2 * gain * xy - 2 * shift * y + gain**2 * xx + 2 * gain * shift * x + n * shift**2
        return float(np.maximum(error, 0).mean() / n)

    def moved(gain: Floats, shift: Floats) -> float:
        """The mean square by which the levels change the reference."""
        return float(((gain - 1) ** 2 * xx / n + 2 * (gain - 1) * shift * x / n + shift**2).mean())

    one, least = np.ones_like(x), _LEAST**2
    alone = one, (y - x) / n
    gain = np.divide(both, spread_x, out=one.copy(), where=spread_x > 0)
    fitted = gain, (y - gain * x) / n
    best = undone(*fitted)
    fits = MARGIN * best <= min(stands, float(spread_y.mean()))
    for name, (squeeze, black) in _RANGES.items():
        a, b = squeeze * one, black * one
        # Values below black and above white are cut off: twice the best fit's error, and a rounding's.
        if fits and MARGIN * (rest := undone(a, b)) <= stands and rest <= 2 * best + 1 and moved(a, b) >= least:
            return [finding(name, left, len(reference), stands, rest, "with it undone")]
    for (a, b), right in ((alone, MARGIN * undone(*alone) <= stands), (fitted, fits)):
        if right and moved(a, b) >= least and undone(a, b) <= 2 * best + 1:
            name = "levels inverted" if (a < 0).all() else "level shift" if (a == 1).all() else "gain and level shift"
            gains = "" if (a == 1).all() else f"gain {_listed(a, '.3g')}, "
            said = f"{gains}shift {_listed(b, '+.1f')} grey levels"
            return [finding(name, left, len(reference), stands, undone(a, b), "with it undone", f"; {said}")]
    return []


def _listed(values: Floats, form: str) -> str:
    words = [format(value, form) for value in values]
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def _sums(
    reference: Frames, candidate: Frames, left: Sequence[int]
) -> tuple[int, Floats, Floats, Floats, Floats, Floats]:
    """Count, and sums of x, y, x², y², xy over all pixels of these frames, each ``[C]``; exact up to 2^53."""
    channels = reference.shape[3]
    sums = np.zeros((5, channels))
    for t in left:
        x, y = (frames[t].reshape(-1, channels).astype(np.float64) for frames in (reference, candidate))
        sums += np.stack([values.sum(axis=0) for values in (x, y, x * x, y * y, x * y)])
    x, y, xx, yy, xy = sums
    return len(left) * reference.shape[1] * reference.shape[2], x, y, xx, yy, xy
