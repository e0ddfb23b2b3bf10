"""The error bound and the legal replay of an op without a chain: a tape of its reference, every step perturbed.

The bound comes from a `tape` of the reference in its working dtypes, replayed in float64:

* First-order bounds on the effect of roundings on each element, propagated from step to step as in `running`
  (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 3.3), with the derivative of
  each step by forward differentiation. A step in float32 adds u = 2^-24 of its result; a sum of n terms
  u (log2(n) + 2) of the sum of its terms' sizes. A step in 16 bits also adds half an ulp, kept separately in
  `Running.declared`. The rounding that makes an output's own elements is left out: the budget has it. If a
  sum has many terms, their roundings add up as random signs do: three times the root of the sum of squares,
  which is five standard deviations, since a rounding error is uniform and not at the end of its interval.
* How much of the float32 bound is real. A shared error (of a mean, of an rstd) can cancel later, which a
  bound of absolute values does not see: at a mean of 30 sigma it is ten times too wide. So
  the tape is replayed `REPLAYS` times with every float32 step moved up or down by one rounding, each element
  at random (perturbed replay: Vignes, Mathematics and Computers in Simulation 35, 1993; Parker, Monte Carlo
  arithmetic, UCLA CSD-970002, 1997). `Running.noise` is the first-order bound times the largest share of it
  that the replays reached in the row (the last dimension), and at least what they reached in the element.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor

from validation.chains.rounding import Rounding
from validation.chains.running import TINY, Running, U
from validation.chains.tape import HALVES, Call, Slot, Step, Tape, aten, filled, inputs_of, is_view, run
from validation.chains.ulp import SMALLEST, UNIT_ROUNDOFF
from validation.device.private import tree_flatten, tree_leaves, tree_map, tree_unflatten

REPLAYS = 16

# Sums of more terms than this are bounded by three times the root of the sum of squares; others by the plain sum.
MANY = 9

After = Callable[[Step, Call, list[Tensor]], None]


def _replay(tape: Tape, outputs: Sequence[Slot], after: After) -> list[Tensor]:
    """Run the tape in float64; returns the outputs.

    Args:
        tape: the recorded run.
        outputs: their slots.
        after: called after each step with its arguments and floating results, which it may change in place.
    """
    values = inputs_of(tape)
    for step in tape.steps:
        call = filled(step, values)
        results = run(step, call)
        values.update(zip(step.outputs, results, strict=True))
        after(step, call, [t for t in results if t.is_floating_point()])
    return [values[slot] for slot in outputs]


def _float32_error(step: Step, call: Call, result: Tensor) -> Tensor | None:
    """The float32 rounding error of a step's result; None if the step makes none."""
    if not step.rounds or step.dtype is torch.float64 or (step.moves and step.dtype in HALVES):
        return None
    if not step.terms:
        return result.abs().mul_(U).add_(TINY)
    sizes = run(step, _of_sizes(call))[0]
    return sizes.mul_(U * (math.log2(step.terms) + 2.0)).add_(TINY)


def _of_sizes(call: Call) -> Call:
    """The call with all tensors and factors replaced by their absolute values."""
    args, kwargs = tree_map(lambda leaf: leaf.abs() if _floating(leaf) else leaf, call)
    return args, kwargs | {name: abs(kwargs[name]) for name in ("alpha", "beta", "value") if name in kwargs}


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _moved_at_random(generator: torch.Generator) -> After:
    """A callback that moves each float32 step's result by one rounding, with a random sign for each element."""

    def after(step: Step, call: Call, results: list[Tensor]) -> None:
        for t in results:
            error = _float32_error(step, call, t)
            if error is not None:
                signs = torch.randint(0, 2, t.shape, generator=generator, dtype=t.dtype, device=t.device)
                t.add_(signs.mul_(2.0).sub_(1.0).mul_(error))

    return after


def replay(reference: Callable[[], Any], rounding: Rounding | None) -> list[tuple[Tensor, torch.dtype]]:
    """A legal replay of a reference's call: its outputs in float64, not yet rounded, and their dtypes.

    Steps in 16 bits are rounded to nearest, except those that make the outputs' own elements.

    Args:
        reference: makes the call.
        rounding: the float32 arithmetic of the steps; None makes no error.
    """
    with torch.no_grad():
        tape, outputs = _recorded(reference, Tape(layer_norm_as_torch=True))
        rounded, exact = inputs_of(tape), inputs_of(tape)  # exact: the same values before their own rounding
        for step in tape.steps:
            call = filled(step, rounded)
            if step.moves:
                exact.update(zip(step.outputs, run(step, filled(step, exact)), strict=True))
            results = run(step, call) if rounding is None or not step.terms else _summed(step, call, rounding)
            rounded.update(zip(step.outputs, results, strict=True))
            for slot, t in zip(step.outputs, results, strict=True):
                if not _floating(t):
                    exact[slot] = t
                    continue
                if slot not in exact:
                    exact[slot] = t.clone()
                elif not step.moves or (step.dtype not in HALVES and not is_view(step.call)):
                    exact[slot].copy_(t)
                if step.rounds and step.dtype in HALVES:
                    t.copy_(t.to(step.dtype).double())
                elif step.rounds and step.dtype is torch.float32 and rounding is not None:
                    t.copy_(rounding.rounded(t))
    return [(exact[tape.slot(t)], t.dtype) for t in outputs]


