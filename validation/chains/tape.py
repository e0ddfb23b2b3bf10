"""A tape of a reference: the ATen operations that it ran in its working dtypes, for replay in float64.

Ops that hide several roundings (layer norm, softmax, attention) or an exponential that may overflow (silu) are
recorded as the steps inside them. A value computed outside of PyTorch (``.item()``, NumPy, a kernel of the
reference's own) enters as a constant in its working precision.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import extent
from validation.device.private import DispatchMode, decomposition_table, tree_leaves, tree_map

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)

# The elements of the result are elements of the arguments. Views are found by their schema.
_MOVES = frozenset(
    {aten.clone, aten.copy_, aten._to_copy, aten.cat, aten.stack, aten.where, aten.gather, aten.index}
    | {aten.index_select, aten.flip, aten.roll, aten.repeat, aten.constant_pad_nd, aten.embedding, aten._unsafe_view}
)
# No rounding, but the elements change.
_EXACT = frozenset(
    {aten.neg, aten.abs, aten.sign, aten.relu, aten.maximum, aten.minimum, aten.amax, aten.amin, aten.clamp}
    | {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.zeros, aten.zeros_like, aten.new_zeros}
    | {aten.ones, aten.ones_like, aten.full, aten.full_like, aten.fill_, aten.zero_, aten.masked_fill, aten.max}
    | {aten.min, aten.lift_fresh, aten.tril, aten.triu, aten.set_, aten._local_scalar_dense}
)
# Sums of terms: the error scales with the sum of the terms' sizes, not with the size of their sum.
_SUMS = frozenset(
    {aten.sum, aten.mean, aten.cumsum, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot}
    | {aten.convolution, aten.addcmul, aten.addcmul_}
)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in HALVES else t


def _moments(x: Tensor, dims: Sequence[int], correction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Deviation from the mean, variance and mean, in float32 or wider."""
    wide, dims = _wide(x), list(dims) or list(range(x.dim()))
    mean = wide.mean(dims, keepdim=True)
    deviation = wide - mean
    count = math.prod(x.shape[d] for d in dims)
    return deviation, (deviation * deviation).sum(dims, keepdim=True) / (count - correction), mean


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    as_torch: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """With ``as_torch`` in the order of PyTorch's own kernels on the CPU, whose error grows with the mean."""
    deviation, variance, mean = _moments(x, range(-len(shape), 0), 0.0)
    rstd = torch.rsqrt(variance + eps)
    y = _wide(x) * rstd + -mean * rstd if as_torch else deviation * rstd
    y = y if weight is None else y * _wide(weight)
    y = y if bias is None else y + _wide(bias)
    return y.to(x.dtype), mean, rstd


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    square = (wide * wide).mean(list(range(-len(shape), 0)), keepdim=True)
    rstd = torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps))
    y = wide * rstd
    return (y if weight is None else y * _wide(weight)).to(x.dtype), rstd


def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    _, variance, _ = _moments(x, dim or (), 1.0 if correction is None else correction)
    return (variance if keepdim else variance.squeeze(tuple(dim or range(x.dim())))).to(x.dtype)


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _var(x, dim, correction=correction, keepdim=keepdim), x.mean(list(dim or range(x.dim())), keepdim=keepdim)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = _wide(x)
    raised = torch.exp(wide - wide.amax(dim, keepdim=True))
    y = raised / raised.sum(dim, keepdim=True)
    return y if half_to_float else y.to(x.dtype)


def _sigmoid(x: Tensor) -> Tensor:
    return (1.0 / (1.0 + torch.exp(-_wide(x)))).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return (_wide(x) / (1.0 + torch.exp(-_wide(x)))).to(x.dtype)


def _attention(*args: Any, **kwargs: Any) -> Any:
    return decomposition_table()[aten._scaled_dot_product_flash_attention_for_cpu.default](*args, **kwargs)


def _by_table(op: Any) -> Callable[..., Tensor]:
    """The steps of an activation function, as torch's table of decompositions has them, in float32 or wider."""

    def decomposed(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = decomposition_table()[op](_wide(x), *args, **kwargs)
        return y.to(x.dtype)

    return decomposed


# A sum inside them cancels where the function nears 0: one rounding of the result would be far too little. (GELU for
# negative x: torch's own was held to be wrong in 80 of 143 cases.)
_ACTIVATIONS = (aten.gelu, aten.mish, aten.softplus, aten.elu, aten.celu, aten.hardswish)

# Operations that are recorded as the steps inside them.
_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.var.correction: _var,
    aten.var_mean.correction: _var_mean,
    aten._softmax.default: _softmax,
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    **{op.default: _by_table(op.default) for op in _ACTIVATIONS},
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for a tensor of the recorded run."""

    number: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One recorded operation.

    Attributes:
        call: the operation; takes float64 where the run had any floating dtype.
        args, kwargs: its arguments, tensors replaced by slots.
        outputs: slots of the tensors that it returned.
        dtype: dtype of its floating results in the run, None if it has none.
        rounds: whether it rounds them.
        moves: whether their elements are elements of its arguments.
        terms: number of terms that each element sums, 0 if it is not a sum.
    """

    call: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Slot, ...]
    dtype: torch.dtype | None
    rounds: bool
    moves: bool
    terms: int = 0


