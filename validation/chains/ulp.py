"""Units in the last place of the dtypes that ops return."""

import torch
from torch import Tensor

# Unit roundoff: the largest relative error of one rounding to nearest (Higham, Accuracy and Stability of
# Numerical Algorithms, 2nd ed., 2002, eq. 2.4): half the distance from 1 to the next number.
UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}

# Smallest positive (subnormal) number: below finfo.tiny the spacing stays this.
SMALLEST = {
    torch.float64: 2.0**-1074,
    torch.float32: 2.0**-149,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-133,
}


def ulp(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of dtype's numbers at |magnitude|, as float64; at zero the smallest subnormal.

    Args:
        magnitude: float64, any shape. Non-finite elements give the spacing at the largest number.
        dtype: float32, float16, bfloat16 or float64.
    """
    largest = torch.finfo(dtype).max
    size = magnitude.abs().nan_to_num(nan=largest, posinf=largest).clamp(max=largest)
    _, exponent = torch.frexp(size)  # size = m * 2^exponent, 1/2 <= m < 1
    spacing = torch.ldexp(torch.ones_like(size), exponent) * UNIT_ROUNDOFF[dtype]
    # frexp gives zero the exponent 0, that of 1/2.
    return torch.where(size == 0, 0.0, spacing).clamp(min=SMALLEST[dtype])
