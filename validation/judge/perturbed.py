"""The error bound of an op that has no hand-made one: its reference, replayed with every step perturbed.

The reference runs once in its working dtypes while a tape records each ATen operation; ops that hide several
roundings (layer norm, softmax, attention, ...) are recorded as the steps inside them. The tape is then
replayed in float64, where a step that would have been rounded is moved by one rounding, up or down at
random, element by element. What that does to the outputs, against the unperturbed truth, is the bound:

* ``noise``, of float32 arithmetic: all steps moved at once, by u = 2^-24 of their result; a sum of n terms by
  u (log2(n) + 2) of the sum of its terms' sizes, as in `running_error`. The largest deviation of `REPLAYS`
  replays: of n equal contributions it finds the sum n u for n <= 4, about 2 u sqrt(n) for many.
* ``declared``, of 16-bit steps: one step at a time, and the contributions added, for a budget takes declared
  roundings as a hard bound. A rounding that reaches an element by one path moves it by the same amount
  whatever its sign; one that reaches it through a reduction moves it at random. Mean plus four standard
  deviations of |deviation| over `DRAWS` replays is the bound of either. The rounding that makes an output's
  own elements is left out: the budget adds it as half an ulp.

This is stochastic rounding-error analysis by perturbed replay (CESTAC: Vignes, Mathematics and Computers in
Simulation 35, 1993; Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997) with the perturbations of the
standard model (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 2.2).

It sees what PyTorch dispatches. What a reference computes outside of PyTorch (``.item()``, NumPy, a kernel of
its own) enters the replay as a constant in its working precision.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from validation.judge.running_error import TINY, Running, U
from validation.judge.ulp import SMALLEST, UNIT_ROUNDOFF

REPLAYS = 16
DRAWS = 4

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
    | {aten.min, aten.lift_fresh, aten.tril, aten.triu}
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
    return _var(x, dim, correction=correction, keepdim=keepdim), x.mean(dim, keepdim=keepdim)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    wide = _wide(x)
    raised = torch.exp(wide - wide.amax(dim, keepdim=True))
    y = raised / raised.sum(dim, keepdim=True)
    return y if half_to_float else y.to(x.dtype)


# What is recorded as the steps inside it. torch's own decompositions where they give ATen operations.
_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.var.correction: _var,
    aten.var_mean.correction: _var_mean,
    aten._softmax.default: _softmax,
    aten._scaled_dot_product_flash_attention_for_cpu.default: decomposition_table[
        aten._scaled_dot_product_flash_attention_for_cpu.default
    ],
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

    call: Callable[..., Any]
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
            self.inputs[self._slot(t)] = t.detach().clone()
        return self._slots[id(t)]

    def _slot(self, t: Tensor) -> _Slot:
        if id(t) not in self._slots:
            self._slots[id(t)] = _Slot(len(self._slots))
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


Call = tuple[tuple[Any, ...], dict[str, Any]]
After = Callable[[int, _Step, Call, list[Tensor]], None]


def _replay(tape: _Tape, outputs: Sequence[_Slot], after: After, start: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run a tape on other numbers; returns the outputs.

    Args:
        tape: the recorded run.
        outputs: their slots.
        after: called after each step with its number, the step, its arguments and its floating results,
            which it may change in place.
        start: float64 numbers of its own in place of a floating input.
    """
    values = {slot: start(t) if t.is_floating_point() else t.clone() for slot, t in tape.inputs.items()}
    for number, step in enumerate(tape.steps):
        call = tree_map(lambda leaf: values[leaf] if isinstance(leaf, _Slot) else leaf, (step.args, step.kwargs))
        results = [t for t in tree_leaves(step.call(*call[0], **call[1])) if isinstance(t, Tensor)]
        values.update(zip(step.outputs, results, strict=True))
        after(number, step, call, [t for t in results if t.is_floating_point()])
    return [values[slot] for slot in outputs]


def _double(t: Tensor) -> Tensor:
    return t.to(torch.float64, copy=True)


def _move(t: Tensor, by: Tensor, generator: torch.Generator) -> None:
    """Add ``by`` to t in place, with a random sign for each element."""
    signs = torch.randint(0, 2, t.shape, generator=generator, dtype=t.dtype, device=t.device)
    t.add_(signs.mul_(2.0).sub_(1.0).mul_(by))


