"""Second calls: the same values arranged in another way, compared with the first call.

Each check describes how the result differs, "" if it does not; `validation.judge.same_bits` says what each is for.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops import IndexedRows
from validation.cases.case import Case
from validation.cases.roles import ACTIVATIONS, MODULATIONS
from validation.cases.tensors import Arguments
from validation.chains import bounds
from validation.compiled.ptx import executing
from validation.errors import NotExecutedError
from validation.judge import oracle, structure
from validation.judge.bits import Outputs, difference, equal_bits, words_of
from validation.judge.expected import CHAINED, outputs_of
from validation.judge.form import wrong_execution
from validation.judge.stats import Budget, may_flush
from validation.ops import reference_op
from validation.verdict import Status, Verdict

# Maps a flag's value to another one, for the check `other_flags`.
OTHER_FLAGS: dict[str, Callable[[Any], Any]] = {
    "casting_mode": lambda mode: "input" if mode == "float32" else "float32",
    "interleaved": lambda interleaved: not interleaved,
    "scale_constant": lambda constant: 0.5 if constant == 1.0 else 1.0,
}


@dataclasses.dataclass(frozen=True)
class FirstCall:
    """The call that was judged, and what is needed to make another like it.

    Attributes:
        case: the case.
        candidate: the op.
        make: makes the case's tensors anew.
        arguments: the first call's arguments; their memory is written again.
        outputs: copies of its outputs.
        returned: its outputs themselves, if they have memory of their own; empty for an in-place call.
        kernels: all its arithmetic was in kernels that Triton's interpreter ran.
        even: its bits may not depend on a row's position, nor its code on the value of eps.
        failed: the failed verdict on outputs for this case; None if they pass.
        judged_as: the failed verdict on outputs for another case with the same tensors; None if they pass.
        device: ``cpu`` or ``cuda``.
    """

    case: Case
    candidate: Callable[..., Any]
    make: Callable[[], Arguments]
    arguments: Arguments
    outputs: Outputs
    returned: Outputs
    kernels: bool
    even: bool
    failed: Callable[[Outputs], Verdict | None]
    judged_as: Callable[[Case, Outputs], Verdict | None]
    device: str

    def judged(self, outputs: Outputs) -> str:
        """The judge's complaint about outputs for this case, "" if they pass."""
        failed = self.failed(outputs)
        return failed.reason if failed is not None else ""

    def again(self, **kwargs: Any) -> Outputs:
        """Call the candidate under guards and return its outputs as a tuple.

        Raises:
            ReusedOutputError: the call wrote to the first call's outputs, or returned their memory again.
        ViolationError: a compiled kernel did what it must not do.
        """
        result, guards = structure.call_guarded(self.candidate, Arguments(kwargs, {}, {}))
        violated = wrong_execution(guards.launched.executed)
        if violated is not None:
            raise ViolationError(violated)
        outputs = outputs_of(result)
        for kept, copy in zip(self.returned, self.outputs, strict=False):
            changed = ~equal_bits(kept, copy)
            if bool(changed.any()):
                raise ReusedOutputError(
                    f"the second call wrote to what the first returned: {words_of(changed, kept, copy, 'before it')}"
                )
            if any(isinstance(t, Tensor) and structure.shares_memory(t, kept) for t in outputs):
                raise ReusedOutputError("the second call returned the memory that the first had returned")
        return outputs


class ReusedOutputError(Exception):
    """An op reuses one buffer for the results of several calls."""


class ViolationError(Exception):
    """A compiled kernel did what it must not do.

    Attributes:
        verdict: what.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def plain_norm(case: Case) -> str:
    """The plain norm that a modulated norm equals at scale = shift = 0; "" for other ops."""
    return case.op.removeprefix(CHAINED).removesuffix("_scale_shift") if case.op.endswith("norm_scale_shift") else ""


def axes(case: Case) -> dict[str, tuple[str, ...]]:
    """Label each dimension of a case's tensors by what it counts; "" for channels.

    ``B`` is batch items, ``L`` tokens, ``F<n>`` n frames of tokens; independent rows get a label of their own.
    """
    shapes = {name: spec.shape for name, spec in case.tensors.items()}
    rotary = "cos" in shapes
    modulated = any(name.partition(".")[0] in (*MODULATIONS, "residual") for name in shapes)
    labels: dict[str, tuple[str, ...]] = {}
    for name, shape in shapes.items():
        rank = len(shape)
        if name in ACTIVATIONS:
            own = tuple(f"{name}{i}" for i in range(rank - 1))
            labels[name] = (*(("B", "L", *own[2:]) if rotary or modulated else own), "")
        elif name.endswith(".index"):
            labels[name] = ("B", "L")
        elif name.endswith(".table"):
            labels[name] = ("B", "", "") if rank == 3 else ("", "")
        elif name in ("cos", "sin"):
            labels[name] = {2: ("L", ""), 3: ("B", "L", ""), 4: ("B", "", "L", "")}[rank]
        elif rank == 2:  # shift, scale, gate
            labels[name] = ("B", "")
        elif rank == 3:
            labels[name] = ("B" if shape[0] > 1 else "", "L" if shape[1] > 1 else "", "")
        elif rank == 4:
            labels[name] = ("B", f"F{shape[1]}", "", "")
        else:
            labels[name] = ("",) * rank
    return labels


def _output_axes(first: FirstCall) -> tuple[tuple[str, ...], ...] | None:
    """The labels of the outputs' dimensions; None if an output differs in shape from its activation."""
    labels, tensors = axes(first.case), first.case.tensors
    names = ("q", "k") if "q" in labels else ("x",) * len(first.outputs)
    fits = len(names) == len(first.outputs) and all(
        tuple(t.shape) == tensors[name].shape for t, name in zip(first.outputs, names, strict=True)
    )
    return tuple(labels[name] for name in names) if fits else None


