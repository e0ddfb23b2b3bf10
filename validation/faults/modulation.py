"""Wrong modulation: which row goes with which token, scale_constant, gates, roundings and overflow, memory."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, BELOW_TIER = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.BELOW_REQUIRED_TIER
MODIFIED, ALIAS, BAD_INPUT = Status.INPUT_MODIFIED, Status.OUTPUT_ALIASES_INPUT, Status.BAD_INPUT_ACCEPTED

LNSS, RNSS = "layer_norm_scale_shift", "rms_norm_scale_shift"


# Which row goes with which token.


class _FirstItemForAll(RightOps):
    """Every batch item reads the modulation of the first."""

    argument = ""

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return rows[:1] if name == self.argument and rows.dim() == 3 and rows.shape[0] else rows


@fault("batch item 0 for all", LNSS, "every batch item reads the first one's scale: wrong only for B > 1", NUMERICAL)
class BatchItem0ForAll(_FirstItemForAll):
    argument = "scale"


@fault("gate of batch item 0", "residual_gate_add", "every batch item reads the first one's gate", NUMERICAL, NONFINITE)
class GateOfBatchItem0(_FirstItemForAll):
    argument = "gate"


class _RowOfATokenForOneOfAnItem(RightOps):
    """``[B, D]`` is broadcast as ``[1, B, D]``, which PyTorch does without a word where B == L."""

    argument = ""

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == self.argument and isinstance(m, Tensor) and m.dim() == 2 and x.shape[0] == x.shape[1]:
            return m.unsqueeze(0)
        return super().rows(name, m, x)


@fault("[B, D] gate as [1, B, D]", "residual_gate_add", "one row a token instead of an item, where B == L", NUMERICAL)
class GateOfATokenForOneOfAnItem(_RowOfATokenForOneOfAnItem):
    argument = "gate"


@fault("[B, D] scale as [1, B, D]", "scale_shift", "one row a token instead of an item, where B == L", NUMERICAL)
class ScaleOfATokenForOneOfAnItem(_RowOfATokenForOneOfAnItem):
    argument = "scale"


@fault(
    "[B, D] gate as [1, B, D], chained",
    "scale_residual_rms_norm_scale_shift",
    "one row a token instead of an item, where B == L",
    NUMERICAL,
)
class ChainedGateOfATokenForOneOfAnItem(GateOfATokenForOneOfAnItem):
    pass


@fault("frame by l % F", RNSS, "the frame of token l is taken as l % F instead of l // (L // F)", NUMERICAL)
class FrameByRemainder(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "shift" and isinstance(m, Tensor) and m.dim() == 4:
            return m[:, torch.arange(x.shape[1], device=x.device) % m.shape[1], 0]
        return super().rows(name, m, x)


@fault("frame of the first item", LNSS, "the frame's row is looked up without the batch item's offset", NUMERICAL)
class FrameOfTheFirstItem(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 4:
            m = m[:1].expand(m.shape)
        return super().rows(name, m, x)


@fault("F that does not divide L", RNSS, "is accepted: the last frame takes the tokens left over", BAD_INPUT)
class FThatDoesNotDivideL(RightOps):
    def rms_norm_scale_shift(self, x: Tensor, shift: Any, scale: Any, *rest: Any, **kwargs: Any) -> Tensor:
        def spread(m: Any) -> Any:
            if not isinstance(m, Tensor) or m.dim() != 4 or m.shape[2] != 1 or x.shape[1] % m.shape[1] == 0:
                return m
            frame = torch.arange(x.shape[1], device=m.device) // max(x.shape[1] // m.shape[1], 1)
            return m[:, frame.clamp(max=m.shape[1] - 1), 0]

        return super().rms_norm_scale_shift(x, spread(shift), spread(scale), *rest, **kwargs)


@fault("index of the first item", LNSS, "every batch item takes the first one's IndexedRows.index", NUMERICAL)
class IndexOfTheFirstItem(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if not isinstance(m, Tensor) and x.shape[0]:
            m = type(m)(m.table, m.index[:1].expand(m.index.shape))
        return super().rows(name, m, x)


@fault("table of the first item", RNSS, "a table [B, n, D] is read without the batch item's offset", NUMERICAL)
class TableOfTheFirstItem(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if not isinstance(m, Tensor) and m.table.dim() == 3 and x.shape[0]:
            m = type(m)(m.table[0], m.index)
        return super().rows(name, m, x)


@fault(
    "strides of a dense scale",
    LNSS,
    "the scale is read as if it were contiguous: wrong for chunks of [B, L, 6, D], for stride 0, for gaps",
    NUMERICAL,
    NONFINITE,
)
class StridesOfADenseScale(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if name == "scale" and isinstance(m, Tensor) and m.numel():
            dense = torch.empty(m.shape, device="meta").stride()
            # Stays within the memory: an expanded tensor has less of it than its shape suggests.
            room = m.untyped_storage().nbytes() // m.element_size() - m.storage_offset()
            if room >= m.numel():
                m = m.as_strided(m.shape, dense)
        return super().rows(name, m, x)


# The arithmetic.


@fault("scale and shift swapped", LNSS, "scale is used as shift and shift as scale", NUMERICAL)
class ScaleAndShiftSwapped(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        return super().modulate(value, scale, shift, x, mode, constant)


@fault("one plus dropped", LNSS, "the factor is scale instead of 1 + scale", NUMERICAL)
class OnePlusDropped(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        return super().modulate(value, shift, scale, x, mode, constant - 1.0)


@fault("shift before scale", RNSS, "(value + shift) * (1 + scale)", NUMERICAL)
class ShiftBeforeScale(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        shifted = value + self.taken(self.rows("shift", shift, x), mode)
        return shifted * (self.taken(self.rows("scale", scale, x), mode) + constant)


@fault("weight after the modulation", RNSS, "the weight multiplies the modulated value", NUMERICAL)
class WeightAfterTheModulation(RightOps):
    def rms_norm_scale_shift(
        self, x: Tensor, shift: Any, scale: Any, weight: Tensor | None = None, eps: float = 1e-6, **kwargs: Any
    ) -> Tensor:
        y = super().rms_norm_scale_shift(x, shift, scale, None, eps, **kwargs)
        if weight is None:
            return y
        super().rms_norm_scale_shift(x, shift, scale, weight, eps, **kwargs)  # checks the weight
        return y.mul_(weight)


@fault("scale_constant always one", "scale_shift", "the argument scale_constant is ignored", NUMERICAL, NONFINITE)
class ScaleConstantAlwaysOne(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        del constant
        return super().modulate(value, shift, scale, x, mode)


@fault("scale_constant or one", "scale_shift", "a scale_constant of zero counts as not given", NUMERICAL, NONFINITE)
class ScaleConstantOrOne(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        return super().modulate(value, shift, scale, x, mode, constant or 1.0)


@fault(
    "zero shortcut",
    "scale_shift",
    "where the scale is all zero, x + shift is returned whatever scale_constant is",
    NUMERICAL,
    NONFINITE,
)
class ZeroShortcut(RightOps):
    def modulate(self, value: Tensor, shift: Any, scale: Any, x: Tensor, mode: str, constant: float = 1.0) -> Tensor:
        zero = not bool(self.rows("scale", scale, x).any())
        return super().modulate(value, shift, scale, x, mode, 1.0 if zero else constant)


@fault("gate of None is zero", "residual_gate_add", "the residual comes back where gate is None", NUMERICAL, NONFINITE)
class GateOfNoneIsZero(RightOps):
    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        return self.taken(residual, mode) if gate is None else super().gated(residual, x, gate, mode)


@fault("gate on the residual", "residual_gate_add", "residual * gate + x", NUMERICAL, NONFINITE)
class GateOnTheResidual(RightOps):
    def gated(self, residual: Tensor, x: Tensor, gate: Any, mode: str) -> Tensor:
        return super().gated(x, residual, gate, mode)


# Roundings and overflow.


@fault(
    "modulation in the input dtype",
    LNSS,
    "float32 scale and shift are rounded to x's dtype first, where float32 was declared",
    NUMERICAL,
    BELOW_TIER,
)
class ModulationInTheInputDtype(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        return rows.to(x.dtype).to(rows.dtype)


@fault(
    "product rounded",
    RNSS,
    "value * (1 + scale) is rounded to x's dtype before the shift, where float32 was declared",
    NUMERICAL,
    BELOW_TIER,
)
class ProductRounded(RightOps):
    def product(self, value: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        product = super().product(value, factor, x)
        return product.to(x.dtype).to(product.dtype)


@fault(
    "gate rounded",
    "residual_gate_add",
    "a float32 gate is rounded to x's dtype first, where float32 was declared",
    NUMERICAL,
    BELOW_TIER,
)
class GateRounded(ModulationInTheInputDtype):
    pass


@fault(
    "float16 overflow made",
    "residual_gate_add",
    "the product overflows in float16 although the chain is declared float32",
    NONFINITE,
)
class Float16OverflowMade(RightOps):
    def product(self, value: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        product = super().product(value, factor, x)
        narrow = product.to(x.dtype)
        return torch.where(narrow.isinf(), narrow.to(product.dtype), product)


@fault("float16 overflow hidden", "scale_shift", "infinity is clamped to the largest number", NONFINITE)
class Float16OverflowHidden(RightOps):
    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        largest = torch.finfo(dtype).max
        return super().rounded(value.float().clamp(-largest, largest), dtype)


# The output.


class _PromotedOutput(RightOps):
    """The output has the dtype that the arithmetic ended in."""

    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        return value.clone() if value.shape == x.shape else super().stored(value, x)


@fault("float32 output", LNSS, "the output is never cast back to x's dtype", Status.INCORRECT_DTYPE)
class Float32Output(_PromotedOutput):
    pass


@fault(
    "output in the gate's dtype",
    "residual_gate_add",
    "the output is float32 because the gate was: PyTorch's promotion is never cast back",
    Status.INCORRECT_DTYPE,
    NUMERICAL,
    NONFINITE,
    BELOW_TIER,
)
class OutputInTheGatesDtype(_PromotedOutput):
    def taken(self, t: Tensor, mode: str) -> Tensor:
        del mode
        return t


@fault(
    "columns of a narrower row",
    "rms_norm_scale_shift",
    "the last column is left out where D is odd",
    Status.NOT_WRITTEN,
)
class LastColumnOfAnOddWidth(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        pairs = x.shape[-1] // 2 * 2
        y[..., :pairs] = self.rounded(value[..., :pairs], x.dtype)
        return y


@fault("written into x", "scale_shift", "the result is written over x", MODIFIED, ALIAS)
class WrittenIntoX(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        return x.copy_(self.rounded(value, x.dtype))


@fault("residual updated in place", "residual_gate_add", "the result is accumulated into residual", MODIFIED, ALIAS)
class ResidualUpdatedInPlace(RightOps):
    def residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, **kwargs: Any) -> Tensor:
        y = super().residual_gate_add(residual, x, gate, **kwargs)
        return residual.copy_(y)


@fault(
    "residual handed back",
    "residual_gate_add",
    "where the gate is all zero, residual itself is returned instead of a copy",
    ALIAS,
)
class ResidualHandedBack(RightOps):
    def residual_gate_add(self, residual: Tensor, x: Tensor, gate: Any, **kwargs: Any) -> Tensor:
        y = super().residual_gate_add(residual, x, gate, **kwargs)
        return residual if gate is not None and not bool(self.rows("gate", gate, x).any()) else y


# Memory.


@fault(
    "16-byte alignment assumed",
    "scale_shift",
    "x is read from the last address that is a multiple of 16 bytes: wrong only at storage offsets such as 1",
    NUMERICAL,
    NONFINITE,
)
class AlignmentAssumed(RightOps):
    def scale_shift(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad:
            astray = x.data_ptr() % 16 // x.element_size()
            x = x.as_strided(x.shape, x.stride(), x.storage_offset() - astray)
        return super().scale_shift(x, *rest, **kwargs)


@fault("row stride is the width", LNSS, "rows of x are taken D apart, whatever the strides say", NUMERICAL, NONFINITE)
class RowStrideIsTheWidth(RightOps):
    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        if x.stride(-1) == 1:
            x = x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1))
        return super().norm(x, weight, bias, eps, mode, centred=centred)


@fault(
    "column stride is one",
    RNSS,
    "channels of x are taken next to each other, whatever the strides say",
    NUMERICAL,
    NONFINITE,
)
class ColumnStrideIsOne(RightOps):
    def norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mode: str, *, centred: bool
    ) -> Tensor:
        x = x.as_strided(x.shape, (*x.stride()[:-1], 1))
        return super().norm(x, weight, bias, eps, mode, centred=centred)


# Calls after the first.


@fault(
    "scale cached by address",
    "scale_shift",
    "1 + scale is kept from the first call with a scale at that address, whatever is there now",
    NUMERICAL,
    NONFINITE,
    Status.NOT_REPRODUCIBLE,
)
class ScaleCachedByAddress(RightOps):
    def __init__(self) -> None:
        self.kept: dict[Any, Tensor] = {}

    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        rows = super().rows(name, m, x)
        if name != "scale" or not isinstance(m, Tensor):
            return rows
        key = m.data_ptr(), rows.shape, rows.dtype
        return self.kept.setdefault(key, rows.clone())
