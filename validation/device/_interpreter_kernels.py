"""Kernels that look at the interpreter's arithmetic; the first two are for `interpreter.verify_bfloat16`."""

import triton
import triton.language as tl


@triton.jit
def narrow(source, target, N: tl.constexpr):
    """float32 -> bfloat16, element by element."""
    i = tl.arange(0, N)
    tl.store(target + i, tl.load(source + i).to(tl.bfloat16))


@triton.jit
def widen(source, target, N: tl.constexpr):
    """bfloat16 -> float32, element by element."""
    i = tl.arange(0, N)
    tl.store(target + i, tl.load(source + i).to(tl.float32))


@triton.jit
def fused_multiply_add(x, y, z, target, N: tl.constexpr):
    """x * y + z, element by element, rounded once."""
    i = tl.arange(0, N)
    tl.store(target + i, tl.fma(tl.load(x + i), tl.load(y + i), tl.load(z + i)))
