"""The one body of all kernels that normalise rows."""

import triton
import triton.language as tl

from fused_ops._launch import (
    block_columns,
    load,
    load_operand,
    modulation_pointers,
    promoted,
    rounded,
    row_pointers,
    store,
    tile_rows,
    vector_pointers,
)


@triton.jit
def gated_sum(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING: tl.constexpr):
    """A block of ``residual + x * gate``, rounded to x's dtype; a gate of None means 1."""
    DTYPE: tl.constexpr = x.data.dtype.element_ty
    value = load(x_at, x, column, mask)
    if gate is not None:
        value *= load_operand(gate_at, gate, column, mask, DTYPE)
        if INPUT_CASTING:
            value = rounded(value, promoted(DTYPE, gate.data.dtype.element_ty, gate.PROMOTES))
    return rounded(load(residual_at, residual, column, mask) + value, DTYPE)


@triton.jit
def modulated(
    value,
    DTYPE: tl.constexpr,
    shift_at,
    shift,
    scale_at,
    scale,
    constant,
    column,
    mask,
    INPUT_CASTING: tl.constexpr,
    OUT: tl.constexpr,
):
    """A block of ``value * (constant + scale) + shift`` before its last rounding.

    DTYPE is what the value was rounded to, OUT what the result will be. With INPUT_CASTING the factor is rounded to
    the scale's dtype, and the product to what PyTorch promotes the two to.
    """
    factor = load_operand(scale_at, scale, column, mask, OUT) + constant
    if INPUT_CASTING:
        SCALE: tl.constexpr = scale.data.dtype.element_ty
        value = rounded(value * rounded(factor, SCALE), promoted(DTYPE, SCALE, scale.PROMOTES))
    else:
        value *= factor
    return value + load_operand(shift_at, shift, column, mask, OUT)


@triton.jit
def reciprocal_root(total, width, eps, BLOCK_R: tl.constexpr):
    """``1 / sqrt(total / width + eps)`` a row, each step correctly rounded: rsqrt.approx may be 2 ulp off."""
    mean = tl.div_rn(total, tl.full([BLOCK_R, 1], width, tl.float32))
    return tl.div_rn(tl.full([BLOCK_R, 1], 1.0, tl.float32), tl.sqrt_rn(mean + eps))


@triton.jit
def norm_rows(
    program,
    x,
    y,
    rows,
    width,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    CENTRED: tl.constexpr,
    INPUT_CASTING: tl.constexpr = False,
    INPLACE: tl.constexpr = False,
    weight=None,
    bias=None,
    tokens=1,
    shift=None,
    scale=None,
    residual=None,
    gate=None,
    residual_out=None,
):
    """Normalise one program's tile of rows: LayerNorm where CENTRED, else RMSNorm.

    What is None is left out. With a residual, the row that is normalised is `gated_sum`, and it is stored.
    INPLACE says that y is x.
    """
    row, row_mask = tile_rows(program, rows, BLOCK_R, WIDE)
    x_at = row_pointers(x, row)
    y_at = row_pointers(y, row)
    residual_at, residual_out_at, gate_at, shift_at, scale_at = None, None, None, None, None
    if residual is not None:
        residual_at = row_pointers(residual, row)
        residual_out_at = row_pointers(residual_out, row)
    if gate is not None:
        gate_at = modulation_pointers(gate, row, rows, tokens)
    if scale is not None:
        shift_at = modulation_pointers(shift, row, rows, tokens)
        scale_at = modulation_pointers(scale, row, rows, tokens)

    # A row that fits in one block is read once and stays in registers: each loop below runs once. A wider
    # one is read again in each loop.
    stop = width
    if ONE_BLOCK:
        stop = BLOCK_D
        column = block_columns(0, BLOCK_D, WIDE)
        kept = _block(residual_at, residual, x_at, x, gate_at, gate, column, row_mask & (column < width), INPUT_CASTING)

    # Two passes: the mean first, then the squares of the deviations. One pass (E[x^2] - mean^2) cancels
    # at a mean offset of 30 sigma.
    mean = tl.zeros([BLOCK_R, 1], dtype=tl.float32)
    if CENTRED:
        total = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        for start in range(0, stop, BLOCK_D):
            column = block_columns(start, BLOCK_D, WIDE)
            mask = row_mask & (column < width)
            if ONE_BLOCK:
                total = kept
            else:
                total += _block(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING)
        mean = tl.div_rn(tl.sum(total, axis=1, keep_dims=True), tl.full([BLOCK_R, 1], width, tl.float32))
    squares = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for start in range(0, stop, BLOCK_D):
        column = block_columns(start, BLOCK_D, WIDE)
        mask = row_mask & (column < width)
        if ONE_BLOCK:
            deviation = tl.where(mask, kept - mean, 0.0)
            squares = deviation * deviation
        else:
            value = _block(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING)
            deviation = tl.where(mask, value - mean, 0.0)
            squares += deviation * deviation
    rstd = reciprocal_root(tl.sum(squares, axis=1, keep_dims=True), width, eps, BLOCK_R)
    if INPLACE and not ONE_BLOCK:
        tl.debug_barrier()  # no thread writes an element that another has yet to read for the sums

    # With INPUT_CASTING, what each step is rounded to; else nothing is rounded before the store.
    OUT: tl.constexpr = x.data.dtype.element_ty
    DTYPE: tl.constexpr = OUT if INPUT_CASTING else tl.float32
    WEIGHTED: tl.constexpr = DTYPE if weight is None else promoted(DTYPE, weight.data.dtype.element_ty)
    BIASED: tl.constexpr = WEIGHTED if bias is None else promoted(WEIGHTED, bias.data.dtype.element_ty)
    for start in range(0, stop, BLOCK_D):
        column = block_columns(start, BLOCK_D, WIDE)
        mask = row_mask & (column < width)
        if ONE_BLOCK:
            value = kept
        else:
            value = _block(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING)
        if residual is not None:
            store(residual_out_at, residual_out, column, value, mask)
        value = rounded((value - mean) * rstd, DTYPE)
        if weight is not None:
            value = rounded(value * load_operand(vector_pointers(weight, row), weight, column, mask, OUT), WEIGHTED)
        if bias is not None:
            value = rounded(value + load_operand(vector_pointers(bias, row), bias, column, mask, OUT), BIASED)
        if scale is not None:
            value = modulated(value, BIASED, shift_at, shift, scale_at, scale, 1.0, column, mask, INPUT_CASTING, OUT)
        store(y_at, y, column, value, mask)


@triton.jit
def _block(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING: tl.constexpr):
    return (
        load(x_at, x, column, mask)
        if residual is None
        else gated_sum(residual_at, residual, x_at, x, gate_at, gate, column, mask, INPUT_CASTING)
    )
