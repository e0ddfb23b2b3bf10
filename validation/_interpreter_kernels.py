"""The two kernels with which `validation.interpreter.verify_bfloat16` looks at the conversions."""

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
