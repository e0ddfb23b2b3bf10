"""Right except for rare values or two conditions at once; and bad calls accepted as good ones."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import INTERPRETED, fault
from validation.faults.norms import OnePassVariance
from validation.faults.rare_layouts import BLOCK
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
NOT_WRITTEN, BAD_INPUT = Status.NOT_WRITTEN, Status.BAD_INPUT_ACCEPTED

LN, RN, LNSS, RNSS = "layer_norm", "rms_norm", "layer_norm_scale_shift", "rms_norm_scale_shift"
SS, RGA, SRLN = "scale_shift", "residual_gate_add", "scale_residual_layer_norm_scale_shift"
QKN, QKR, ROTARY, SPLIT = "qk_norm", "qk_norm_rope", "rotary_embedding", "split_rotary_embedding"


# Values.


@fault("eps or the default", RN, "an eps of 0 counts as not given", NUMERICAL, NONFINITE)
class EpsOrTheDefault(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, eps or 1e-6)


@fault("NaN in the scale swallowed", SS, "NaN in the scale is read as 0", NONFINITE)
class NaNInTheScaleSwallowed(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return torch.where(rows.isnan(), torch.zeros_like(rows), rows)


@fault("a gate of 0 skips x", RGA, "where the gate is 0, x is not looked at: 0 times inf is NaN", NONFINITE)
class AGateOf0SkipsX(RightOps):
    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        total = super().gated(residual, x, gate, mode)
        return total if gate is None else torch.where(self.rows("gate", gate, x) == 0, residual.to(total.dtype), total)


@fault("1 + scale out of float16", SS, "in float16, where it may overflow, although float32 is declared", NONFINITE)
class OnePlusScaleOutOfFloat16(RightOps):
    def product(self, value: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        beyond = (factor.abs() > 65504.0) & (x.dtype is torch.float16)
        return super().product(value, torch.where(beyond, factor * torch.inf, factor), x)


@fault("half rounded up", SS, "a result half-way between two bfloat16 numbers is rounded away from 0", Status.BIASED)
class HalfRoundedUp(RightOps):
    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        nearest = super().rounded(value, dtype)
        if dtype is not torch.bfloat16 or value.dtype is not torch.float32:
            return nearest
        up = ((value.contiguous().view(torch.int32) + 0x8000) >> 16).to(torch.int16).view(torch.bfloat16)
        return torch.where(value.isfinite(), up, nearest)


@fault(
    "one element taken for a scalar",
    RGA,
    "a float32 gate [1] is rounded with as a 0-d one is by PyTorch's promotion: the product to a 16-bit x's dtype",
    NUMERICAL,
    BELOW_TIER,
    Status.BIASED,
)
class OneElementTakenForAScalar(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return rows.reshape(()) if rows.dim() == 1 and rows.numel() == 1 else rows


# Two conditions at once.


class _Sometimes(OnePassVariance):
    """One-pass variance on one path of several."""

    def hit(self, x: Tensor) -> bool:
        raise NotImplementedError

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if self.hit(x):
            return super().normalised(x, eps, centred=centred)
        return RightOps.normalised(self, x, eps, centred=centred)


@fault("one-pass variance past a block", LN, "of rows of several blocks the variance is one-pass", NUMERICAL)
class OnePassVariancePastABlock(_Sometimes):
    def hit(self, x: Tensor) -> bool:
        return x.shape[-1] > BLOCK


@fault("one-pass variance of 2049 to 4096 channels", SRLN, "rows as long as that have a kernel of their own", NUMERICAL)
class OnePassVarianceOfSomeWidths(_Sometimes):
    def hit(self, x: Tensor) -> bool:
        return 2048 < x.shape[-1] <= 4096


@fault("a whole block of columns", SS, "a row of 8192 channels is taken for one block and no column", NOT_WRITTEN)
class AWholeBlockOfColumns(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        if x.shape[-1] % BLOCK == 0 and x.shape[-1] < 2 * BLOCK and x.numel():
            y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            y[..., :-8] = self.rounded(value[..., :-8], x.dtype)
            return y
        return super().stored(value, x)


@fault("one-pass variance of one token", LNSS, "where L is 1 the variance is one-pass", NUMERICAL)
class OnePassVarianceOfOneToken(_Sometimes):
    def hit(self, x: Tensor) -> bool:
        return x.shape[1] == 1


@fault("float16 squares past a block", RN, "of rows of several blocks squares are in x's dtype", NUMERICAL, NONFINITE)
class Float16SquaresPastABlock(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if x.shape[-1] <= BLOCK or x.dtype is not torch.float16:
            return super().normalised(x, eps, centred=centred)
        return x.float() * self.inverse_root((x * x).float().mean(-1, keepdim=True), eps)


@fault("NaN of one row in all, many rows", RN, "past 1024 rows sums are products with 0 and 1", NONFINITE)
class NaNOfOneRowInAllManyRows(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        sums = super().mean_square(deviation)
        return sums + (sums * 0.0).sum() if sums.numel() > 1024 else sums


@fault(
    "bias of frames dropped",
    LNSS,
    "with shift and scale a frame each, a bias without a weight is lost",
    NUMERICAL,
    NONFINITE,
)
class BiasOfFramesDropped(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        if self.lone is not None and all(isinstance(m, Tensor) and m.dim() == 4 for m in (shift, scale)):
            value = self.lone
        return super().modulate(value, shift, scale, x, mode, constant)

    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        self.lone = (
            super().norm(x, None, None, eps, mode, centred=centred) if weight is None and bias is not None else None
        )
        return super().norm(x, weight, bias, eps, mode, centred=centred)


@fault("shift by the scale's index", RNSS, "of two IndexedRows the shift takes the scale's index", NUMERICAL, NONFINITE)
class ShiftByTheScalesIndex(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        tables = [None if isinstance(m, Tensor) else m.table.shape for m in (shift, scale)]
        if tables[0] is not None and tables[0] == tables[1]:
            shift = type(shift)(shift.table, scale.index)
        return super().modulate(value, shift, scale, x, mode, constant)


@fault("float16 squares of one token", QKN, "where L is 1, squares are in x's dtype", NUMERICAL, NONFINITE)
class Float16SquaresOfOneToken(RightOps):
    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        if x.dim() < 4 or x.shape[1] != 1 or x.dtype is not torch.float16:
            return super().normalised(x, eps, centred=centred)
        return x.float() * self.inverse_root((x * x).float().mean(-1, keepdim=True), eps)


@fault("eps of many rows", QKR, "past 65535 rows another kernel runs, whose eps is ten times too big", NUMERICAL)
class EpsOfManyRows(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, 10.0 * eps if mean_square.numel() > 65535 else eps)


@fault("40 heads saturate", ROTARY, "of 40 heads, what overflows float16 is its largest number", NONFINITE)
class FortyHeadsSaturate(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        overflowed = out.isinf() & x.isfinite() & (x.shape[2] == 40) & (out.dtype is torch.float16)
        return out.copy_(torch.where(overflowed, out.clamp(-65504.0, 65504.0), out))


@fault("NaN of many rows", SPLIT, "past 65535 rows NaN is stored as 0", NONFINITE)
class NaNOfManyRows(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        many = x.numel() // max(x.shape[-1] * x.shape[-2], 1) > 65535
        return out.copy_(torch.where(out.isnan(), torch.zeros_like(out), out)) if many else out


@fault("NaN of an odd head_dim", ROTARY, "channels of an odd head_dim pass through a maximum that drops NaN", NONFINITE)
class NaNOfAnOddHeadDim(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        super().rotate(x, cos, sin, out, interleaved=interleaved)
        odd = x.shape[-1] % 2 == 1
        return out.copy_(torch.where(out.isnan(), torch.full_like(out, -torch.inf), out)) if odd else out


@fault("a last pair left out", ROTARY, "where Dr is head_dim - 2, the last pair is left unwritten", NOT_WRITTEN)
class ALastPairLeftOut(RightOps):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        near = x.shape[-1] - 2 * (x.shape[-1] > 16 and 2 * cos.shape[-1] == x.shape[-1] - 2)
        super().rotate(x[..., :near], cos, sin, out[..., :near], interleaved=interleaved)
        return out


@fault(
    "gate by the scale's index",
    SRLN,
    "of two IndexedRows with tables of one shape the gate takes the scale's index",
    NUMERICAL,
    NONFINITE,
)
class GateByTheScalesIndex(RightOps):
    def scale_residual_layer_norm_scale_shift(
        self, residual: Tensor, x: Tensor, gate: Any, shift: Any, scale: Any, *rest: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        tables = [getattr(getattr(m, "table", None), "shape", None) for m in (gate, scale)]
        if tables[0] is not None and tables[0] == tables[1]:
            gate = type(gate)(gate.table, scale.index)
        return super().scale_residual_layer_norm_scale_shift(residual, x, gate, shift, scale, *rest, **kwargs)


# One tensor as two arguments.


@fault("residual told by its address", RGA, "where residual and x are one tensor, the gate is left out", NUMERICAL)
class ResidualToldByItsAddress(RightOps):
    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        one = residual.data_ptr() == x.data_ptr() and residual.stride() == x.stride()
        return super().gated(residual, x, None if one else gate, mode)


@fault("shift told by its address", LNSS, "a tensor that is scale and shift is taken as the scale alone", NUMERICAL)
class ShiftToldByItsAddress(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        if isinstance(shift, Tensor) and isinstance(scale, Tensor) and shift.data_ptr() == scale.data_ptr():
            shift = torch.zeros_like(scale)
        return super().modulate(value, shift, scale, x, mode, constant)


@fault("weights told by their address", QKN, "one tensor as both weights multiplies q alone", NUMERICAL)
class WeightsToldByTheirAddress(RightOps):
    def qk_norm(self, q: Tensor, k: Tensor, q_weight: Any, k_weight: Any, *rest: Any, **kwargs: Any) -> Any:
        both = isinstance(q_weight, Tensor) and isinstance(k_weight, Tensor)
        if both and q_weight.data_ptr() == k_weight.data_ptr():
            k_weight = torch.ones_like(k_weight)
        return super().qk_norm(q, k, q_weight, k_weight, *rest, **kwargs)


# Bad calls.


# On a GPU, also one that is believed in, no op looks at its values.
@fault(
    "index out of range clamped",
    SS,
    "an IndexedRows.index past the table takes its last row",
    BAD_INPUT,
    on=INTERPRETED,
)
class IndexOutOfRangeClamped(RightOps):
    def scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **kwargs: Any) -> Tensor:
        def clamped(m: Any) -> Any:
            fits = hasattr(m, "table") and isinstance(m.index, Tensor) and not m.index.is_floating_point()
            return type(m)(m.table, m.index.clamp(0, m.table.shape[-2] - 1)) if fits else m

        return super().scale_shift(x, clamped(shift), clamped(scale), *rest, **kwargs)


@fault("[L, D] as one row a token", SS, "is taken as such: [B, D] is one row an item", BAD_INPUT)
class LDAsOneRowAToken(RightOps):
    def scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **kwargs: Any) -> Tensor:
        def taken(m: Any) -> Any:
            by_token = isinstance(m, Tensor) and m.dim() == 2 and m.shape[0] == x.shape[1] != x.shape[0]
            return m.unsqueeze(0) if by_token else m

        return super().scale_shift(x, taken(shift), taken(scale), *rest, **kwargs)


@fault("weight of one element", RN, "is taken for all channels", BAD_INPUT)
class WeightOfOneElement(RightOps):
    def rms_norm(self, x: Tensor, weight: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
        if isinstance(weight, Tensor) and weight.shape == (1,) and x.dim():
            weight = weight.expand(x.shape[-1])
        return super().rms_norm(x, weight, *rest, **kwargs)


@fault("x without a batch", SS, "is taken for a batch of one", BAD_INPUT)
class XWithoutABatch(RightOps):
    def scale_shift(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        if isinstance(x, Tensor) and x.dim() == 2:
            return super().scale_shift(x.unsqueeze(0), *rest, **kwargs).squeeze(0)
        return super().scale_shift(x, *rest, **kwargs)


@fault("table wider than x", LNSS, "of an IndexedRows.table the first D channels are taken", BAD_INPUT)
class TableWiderThanX(RightOps):
    def layer_norm_scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **kwargs: Any) -> Tensor:
        def cut(m: Any) -> Any:
            wider = hasattr(m, "table") and m.table.shape[-1] > x.shape[-1]
            return type(m)(m.table[..., : x.shape[-1]], m.index) if wider else m

        return super().layer_norm_scale_shift(x, cut(shift), cut(scale), *rest, **kwargs)


@fault("rotated over its angles", ROTARY, "in place, x may share memory with cos and sin", BAD_INPUT)
class RotatedOverItsAngles(RightOps):
    def rotary_embedding(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False
    ) -> Tensor:
        y = super().rotary_embedding(x, cos, sin, interleaved=interleaved)
        return self.returned((x,), [y], inplace=inplace)[0]