def _size(step: _Step, call: Call, result: Tensor) -> Tensor:
    """What the float32 error of a step is u times of."""
    if not step.terms:
        return result.abs()
    args, kwargs = tree_map(lambda leaf: leaf.abs() if isinstance(leaf, Tensor) else leaf, call)
    factors = {name: abs(kwargs[name]) for name in ("alpha", "beta", "value") if name in kwargs}
    sizes: Tensor = step.call(*args, **{**kwargs, **factors})
    return sizes.mul_(math.log2(step.terms) + 2.0)


def _float32_noise(generator: torch.Generator) -> After:
    def after(_: int, step: _Step, call: Call, results: list[Tensor]) -> None:
        if step.dtype is torch.float64 or not step.rounds or (step.moves and step.dtype in _HALVES):
            return
        for t in results:
            _move(t, _size(step, call, t).mul_(U).add_(TINY), generator)

    return after


def _one_rounding(at: int, generator: torch.Generator) -> After:
    def after(number: int, step: _Step, _: Call, results: list[Tensor]) -> None:
        if number == at and step.dtype is not None:
            for t in results:
                _move(t, t.abs().mul_(UNIT_ROUNDOFF[step.dtype]).add_(SMALLEST[step.dtype] / 2), generator)

    return after


def _mark_rounding(number: int, step: _Step, _: Call, results: list[Tensor]) -> None:
    """Write into each 16-bit element the number of the step that rounded it, counted from 1, else 0."""
    if step.dtype in _HALVES and step.moves and not step.rounds:
        return
    for t in results:
        t.fill_(number + 1 if step.rounds and step.dtype in _HALVES else 0)


def _mark_overflow(_: int, step: _Step, __: Call, results: list[Tensor]) -> None:
    """Make NaN of each number that a rounding may make infinite, so that what follows from it is NaN."""
    if step.rounds and step.dtype is not None:
        largest = torch.finfo(step.dtype).max / (1.0 + 2.0 * UNIT_ROUNDOFF[step.dtype])
        for t in results:
            t.masked_fill_(t.isfinite() & (t.abs() > largest), math.nan)


def _undisturbed(_: int, __: _Step, ___: Call, ____: list[Tensor]) -> None:
    """Leave a step as it is."""


def _declared(tape: _Tape, outputs: Sequence[_Slot], device: torch.device) -> list[Tensor]:
    """What the 16-bit roundings may add to each output, but for those of its own elements."""
    truths = _replay(tape, outputs, _undisturbed, _double)
    total = [torch.zeros_like(truth) for truth in truths]
    steps = [number for number, step in enumerate(tape.steps) if step.rounds and step.dtype in _HALVES]
    if not steps:
        return total
    own = _replay(tape, outputs, _mark_rounding, lambda t: torch.zeros_like(t, dtype=torch.float64))
    for at in steps:
        draws = [
            _deviations(tape, outputs, truths, _one_rounding(at, _generator(device, draw))) for draw in range(DRAWS)
        ]
        for i, added in enumerate(total):
            spread, mean = torch.std_mean(torch.stack([draw[i] for draw in draws]), 0)
            added += torch.where(own[i] == at + 1, 0.0, mean + 4.0 * spread)
    return total


def _deviations(tape: _Tape, outputs: Sequence[_Slot], truths: Sequence[Tensor], after: After) -> list[Tensor]:
    replayed = _replay(tape, outputs, after, _double)
    pairs = zip(replayed, truths, strict=True)
    return [torch.where(truth.isfinite(), (t - truth).abs().nan_to_num(nan=math.inf), 0.0) for t, truth in pairs]


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


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
        outputs, device = [tape.slot(t) for t in tensors], truths[0].device
        noise = [torch.zeros_like(truth) for truth in truths]
        for seed in range(REPLAYS):
            deviations = _deviations(tape, outputs, truths, _float32_noise(_generator(device, seed)))
            noise = [torch.maximum(n, d) for n, d in zip(noise, deviations, strict=True)]
        declared = _declared(tape, outputs, device)
        marked = _replay(tape, outputs, _mark_overflow, _double)
    overflow = [t.isnan() & ~truth.isnan() for t, truth in zip(marked, truths, strict=True)]
    parts = zip(truths, noise, declared, overflow, tensors, strict=True)
    return tuple(Running(truth, n, d, o, t.dtype) for truth, n, d, o, t in parts)
