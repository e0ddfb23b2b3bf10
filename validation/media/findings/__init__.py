"""What is wrong with the frames of a candidate, by name: order, frozen runs, flips, channels, levels, one part alone.

Frames are uint8 ``[T, H, W, C]``, as files hold them. A finding is made by one rule: the mean squared error (MSE, grey
levels squared) between the two videos is computed as they stand, and once more with the suspected fault undone, and
the second must be at most a `MARGIN`\\ th of the first.
"""

from validation.media.findings.finding import MARGIN, ROUNDING, Finding
from validation.media.findings.search import find

__all__ = ["MARGIN", "ROUNDING", "Finding", "find"]
