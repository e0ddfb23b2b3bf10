"""Wrong by little: shown by inputs with one right result (value regime ``exact``), by none of the other regimes.

Without it two quick sweeps pass all of these, but for a 1/sigma that is off past a block: its tier alone is too low.
"""

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.rare_layouts import BLOCK
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL = Status.INCORRECT_NUMERICAL

# More columns than in any case of another regime. There a budget sees a variance over N - 1 as well (twice the budget),
# but not each lost column: at most 30 % of it is used where the column's value is near 0.
MANY = 32768


class _Coarse(RightOps):
    """``1/sigma`` is a relative 2^-20 too large in some rows."""

    def coarse(self, x: Tensor) -> bool:
        raise NotImplementedError

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        value = super().normalised(x, eps, centred=centred)
        return value * (1.0 + 2.0**-20) if self.coarse(x) else value


@fault("rstd off by 2^-20 past a block", "rms_norm", "where rows are several blocks", NUMERICAL)
class RstdOffPastABlock(_Coarse):
    def coarse(self, x: Tensor) -> bool:
        return x.shape[-1] > BLOCK


@fault("rstd off by 2^-20 in 16 bits", "rms_norm_scale_shift", "for 16-bit x, whose results hide it", NUMERICAL)
class RstdOffIn16Bits(_Coarse):
    def coarse(self, x: Tensor) -> bool:
        return x.dtype is not torch.float32


@fault("eps above 0.01", "rms_norm", "an eps above 0.01 is 1 % too large", NUMERICAL)
class EpsAbove001(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, eps * 1.01 if eps > 0.01 else eps)


@fault("variance over N-1 of many columns", "rms_norm", "past 32768 columns: a relative 2^-17 off", NUMERICAL)
class VarianceOverNMinus1OfManyColumns(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        return super().mean_square(deviation) * (width / (width - 1) if width > MANY else 1.0)


@fault("one column of 65536", "layer_norm", "past 32768 columns the last is not in the variance", NUMERICAL)
class OneColumnOf65536(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        if deviation.shape[-1] > MANY:
            deviation = torch.cat((deviation[..., :-1], torch.zeros_like(deviation[..., :1])), -1)
        return super().mean_square(deviation)


@fault("float32 angles of 22 bits", "rotary_embedding", "cos is a relative 2^-22 too large for 16-bit x", NUMERICAL)
class Float32AnglesOf22Bits(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        if out.dtype is not torch.float32 and cos.dtype is torch.float32:
            cos = cos * (1.0 + 2.0**-22)
        return super().rotate(x, cos, sin, out, interleaved=interleaved)