def _summed(step: Step, call: Call, rounding: Rounding) -> list[Tensor]:
    """The results of a sum of many terms, or of a product of matrices: summed in float32, in a random order."""
    args, kwargs = tree_map(_narrow, call)
    wide = args
    match step.call.overloadpacket:
        case aten.sum | aten.mean:
            dims = args[1] if len(args) > 1 and args[1] else range(args[0].dim())
            for d in dims:
                order = rounding.order(args[0].shape[d], args[0].device)
                wide = (wide[0].index_select(d, order), *wide[1:])
        case aten.mm | aten.bmm | aten.addmm | aten.baddbmm:
            a, b = args[-2:]
            order = rounding.order(a.shape[-1], a.device)
            wide = (*args[:-2], a.index_select(-1, order), b.index_select(-2, order))
    return [t.double() if t.is_floating_point() else t for t in run(step, (wide, kwargs))]


def _narrow(leaf: Any) -> Any:
    """The leaf in float32 if it is a float64 tensor or dtype."""
    if leaf is torch.float64:
        return torch.float32
    return leaf.float() if _floating(leaf) else leaf


def _recorded(reference: Callable[[], Any], tape: Tape | None = None) -> tuple[Tape, tuple[Tensor, ...]]:
    """A tape of a call, and what the call returned."""
    tape = tape or Tape()
    with tape:
        result = reference()
    return tape, tuple(result) if isinstance(result, tuple) else (result,)


def _overflows(tape: Tape, outputs: Sequence[Slot]) -> list[Tensor]:
    """Where an output depends on a number, other than itself, that its rounding may or may not have made infinite.

    Of one beyond twice the largest number nothing is open: the reference shows what follows from its overflow, and the
    judge takes an element that is no further from the truth than that.

    Such a number becomes NaN where it is read, by arithmetic or by a cast, and everything that depends on it
    is then NaN.
    """
    values = inputs_of(tape)

    def read(leaf: Any, step: Step) -> Any:
        if not isinstance(leaf, Slot):
            return leaf
        t, dtype = values[leaf], tape.dtypes[leaf]
        if not _floating(t) or (step.moves and dtype is step.dtype):
            return t
        largest = torch.finfo(dtype).max / (1.0 + 2.0 * UNIT_ROUNDOFF[dtype])
        # A value that dtype holds exactly, such as each element of an input, was not rounded.
        rounded = t.isfinite() & (t != t.to(dtype).double())
        may = (t.abs() > largest) & (t.abs() <= 2.0 * torch.finfo(dtype).max)
        return t.masked_fill(rounded & may, math.nan)

    for step in tape.steps:
        args, kwargs = tree_map(lambda leaf, step=step: read(leaf, step), (step.args, step.kwargs))
        if step.call._schema.is_mutable:
            args = (values[step.args[0]], *args[1:])
        values.update(zip(step.outputs, run(step, (args, kwargs)), strict=True))
    return [values[slot].isnan() for slot in outputs]


def _first_order(tape: Tape, outputs: Sequence[Slot]) -> tuple[list[Tensor], list[Tensor]]:
    """For each output: the bounds on float32 errors and on 16-bit roundings, without that of its own elements."""
    values = inputs_of(tape)
    noise, declared, own = ({s: t.zero_() if _floating(t) else t for s, t in inputs_of(tape).items()} for _ in range(3))
    for step in tape.steps:
        call = filled(step, values)
        if step.moves:
            results = run(step, call)
            for errors in (noise, declared, own):
                errors.update(zip(step.outputs, run(step, filled(step, errors)), strict=True))
        else:
            passed = [_passed_on(step, call, filled(step, errors)) for errors in (noise, declared)]
            results = run(step, call)
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
            if step.dtype not in HALVES:
                own[slot].zero_()
            elif step.rounds:
                own[slot].copy_(t.abs() * UNIT_ROUNDOFF[step.dtype] + SMALLEST[step.dtype] / 2)
                declared[slot].add_(own[slot])
    return [noise[slot] for slot in outputs], [declared[slot] - own[slot] for slot in outputs]


def _passed_on(step: Step, call: Call, errors: Call) -> list[Tensor]:
    """The first-order errors of a step's results, given errors of these sizes in its arguments."""
    total = [torch.zeros_like(t) for t in run(step, tree_map(_cloned, call))]
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


def _tangents(step: Step, leaves: list[Any], spec: Any, at: int, tangent: Tensor) -> list[Tensor]:
    """The derivative of each result along the tangent of one argument."""
    with forward.dual_level():
        copies = [_cloned(leaf) for leaf in leaves]
        copies[at] = forward.make_dual(copies[at], _cloned(tangent))
        results = [forward.unpack_dual(t) for t in run(step, tree_unflatten(copies, spec))]
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
        tape, tensors = _recorded(lambda: reference(**arguments))
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
        # A value that depends on an infinity absent in float64 may be any number: 0 after a division by it.
        noise = _real(hard, worst).masked_fill(overflow, math.inf)
        made.append(Running(truth, noise, hard_declared.nan_to_num(nan=0.0), overflow, t.dtype))
    return tuple(made)


def _real(first_order: Tensor, reached: Tensor) -> Tensor:
    """The part of a bound that replays reached: the largest share of it in each row."""
    if not reached.numel() or not reached.dim():
        return torch.maximum(reached, first_order)
    share = (reached / first_order).nan_to_num(nan=0.0, posinf=0.0).amax(-1, keepdim=True)
    return torch.maximum(reached, first_order.nan_to_num(nan=0.0, posinf=0.0) * share)
