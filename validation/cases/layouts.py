"""Layouts of tensors in memory, and the units of their strides."""

import math
from collections.abc import Sequence

from validation.cases.case import TensorSpec
from validation.cases.chooser import Chooser

ACTIVATION_LAYOUTS = ("contiguous", "offset1", "gapped", "transposed", "strided_last", "packed", "sliced")
MODULATION_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "chunked", "expanded", "sliced")
ROW_LAYOUTS = ("contiguous", "offset1", "strided_last")
TABLE_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "sliced")
INDEX_LAYOUTS = (*ROW_LAYOUTS, "expanded")
ANGLE_LAYOUTS = ("contiguous", "offset1", "gapped", "strided_last", "expanded", "sliced")
QK_LAYOUTS = ("own", "packed", "same")

# Layout "sliced", x[:, n:]: skips this many tokens of each batch item, or rows of each item's table.
SKIPPED = 16
# The row is one of three (q of a packed qkv), or of six (shift, scale and gate, twice).
PARTS = {"packed": 3, "chunked": 6}

# Any input may have stride 0, but rows of such an activation are indistinguishable: only corners ask for it.
# The layouts "far ...": what is numbered along one dimension begins in the middle of 2 FAR elements and is spread over
# slightly more than FAR. So the last lies past FAR, and an offset that wraps at 32 bits reads poison before the first,
# inside the memory.
FAR = 2**31
FAR_LAYOUTS = {"far item": 0, "far row": 1, "far head": 2, "far column": -1}
RARE_LAYOUTS = (*FAR_LAYOUTS, "repeated")


def lay_out(choose: Chooser, name: str, shape: tuple[int, ...], dtype: str, layouts: Sequence[str]) -> TensorSpec:
    """Lay a tensor out; elements share memory only in the layouts ``expanded`` and ``repeated``."""
    layout = choose.pick(f"{name}.layout", layouts, RARE_LAYOUTS)
    sizes, gap, offset, step = list(shape), 0, 0, 1
    order = list(range(len(shape)))
    match layout:
        case "offset1":
            offset = 1
        case "gapped":
            gap = _gap(choose, name, sizes[-1])
        case "transposed" if len(shape) > 1:
            # Swapping the inner two makes the last dimension strided. At rank 4 the middle swap is [B, S, H, Dh] in
            # the memory of [B, H, S, Dh].
            first = choose.pick(f"{name}.swap", range(len(shape) - 1))
            order[first], order[first + 1] = order[first + 1], order[first]
        case "strided_last":
            step = _step(choose, name)
        case "packed" | "chunked":
            parts = PARTS[layout]
            width = sizes[-1] if sizes else 1
            part = choose.pick(f"{name}.part", range(parts))
            gap, offset = (parts - 1) * width, part * width
        case "sliced":
            skipped = min(1, len(shape) - 2)
            sizes[skipped] += SKIPPED
            offset = SKIPPED * math.prod(sizes[skipped + 1 :])
        case _ if layout in FAR_LAYOUTS:
            offset = FAR
    strides = [0] * len(shape)
    run = step
    for axis in reversed(order):
        strides[axis] = run
        run *= max(sizes[axis], 1)
        if axis == order[-1]:
            run += gap
    if layout in FAR_LAYOUTS:
        axis = FAR_LAYOUTS[layout]
        strides[axis] = FAR // max(shape[axis] - 1, 1) + 16
    if layout in ("expanded", "repeated"):
        wide = [axis for axis in range(len(shape) - 1) if sizes[axis] > 1]
        for axis in wide[: choose.pick(f"{name}.expanded", range(1, max(len(wide), 1) + 1))]:
            strides[axis] = 0
    return TensorSpec(shape, dtype, tuple(strides), offset, name)


def units_of(choose: Chooser, name: str, row: int, layouts: Sequence[str], *, inner: bool = True) -> tuple[int, ...]:
    """The units of a tensor's strides: those that grow with its sizes are multiples of them, whatever the sizes.

    Args:
        choose: chooses the tensor's layout.
        name: the tensor's name.
        row: the length of its rows.
        layouts: the layouts to choose from.
        inner: whether the dimension next to the rows is a size (True), or a count that all cases of a key share.
    """
    layout = choose.pick(f"{name}.layout", layouts, RARE_LAYOUTS)
    match layout:
        case "gapped":
            return (row + _gap(choose, name, row),)
        case "strided_last":
            return (row * _step(choose, name),)
        case "packed" | "chunked":
            return (row * PARTS[layout],)
        case "transposed" if inner:
            return 1, row  # that dimension may be the innermost
    return (row,)


def _step(choose: Chooser, name: str) -> int:
    return choose.pick(f"{name}.step", (2, 3))


def _gap(choose: Chooser, name: str, row: int) -> int:
    # 8 keeps rows of 16-byte-aligned bfloat16 aligned, 1 and 3 do not, 4 keeps only float32 rows aligned. After a row
    # of odd length 1 and 3 would give strides with powers of two that the width's class does not determine; 2 and 4 do
    # not. After an odd multiple of 4, 4 would; 8 does not.
    gap = choose.pick(f"{name}.gap", (8, 1, 3, 16, 4))
    return gap_after(row, gap)


def gap_after(row: int, gap: int) -> int:
    """The gap after a row of that length, adjusted so that all widths of a class give one class of strides."""
    if gap == 4 and row % 8 == 4:
        return 8
    return gap + 1 if gap % 2 and row % 2 else gap
