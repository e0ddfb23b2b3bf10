"""How many sectors of memory the elements of a strided tensor lie in."""

import math
from collections.abc import Sequence

import numpy as np

from validation.compiled.counters.watch import SECTOR

# Runs of neighbouring elements that are looked at one by one; of more, each is taken to have sectors of its own.
MOST_RUNS = 1 << 24


def sectors_of(first: int, shape: Sequence[int], strides: Sequence[int], size: int) -> int:
    """The number of different sectors of 32 bytes.

    Args:
        first: address of the first element.
        shape, strides: of the tensor; strides in elements, none negative.
        size: bytes of an element.
    """
    if 0 in shape:
        return 0
    dimensions = sorted((stride * size, n) for n, stride in zip(shape, strides, strict=True) if n > 1 and stride)
    run = size
    while dimensions and dimensions[0][0] <= run:
        # What lies closer than the end of the run so far lengthens it.
        stride, n = dimensions.pop(0)
        run = (n - 1) * stride + run
    runs = math.prod(n for _, n in dimensions)
    alone = (first + run - 1) // SECTOR - first // SECTOR + 1
    # Each run begins at the same place in a sector, behind the end of the one before.
    ends = [alone * SECTOR, *(stride * n for stride, n in dimensions)]
    apart = all(stride >= end and stride % SECTOR == 0 for (stride, _), end in zip(dimensions, ends, strict=False))
    if apart or runs > MOST_RUNS:
        return alone * runs
    starts = np.full(1, first, np.int64)
    for stride, n in dimensions:
        starts = (starts[:, None] + stride * np.arange(n, dtype=np.int64)).reshape(-1)
    starts.sort()
    begin, end = starts // SECTOR, (starts + run - 1) // SECTOR + 1
    before = np.concatenate([[0], np.maximum.accumulate(end)[:-1]])
    return int(np.maximum(0, end - np.maximum(begin, before)).sum())
