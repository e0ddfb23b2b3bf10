"""The error bound of an op that has no hand-made one: its reference, replayed with every step perturbed.

The reference runs once in its working dtypes while a tape records each ATen operation; ops that hide several
roundings (layer norm, softmax, attention) are recorded as the steps inside them. From the tape, in float64:

* First-order bounds on what roundings may do to each element, carried from step to step as in `running_error`
  (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 3.3), with the derivative of
  each step by forward differentiation. A step in float32 adds u = 2^-24 of its result; a sum of n terms
  u (log2(n) + 2) of the sum of its terms' sizes. A step in 16 bits also adds half an ulp, apart: that is
  `Running.declared`. The rounding that makes an output's own elements is left out: the budget has it. Where a
  sum has many terms, their roundings add up as random signs do: three times the root of the sum of squares,
  which is five standard deviations, for a rounding error is uniform and not at the end of its interval.
* How much of the float32 bound is real. Errors that are one and the same (of a mean, of an rstd) can cancel
  later on, which a bound of absolute values does not see: at a mean of 30 sigma it is ten times too wide. So
  the tape is replayed `REPLAYS` times with every float32 step moved up or down by one rounding, each element
  at random (perturbed replay: Vignes, Mathematics and Computers in Simulation 35, 1993; Parker, Monte Carlo
  arithmetic, UCLA CSD-970002, 1997). `Running.noise` is the first-order bound times the largest share of it
  that the replays reached in the row (the last dimension), and at least what they reached in the element.

Neither sees what a reference computes outside of PyTorch (``.item()``, NumPy, a kernel of its own): that
enters as a constant in its working precision.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from validation.judge.running_error import TINY, Running, U
from validation.judge.ulp import SMALLEST, UNIT_ROUNDOFF

REPLAYS = 16

# Sums of more terms than this are bounded by three times the root of the sum of squares; up to it, by the sum.
MANY = 9

aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)

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
# Sums of terms: of the error, the sum of the terms' sizes decides, not the size of their sum.
_SUMS = frozenset(
    {aten.sum, aten.mean, aten.cumsum, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot}
    | {aten.convolution, aten.addcmul, aten.addcmul_}
)


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in _HALVES else t


def _moments(x: Tensor, dims: Sequence[int], correction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Deviation from the mean, variance, mean; in float32 at least."""
    wide, dims = _wide(x), list(dims) or list(range(x.dim()))
    mean = wide.mean(dims, keepdim=True)
    deviation = wide - mean
    count = math.prod(x.shape[d] for d in dims)
    return deviation, (deviation * deviation).sum(dims, keepdim=True) / (count - correction), mean


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    deviation, variance, mean = _moments(x, range(-len(shape), 0), 0.0)
    rstd = torch.rsqrt(variance + eps)
    y = deviation * rstd
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


def _attention(*args: Any, **kwargs: Any) -> Any:
    # Here, for its import takes a second and few references attend.
    from torch._decomp import decomposition_table

    return decomposition_table[aten._scaled_dot_product_flash_attention_for_cpu.default](*args, **kwargs)