class Tape(DispatchMode):
    """Records the operations of a run in working dtypes."""

    def __init__(self, *, layer_norm_as_torch: bool = False) -> None:
        """Record nothing yet.

        Args:
            layer_norm_as_torch: record ``layer_norm`` as ``x * rstd - mean * rstd``, not ``(x - mean) * rstd``.
        """
        super().__init__()
        self._decomposed = _DECOMPOSED
        if layer_norm_as_torch:
            self._decomposed = _DECOMPOSED | {
                aten.native_layer_norm.default: functools.partial(_layer_norm, as_torch=True)
            }
        self.steps: list[Step] = []
        self.inputs: dict[Slot, Tensor] = {}  # tensors that no step made, unchanged: arguments and constants
        self.dtypes: dict[Slot, torch.dtype] = {}
        self._slots: dict[int, Slot] = {}
        self._kept: list[Tensor] = []  # an id is unique only while its tensor lives

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and record it."""
        del types
        kwargs = kwargs or {}
        if func in self._decomposed:
            with self:
                return self._decomposed[func](*args, **kwargs)
        recorded, recorded_kwargs = tree_map(self._placeholder, (args, kwargs))
        given = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        dtype = next((t.dtype for t in results if t.is_floating_point()), None)
        moves = is_view(func) or func.overloadpacket in _MOVES
        rounds = dtype is not None and func.overloadpacket not in _EXACT
        if rounds and moves:
            rounds = not all(_fits(source, dtype) for source in given)
        if dtype is not None and torch.Tag.pointwise in func.tags and results[0].dim():
            recorded = tuple(self._demoted(t, slot, dtype) for t, slot in zip(args, recorded, strict=True))
        terms = _terms(func, args, results[0]) if func.overloadpacket in _SUMS else 0
        outputs = tuple(self._slot(t) for t in results)
        self.steps.append(Step(func, recorded, recorded_kwargs, outputs, dtype, rounds, moves, terms))
        return out

    def slot(self, t: Tensor) -> Slot:
        """The slot of a tensor; a new input if no step made it."""
        if id(t) not in self._slots:
            self.inputs[self._slot(t)] = _copy(t, t.dtype)
        return self._slots[id(t)]

    def _slot(self, t: Tensor) -> Slot:
        if id(t) not in self._slots:
            self._slots[id(t)] = Slot(len(self._slots))
            self.dtypes[self._slots[id(t)]] = t.dtype
            self._kept.append(t)
        return self._slots[id(t)]

    def _placeholder(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.slot(leaf)
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    def _demoted(self, operand: Any, slot: Any, dtype: torch.dtype) -> Any:
        """The operand's slot, or the slot of its recorded rounding.

        PyTorch rounds a 0-d operand to the dtype of the others before it computes.
        """
        if not isinstance(operand, Tensor) or operand.dim() or not operand.is_floating_point():
            return slot
        if _fits(operand.dtype, dtype):
            return slot
        rounded = self._slot(operand.to(dtype))
        call, kwargs = aten._to_copy.default, {"dtype": torch.float64}
        self.steps.append(Step(call, (slot,), kwargs, (rounded,), dtype, rounds=True, moves=True))
        return rounded


def is_exact(func: Any) -> bool:
    """Whether an ATen operation rounds nothing, except by a change of dtype."""
    return is_view(func) or func.overloadpacket in _MOVES or func.overloadpacket in _EXACT


def is_view(func: Any) -> bool:
    """Whether an ATen operation returns a view of an argument."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _fits(source: torch.dtype, target: torch.dtype | None) -> bool:
    """True if target holds every number of source."""
    return target is not None and torch.promote_types(source, target) is target


def _terms(func: Any, args: tuple[Any, ...], result: Tensor) -> int:
    """The number of terms in each element of a sum."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    match func.overloadpacket:
        case aten.addcmul | aten.addcmul_:
            return 2
        case aten.convolution:
            return max(tensors[1][0].numel(), 1)
        case aten.cumsum:
            return max(tensors[0].shape[args[1]] if tensors[0].dim() else 1, 1)
        case aten.sum | aten.mean:
            return max(tensors[0].numel() // max(result.numel(), 1), 1)
    return max(tensors[-2].shape[-1], 1)  # products of matrices and vectors


Values = dict[Slot, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def _copy(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in memory of its own, with the strides of t, so that it allows the same views as t."""
    memory = torch.empty(extent(t.shape, t.stride()), dtype=dtype, device=t.device)
    # An expanded dimension cannot be copied into: write its one distinct element.
    distinct = tuple(slice(0, 1 if stride == 0 else None) for stride in t.stride())
    memory.as_strided(t[distinct].shape, t.stride()).copy_(t[distinct])
    return memory.as_strided(t.shape, t.stride())


def inputs_of(tape: Tape) -> Values:
    """The tape's inputs in float64, integers as they are."""
    return {slot: _copy(t, torch.float64 if t.is_floating_point() else t.dtype) for slot, t in tape.inputs.items()}


def filled(step: Step, values: Values) -> Call:
    """A step's arguments, with tensors for the slots."""
    call: Call = tree_map(lambda leaf: values[leaf] if isinstance(leaf, Slot) else leaf, (step.args, step.kwargs))
    return call


def run(step: Step, call: Call) -> list[Tensor]:
    """The tensors that a step returns for these arguments."""
    # A cast that float64 does not need keeps its input's strides (of an expanded cos, for instance), so a view in the
    # working dtype may need a copy here.
    function = torch.ops.aten.reshape.default if step.call is torch.ops.aten.view.default else step.call
    return [t for t in tree_leaves(function(*call[0], **call[1])) if isinstance(t, Tensor)]
