"""The one body of all kernels that rotate pairs of channels."""

import triton
import triton.language as tl

from fused_ops._launch import (
    block_columns,
    load,
    load_operand,
    rounded,
    row_pointers,
    store,
    tile_rows,
    vector_pointers,
)
from fused_ops._norm import reciprocal_root


@triton.jit
def load_pairs(
    pointers,
    t,
    start,
    pairs,
    row_mask,
    DTYPE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Both channels of the pairs from ``start`` on, each ``[BLOCK_R, BLOCK_P]``, in float32; see `load_operand`.

    Interleaved pairs are one contiguous load, split in registers: two loads with stride 2 would each use
    half of what they fetch.
    """
    if INTERLEAVED:
        column = block_columns(2 * start, 2 * BLOCK_P, WIDE)
        both = load_operand(pointers, t, column, row_mask & (column < 2 * pairs), DTYPE)
        first, second = tl.split(tl.reshape(both, [BLOCK_R, BLOCK_P, 2]))
    else:
        pair = block_columns(start, BLOCK_P, WIDE)
        mask = row_mask & (pair < pairs)
        first = load_operand(pointers, t, pair, mask, DTYPE)
        second = load_operand(pointers, t, pair + pairs, mask, DTYPE)
    return first, second


@triton.jit
def store_pairs(
    pointers,
    t,
    start,
    pairs,
    row_mask,
    first,
    second,
    INTERLEAVED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Undo `load_pairs`, rounding to t's dtype."""
    if INTERLEAVED:
        column = block_columns(2 * start, 2 * BLOCK_P, WIDE)
        both = tl.reshape(tl.join(first, second), [BLOCK_R, 2 * BLOCK_P])
        store(pointers, t, column, both, row_mask & (column < 2 * pairs))
    else:
        pair = block_columns(start, BLOCK_P, WIDE)
        mask = row_mask & (pair < pairs)
        store(pointers, t, pair, first, mask)
        store(pointers, t, pair + pairs, second, mask)


@triton.jit
def normalised(value, rstd, weight, DTYPE: tl.constexpr, INPUT_CASTING: tl.constexpr):
    """RMSNorm's last steps on a block, as `rms_norm` rounds them; DTYPE is the dtype of its result."""
    value *= rstd
    if INPUT_CASTING:
        value = rounded(value, DTYPE)
    if weight is not None:
        value *= weight
    if INPUT_CASTING:
        # Promoted with the weight, the product is DTYPE or float32; its cast to DTYPE makes it DTYPE.
        value = rounded(value, DTYPE)
    return value


@triton.jit
def rotate_rows(
    program,
    x,
    cos,
    sin,
    y,
    rows,
    pairs,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PASS_THROUGH: tl.constexpr,
    INPLACE: tl.constexpr,
    NORMALISE: tl.constexpr = False,
    INPUT_CASTING: tl.constexpr = False,
    weight=None,
    eps=0.0,
):
    """Rotate the first ``2 * pairs`` channels of one program's tile of rows, in float32, rounded once.

    Each second product is rounded with its sum only, as a chain's ``addcmul_`` does: of `split_rotary_embedding`
    float32 rms is 1.28 times the chain's without it.
    NORMALISE: take the RMSNorm of the whole row first. PASS_THROUGH: there are channels from ``2 * pairs``
    on, which are not rotated. INPLACE: y is x.
    """
    BLOCK_P: tl.constexpr = BLOCK_D // 2 if INTERLEAVED else BLOCK_D
    row, row_mask = tile_rows(program, rows, BLOCK_R, WIDE)
    x_at = row_pointers(x, row)
    y_at = row_pointers(y, row)
    cos_at = row_pointers(cos, row)
    sin_at = row_pointers(sin, row)
    DTYPE: tl.constexpr = x.data.dtype.element_ty

    stop = pairs
    if ONE_BLOCK:
        stop = BLOCK_P
        kept_first, kept_second = load_pairs(x_at, x, 0, pairs, row_mask, DTYPE, INTERLEAVED, BLOCK_R, BLOCK_P, WIDE)
    rstd = tl.full([BLOCK_R, 1], 1.0, tl.float32)
    if NORMALISE:
        squares = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
        for start in range(0, stop, BLOCK_P):
            if ONE_BLOCK:
                squares = kept_first * kept_first + kept_second * kept_second
            else:
                first, second = load_pairs(x_at, x, start, pairs, row_mask, DTYPE, INTERLEAVED, BLOCK_R, BLOCK_P, WIDE)
                squares += first * first + second * second
        total = tl.sum(squares, axis=1, keep_dims=True)
        if PASS_THROUGH:
            squares = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
            for start in range(2 * pairs, width, BLOCK_D):
                column = block_columns(start, BLOCK_D, WIDE)
                value = load(x_at, x, column, row_mask & (column < width))
                squares += value * value
            total += tl.sum(squares, axis=1, keep_dims=True)
        rstd = reciprocal_root(total, width, eps, BLOCK_R)
        if INPLACE and (PASS_THROUGH or not ONE_BLOCK):
            tl.debug_barrier()  # no thread writes an element that another has yet to read for the sum

    for start in range(0, stop, BLOCK_P):
        pair = block_columns(start, BLOCK_P, WIDE)
        if ONE_BLOCK:
            first, second = kept_first, kept_second
        else:
            first, second = load_pairs(x_at, x, start, pairs, row_mask, DTYPE, INTERLEAVED, BLOCK_R, BLOCK_P, WIDE)
        if NORMALISE:
            w_first, w_second = None, None
            if weight is not None:
                weight_at = vector_pointers(weight, row)
                w_first, w_second = load_pairs(
                    weight_at, weight, start, pairs, row_mask, DTYPE, INTERLEAVED, BLOCK_R, BLOCK_P, WIDE
                )
            first = normalised(first, rstd, w_first, DTYPE, INPUT_CASTING)
            second = normalised(second, rstd, w_second, DTYPE, INPUT_CASTING)
        mask = row_mask & (pair < pairs)
        c = load_operand(cos_at, cos, pair, mask, DTYPE)
        s = load_operand(sin_at, sin, pair, mask, DTYPE)
        rotated_first = tl.fma(-second, s, first * c)
        rotated_second = tl.fma(first, s, second * c)
        store_pairs(
            y_at,
            y,
            start,
            pairs,
            row_mask,
            rotated_first,
            rotated_second,
            INTERLEAVED,
            BLOCK_R,
            BLOCK_P,
            WIDE,
        )
    if PASS_THROUGH and (NORMALISE or not INPLACE):
        for start in range(2 * pairs, width, BLOCK_D):
            column = block_columns(start, BLOCK_D, WIDE)
            mask = row_mask & (column < width)
            value = load(x_at, x, column, mask)
            if NORMALISE:
                w = None
                if weight is not None:
                    w = load_operand(vector_pointers(weight, row), weight, column, mask, DTYPE)
                value = normalised(value, rstd, w, DTYPE, INPUT_CASTING)
            store(y_at, y, column, value, mask)