# What is recorded as the steps inside it.
_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.var.correction: _var,
    aten.var_mean.correction: _var_mean,
    aten._softmax.default: _softmax,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Stands for a tensor of the recorded run."""

    number: int


@dataclasses.dataclass(frozen=True)
class _Step:
    """One recorded operation.

    Attributes:
        call: the operation; takes float64 where the run had any floating dtype.
        args, kwargs: its arguments, tensors replaced by slots.
        outputs: slots of the tensors that it returned.
        dtype: of its floating results in the run, None where it has none.
        rounds: whether it rounds them.
        moves: whether their elements are elements of its arguments.
        terms: how many each element is the sum of, 0 where it is no sum.
    """

    call: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[_Slot, ...]
    dtype: torch.dtype | None
    rounds: bool
    moves: bool
    terms: int = 0


class _Tape(TorchDispatchMode):
    """Records the operations of a run in working dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.inputs: dict[_Slot, Tensor] = {}  # as they were: tensors that no step made, arguments and constants
        self.dtypes: dict[_Slot, torch.dtype] = {}
        self._slots: dict[int, _Slot] = {}
        self._kept: list[Tensor] = []  # an id is a name only as long as its tensor lives

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and record it."""
        del types
        kwargs = kwargs or {}
        if func in _DECOMPOSED:
            with self:
                return _DECOMPOSED[func](*args, **kwargs)
        recorded, recorded_kwargs = tree_map(self._placeholder, (args, kwargs))
        given = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        dtype = next((t.dtype for t in results if t.is_floating_point()), None)
        moves = _is_view(func) or func.overloadpacket in _MOVES
        rounds = dtype is not None and func.overloadpacket not in _EXACT
        if rounds and moves:
            rounds = not all(_fits(source, dtype) for source in given)
        if dtype is not None and torch.Tag.pointwise in func.tags and results[0].dim():
            recorded = tuple(self._demoted(t, slot, dtype) for t, slot in zip(args, recorded, strict=True))
        terms = _terms(func, args, results[0]) if func.overloadpacket in _SUMS else 0
        outputs = tuple(self._slot(t) for t in results)
        self.steps.append(_Step(func, recorded, recorded_kwargs, outputs, dtype, rounds, moves, terms))
        return out

    def slot(self, t: Tensor) -> _Slot:
        """The slot of a tensor; a new input where no step made it."""
        if id(t) not in self._slots:
            self.inputs[self._slot(t)] = _copy(t, t.dtype)
        return self._slots[id(t)]

    def _slot(self, t: Tensor) -> _Slot:
        if id(t) not in self._slots:
            self._slots[id(t)] = _Slot(len(self._slots))
            self.dtypes[self._slots[id(t)]] = t.dtype
            self._kept.append(t)
        return self._slots[id(t)]

    def _placeholder(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.slot(leaf)
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    def _demoted(self, operand: Any, slot: Any, dtype: torch.dtype) -> Any:
        """The operand's slot, or that of a rounding before it.

        PyTorch rounds a 0-d operand to the dtype of the others before it computes.
        """
        if not isinstance(operand, Tensor) or operand.dim() or not operand.is_floating_point():
            return slot
        if _fits(operand.dtype, dtype):
            return slot
        rounded = self._slot(operand.to(dtype))
        call, kwargs = aten._to_copy.default, {"dtype": torch.float64}
        self.steps.append(_Step(call, (slot,), kwargs, (rounded,), dtype, rounds=True, moves=True))
        return rounded


def is_exact(func: Any) -> bool:
    """Whether an ATen operation makes no rounding but that of a change of dtype."""
    return _is_view(func) or func.overloadpacket in _MOVES or func.overloadpacket in _EXACT


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _fits(source: torch.dtype, target: torch.dtype | None) -> bool:
    """True if every number of source is one of target."""
    return target is not None and torch.promote_types(source, target) is target


def _terms(func: Any, args: tuple[Any, ...], result: Tensor) -> int:
    """How many terms each element of a sum has."""
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


Values = dict[_Slot, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]
After = Callable[[_Step, Call, list[Tensor]], None]


def _copy(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in memory of its own, with the strides of t: what can be viewed of t can be viewed of it."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    memory = torch.empty(extent, dtype=dtype, device=t.device)
    # An expanded dimension cannot be copied into: write its one distinct element.
    distinct = tuple(slice(0, 1 if stride == 0 else None) for stride in t.stride())
    memory.as_strided(t[distinct].shape, t.stride()).copy_(t[distinct])
    return memory.as_strided(t.shape, t.stride())


def _inputs(tape: _Tape) -> Values:
    """The tape's inputs in float64, integers as they are."""
    return {slot: _copy(t, torch.float64 if t.is_floating_point() else t.dtype) for slot, t in tape.inputs.items()}


def _filled(step: _Step, values: Values) -> Call:
    call: Call = tree_map(lambda leaf: values[leaf] if isinstance(leaf, _Slot) else leaf, (step.args, step.kwargs))
    return call


def _run(step: _Step, call: Call) -> list[Tensor]:
    # A cast that the working dtype needed and float64 does not leaves its input's strides (those of an expanded
    # cos, say), so what was a view there may need a copy here.
    function = torch.ops.aten.reshape.default if step.call is torch.ops.aten.view.default else step.call
    return [t for t in tree_leaves(function(*call[0], **call[1])) if isinstance(t, Tensor)]