def _with_tensors(arguments: Arguments, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments with other tensors."""
    kwargs = dict(arguments.kwargs)
    for name, t in tensors.items():
        argument, _, part = name.partition(".")
        if part == "table":
            kwargs[argument] = IndexedRows(t, tensors[f"{argument}.index"])
        elif not part:
            kwargs[name] = t
    return kwargs


def _distinct(t: Tensor, strides: tuple[int, ...] | None = None) -> Tensor:
    """The view of t that covers each element of memory once: an expanded dimension cannot be written to."""
    return t[tuple(slice(0, 1 if stride == 0 else None) for stride in strides or t.stride())]


def repeat(first: FirstCall) -> str:
    """The same case in fresh memory."""
    return difference(first.again(**first.make().kwargs), first.outputs)


def batch_slice(first: FirstCall) -> str:
    """One batch item alone; for independent rows, one index of the first dimension."""
    labels, of_outputs = axes(first.case), _output_axes(first)
    if of_outputs is None:
        return ""

    def item(t: Tensor, dims: tuple[str, ...]) -> Tensor:
        for dim, label in enumerate(dims):
            if label in ("B", "x0", "q0", "k0") and t.shape[dim] > 1:
                t = t.narrow(dim, t.shape[dim] // 2, 1)
        return t

    fresh = first.make()
    got = first.again(**_with_tensors(fresh, {name: item(t, labels[name]) for name, t in fresh.tensors.items()}))
    words = difference(got, tuple(item(t, dims) for t, dims in zip(first.outputs, of_outputs, strict=True)))
    if not words or first.even:
        return words
    whole = tuple(t.clone() for t in first.outputs)
    for t, dims, part in zip(whole, of_outputs, got, strict=True):
        item(t, dims).copy_(part)
    return first.judged(whole)


def row_permutation(first: FirstCall) -> str:
    """Rows in another order, in the memory of the first call."""
    labels, of_outputs = axes(first.case), _output_axes(first)
    if of_outputs is None:
        return ""
    frames = any(label.startswith("F") for dims in labels.values() for label in dims)

    def permuted(t: Tensor, dims: tuple[str, ...], step: int = 1) -> Tensor:
        for dim, label in enumerate(dims):
            if label and t.shape[dim] > 1:
                # A roll by one: no row stays, and neighbours in a tile do not stay together. But tokens in frames
                # are reversed, which reverses the frames too, whatever their number.
                t = t.flip(dim) if frames and label != "B" else t.roll(step, dim)
        return t

    fresh = first.make().tensors
    for name, t in first.arguments.tensors.items():
        _distinct(t).copy_(_distinct(permuted(fresh[name], labels[name]), t.stride()))
    got = tuple(t.clone() if isinstance(t, Tensor) else t for t in first.again(**first.arguments.kwargs))
    for name, t in first.arguments.tensors.items():
        _distinct(t).copy_(_distinct(fresh[name]))
    words = difference(got, tuple(permuted(t, dims) for t, dims in zip(first.outputs, of_outputs, strict=True)))
    if not words or first.even:
        return words
    return first.judged(tuple(permuted(t, dims, -1) for t, dims in zip(got, of_outputs, strict=True)))


def layout(first: FirstCall) -> str:
    """Contiguous copies of all arguments."""
    fresh = first.make()
    copies = {name: t.clone(memory_format=torch.contiguous_format) for name, t in fresh.tensors.items()}
    outputs = first.again(**_with_tensors(fresh, copies))
    return difference(outputs, first.outputs) if first.kernels else first.judged(outputs)


def power_of_two(first: FirstCall) -> str:
    """Activations doubled in place, and with them the terms that are added to them."""
    fresh = first.make()
    normalises = "norm" in first.case.op
    specs = {spec: name for name, spec in first.case.tensors.items()}  # q and k may be one tensor
    for name in specs.values():
        t, (argument, _, part) = fresh.tensors[name], name.partition(".")
        if argument in ACTIVATIONS or (argument == "shift" and not normalises and part != "index"):
            _distinct(t).mul_(2.0)
    kwargs = fresh.kwargs | ({"eps": 4.0 * fresh.kwargs["eps"]} if normalises else {})
    # A normalised output stays the same; a sum doubles, also the one that is returned with a norm's result.
    factors = [1.0 if normalises else 2.0] * len(first.outputs)
    if first.case.op.startswith(CHAINED):
        factors[1] = 2.0
    got = first.again(**kwargs)
    words = difference(got, tuple(t * f for t, f in zip(first.outputs, factors, strict=True)))
    if not words or first.even:
        return words
    # torch.compile recompiles for another eps, and the new code may round differently (seen in float32).
    return first.judged(tuple(t / f for t, f in zip(got, factors, strict=True)))


def zero_gate(first: FirstCall) -> str:
    """``residual + x * 0``: equal in value, for -0 + 0 is 0."""
    fresh = first.make()
    kwargs = {**fresh.kwargs, "gate": torch.zeros((), dtype=torch.float32, device=first.device)}
    got, residual = first.again(**kwargs)[-1], fresh.tensors["residual"]
    differ = (got != residual) & fresh.tensors["x"].isfinite() & ~residual.isnan()
    return words_of(differ, got, residual, "the residual") if bool(differ.any()) else ""


def zero_modulation(first: FirstCall) -> str:
    """``norm(x) * (1 + 0) + 0``, without weight and bias, in the budget of the norm alone."""
    fresh = first.make()
    zero = torch.zeros((), dtype=torch.float32, device=first.device)
    kwargs = {**fresh.kwargs, "scale": zero, "shift": zero}
    kwargs = {name: value for name, value in kwargs.items() if name not in ("weight", "bias")}
    outputs = first.again(**kwargs)
    # The norm's input: x, or the residual_out that the call returns.
    x = outputs[1] if len(outputs) > 1 else fresh.tensors["x"]
    op = plain_norm(first.case)
    norm = {"x": x, "eps": fresh.kwargs["eps"]}
    truth = reference_op(op)(**{**norm, "x": x.double()})
    budget = Budget.of(bounds.bound(op, norm)[0], x.shape, x.dtype, flush=may_flush(first.device))
    over = (outputs[0].double() - truth).abs() > budget.allowed
    if not bool(over.any()):
        return ""
    oracle.confirm(op, norm, truth, 0, outputs[0], budget.allowed)
    return words_of(over, outputs[0], truth, f"{op} alone")


def other_flags(first: FirstCall) -> str | Verdict:
    """The same tensors with each of `OTHER_FLAGS` in turn: another case, with its own truth and budget."""
    for flag, other in OTHER_FLAGS.items():
        if flag in first.case.flags:
            value = other(first.case.flags[flag])
            case = dataclasses.replace(first.case, flags={**first.case.flags, flag: value})
            found = first.judged_as(case, first.again(**{**first.make().kwargs, flag: value}))
            if found is not None:
                return dataclasses.replace(found, reason=f"called next with {flag}={value!r}: {found.reason}")
    return ""


def approximations(first: FirstCall) -> str | Verdict:
    """Approximate instructions at either end of the interval that the PTX ISA allows them, and at random inside.

    All of them at one end makes a bias that no device has: there the bias is not judged, only each element.
    """
    for mode, where in (("low", "at the low end"), ("high", "at the high end"), ("seeded", "at random inside")):
        with executing.how(mode=mode):
            failed = first.failed(first.again(**first.make().kwargs))
        if failed is not None and (mode == "seeded" or failed.status is not Status.BIASED):
            return dataclasses.replace(
                failed, reason=f"with .approx results {where} of their intervals: {failed.reason}"
            )
    return ""


def thread_order(first: FirstCall) -> str:
    """Threads and CTAs that change one address come in the other order: nothing may depend on which is the last."""
    try:
        with executing.how(backwards=True):
            return difference(first.again(**first.make().kwargs), first.outputs)
    except NotExecutedError:  # a CTA that waits for one of a lower number cannot come before it
        return ""


def side_stream(first: FirstCall) -> str:
    """On a non-default stream, after the work that made the inputs."""
    fresh, stream = first.make(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = first.again(**fresh.kwargs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return difference(outputs, first.outputs)


def graph_replay(first: FirstCall) -> str:
    """Captured in a CUDA graph, replayed after its inputs are rewritten."""
    fresh, values = first.make(), first.make().tensors
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            first.candidate(**fresh.kwargs)  # compiles what cannot be compiled during a capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = first.candidate(**fresh.kwargs)
        for name, t in fresh.tensors.items():
            _distinct(t).copy_(_distinct(values[name]))
        graph.replay()
    torch.cuda.synchronize()
    return difference(outputs_of(result), first.outputs)