def _replay(tape: _Tape, outputs: Sequence[_Slot], after: After) -> list[Tensor]:
    """Run the tape in float64; returns the outputs.

    Args:
        tape: the recorded run.
        outputs: their slots.
        after: called after each step with its arguments and floating results, which it may change in place.
    """
    values = _inputs(tape)
    for step in tape.steps:
        call = _filled(step, values)
        results = _run(step, call)
        values.update(zip(step.outputs, results, strict=True))
        after(step, call, [t for t in results if t.is_floating_point()])
    return [values[slot] for slot in outputs]


def _float32_error(step: _Step, call: Call, result: Tensor) -> Tensor | None:
    """One rounding, of float32 arithmetic, of a step's result; None where it makes none."""
    if not step.rounds or step.dtype is torch.float64 or (step.moves and step.dtype in _HALVES):
        return None
    if not step.terms:
        return result.abs().mul_(U).add_(TINY)
    sizes = _run(step, _of_sizes(call))[0]
    return sizes.mul_(U * (math.log2(step.terms) + 2.0)).add_(TINY)


def _of_sizes(call: Call) -> Call:
    """The call with absolute values for all tensors and factors."""
    args, kwargs = tree_map(lambda leaf: leaf.abs() if _floating(leaf) else leaf, call)
    return args, kwargs | {name: abs(kwargs[name]) for name in ("alpha", "beta", "value") if name in kwargs}


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _moved_at_random(generator: torch.Generator) -> After:
    """Moves each float32 step's result by one rounding, with a random sign for each element."""

    def after(step: _Step, call: Call, results: list[Tensor]) -> None:
        for t in results:
            error = _float32_error(step, call, t)
            if error is not None:
                signs = torch.randint(0, 2, t.shape, generator=generator, dtype=t.dtype, device=t.device)
                t.add_(signs.mul_(2.0).sub_(1.0).mul_(error))

    return after


def _overflows(tape: _Tape, outputs: Sequence[_Slot]) -> list[Tensor]:
    """Where an output follows from a number that its rounding may have made infinite, the output itself aside.

    Such a number becomes NaN where it is read: by arithmetic, or on its way to another dtype. What follows from
    it is then NaN.
    """
    values = _inputs(tape)

    def read(leaf: Any, step: _Step) -> Any:
        if not isinstance(leaf, _Slot):
            return leaf
        t, dtype = values[leaf], tape.dtypes[leaf]
        if not _floating(t) or (step.moves and dtype is step.dtype):
            return t
        largest = torch.finfo(dtype).max / (1.0 + 2.0 * UNIT_ROUNDOFF[dtype])
        # What dtype holds exactly, as it does each element of an input, was not rounded.
        rounded = t.isfinite() & (t != t.to(dtype).double())
        return t.masked_fill(rounded & (t.abs() > largest), math.nan)

    for step in tape.steps:
        args, kwargs = tree_map(lambda leaf, step=step: read(leaf, step), (step.args, step.kwargs))
        if step.call._schema.is_mutable:
            args = (values[step.args[0]], *args[1:])
        values.update(zip(step.outputs, _run(step, (args, kwargs)), strict=True))
    return [values[slot].isnan() for slot in outputs]


def _first_order(tape: _Tape, outputs: Sequence[_Slot]) -> tuple[list[Tensor], list[Tensor]]:
    """For each output: the bound on float32 errors, and that on 16-bit roundings but for its own elements'."""
    values = _inputs(tape)
    noise, declared, own = ({s: t.zero_() if _floating(t) else t for s, t in _inputs(tape).items()} for _ in range(3))
    for step in tape.steps:
        call = _filled(step, values)
        if step.moves:
            results = _run(step, call)
            for errors in (noise, declared, own):
                errors.update(zip(step.outputs, _run(step, _filled(step, errors)), strict=True))
        else:
            passed = [_passed_on(step, call, _filled(step, errors)) for errors in (noise, declared)]
            results = _run(step, call)
            none = [torch.zeros_like(t) for t in results]
            for errors, made in zip((noise, declared, own), (*passed, none), strict=True):
                for slot, result, error in zip(step.outputs, results, made, strict=True):
                    if slot in errors and _floating(result):
                        errors[slot].copy_(error)  # in place
                    else:
                        errors[slot] = error if _floating(result) else result
        values.update(zip(step.outputs, results, strict=True))
        for slot, t in zip(step.outputs, results, strict=True):
            if not _floating(t):
                continue
            rounding = _float32_error(step, call, t)
            if rounding is not None:
                noise[slot].add_(rounding)
            if step.dtype not in _HALVES:
                own[slot].zero_()
            elif step.rounds:
                own[slot].copy_(t.abs() * UNIT_ROUNDOFF[step.dtype] + SMALLEST[step.dtype] / 2)
                declared[slot].add_(own[slot])
    return [noise[slot] for slot in outputs], [declared[slot] - own[slot] for slot in outputs]


def _passed_on(step: _Step, call: Call, errors: Call) -> list[Tensor]:
    """What a step makes, to first order, of errors of these sizes in its arguments."""
    total = [torch.zeros_like(t) for t in _run(step, tree_map(_cloned, call))]
    point = _of_sizes(call) if step.terms else call
    leaves, spec = tree_flatten(point)
    for at, error in enumerate(tree_leaves(errors)):
        if not _floating(leaves[at]) or not bool(error.any()):
            continue
        tangents = _tangents(step, leaves, spec, at, error)
        if step.terms > MANY:
            squares = [leaf.square() if _floating(leaf) else leaf for leaf in leaves]
            per_term = step.terms if step.call.overloadpacket is aten.mean else 1
            roots = [t.div(per_term).sqrt() for t in _tangents(step, squares, spec, at, error.square())]
            tangents = [torch.minimum(t, 3.0 * root) for t, root in zip(tangents, roots, strict=True)]
        for t, tangent in zip(total, tangents, strict=True):
            t.add_(tangent.abs())
    return total


def _tangents(step: _Step, leaves: list[Any], spec: Any, at: int, tangent: Tensor) -> list[Tensor]:
    """The derivative of each result along the tangent of one argument."""
    with forward.dual_level():
        copies = [_cloned(leaf) for leaf in leaves]
        copies[at] = forward.make_dual(copies[at], _cloned(tangent))
        results = [forward.unpack_dual(t) for t in _run(step, tree_unflatten(copies, spec))]
    return [torch.zeros_like(t.primal) if t.tangent is None else t.tangent for t in results]


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def bound(reference: Callable[..., Any], arguments: Mapping[str, Any], truths: Sequence[Tensor]) -> tuple[Running, ...]:
    """The bound of each output of a reference op, for arguments in their own dtypes.

    Args:
        reference: the op.
        arguments: what it is called with.
        truths: its outputs in float64, unperturbed; they become `Running.value` as they are.
    """
    with torch.no_grad():
        tape = _Tape()
        with tape:
            result = reference(**arguments)
        tensors = tuple(result) if isinstance(result, tuple) else (result,)
        outputs = [tape.slot(t) for t in tensors]
        reached = [torch.zeros_like(truth) for truth in truths]
        for seed in range(REPLAYS):
            generator = torch.Generator(truths[0].device).manual_seed(seed)
            for worst, t, truth in zip(
                reached, _replay(tape, outputs, _moved_at_random(generator)), truths, strict=True
            ):
                torch.maximum(worst, (t - truth).abs().nan_to_num(nan=0.0), out=worst)
        first_order, declared = _first_order(tape, outputs)
        marked = _overflows(tape, outputs)
    parts = zip(truths, first_order, reached, declared, marked, tensors, strict=True)
    made = []
    for truth, hard, worst, hard_declared, nan, t in parts:
        overflow = nan & ~truth.isnan()
        # What follows from an infinity that float64 does not have may be any number: 0 after a division by it.
        noise = _real(hard, worst).masked_fill(overflow, math.inf)
        made.append(Running(truth, noise, hard_declared.nan_to_num(nan=0.0), overflow, t.dtype))
    return tuple(made)


def _real(first_order: Tensor, reached: Tensor) -> Tensor:
    """The part of a bound that replays reached: the largest share of it in each row."""
    if not reached.numel() or not reached.dim():
        return torch.maximum(reached, first_order)
    share = (reached / first_order).nan_to_num(nan=0.0, posinf=0.0).amax(-1, keepdim=True)
    return torch.maximum(reached, first_order.nan_to_num(nan=0.0, posinf=0.0) * share)
