"""Same input, same bits: what a second call must give, with the same values arranged in another way.

Each check calls the candidate once more and compares with the first call bit by bit (NaN equal to NaN):

repeat            the same case in fresh memory
batch slice       one item of the batch alone, as views of the same strides
row permutation   batch items and tokens in another order, written into the memory of the first call, so that
                  what a candidate kept under an address is found out
layout            contiguous copies of all arguments
power of two      activations twice as large (and eps four times) give results of the same bits, or twice as large
zero gate         a gate of 0 returns the residual
other flags       another casting mode, pairing or scale constant, in the budget of that case: what a launch keeps
                  for tensors of these shapes must not keep the flags of the call before
zero modulation   scale = shift = 0, without weight and bias, is the plain norm: within its budget, for it may
                  be another kernel
side stream, graph replay    on CUDA; the replay where PyTorch's caching allocator is on

The contract asks the first three of every op set. On the CPU, PyTorch's own kernels cannot give all of it: they
have a vector body and a scalar tail, and the order of a sum follows the strides. So

* another layout must give the same bits where all arithmetic is in kernels that Triton's interpreter runs, for
  it has no vector width. Elsewhere, on CUDA too, the result is held to the error budget (torch 2.13, CPU:
  `torch.mean` over a strided last dimension differs from the contiguous one in the last bit);
* a slice or a permutation must give the same bits on CUDA, but of PyTorch's own sums and norms, which share a row
  out by how many there are; and on the CPU where the arithmetic is in such kernels, or in PyTorch of basic operations
  (`structure.GuardedAllocations.basic`). Elsewhere the budget again: an exponential, a complex product, a sum over
  elements apart has a form for the body and another for the tail. Measured on the CPU, of 12,000 slices and
  permutations each: torch's own functions composed gave other bits in 9, all of complex products; the reference ops
  in 2, both sums over a strided last dimension.

A check costs a call of the candidate. So that judging costs no more than truth and candidate do, each small case
gets one check, every other of them the repetition, and one in four of the larger cases gets one; which, its
seed decides. Any of them is a second call, and shows what is left of the first.
"""

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reference_ops import IndexedRows
from validation.cases.case import Case
from validation.cases.roles import ACTIVATIONS, MODULATIONS
from validation.cases.tensors import Arguments
from validation.chains import bounds
from validation.errors import CannotExpress
from validation.judge import structure, where
from validation.judge.stats import Budget
from validation.ops import reference_op, surroundings, tracebacks

Outputs = tuple[Tensor, ...]

# Elements of the largest tensor up to which a case is small.
SMALL = 4096

CHAINED = "scale_residual_"

# Checks that call with other strides, dtypes or forms (a batch of one has stride 0 in the modulation): on a GPU each
# may compile another kernel.
OTHER_KERNEL = ("batch slice", "layout", "zero gate", "zero modulation", "other flags")

# Names of the corners in which one of the checks is due begin so.
CORNER = "same bits: "

# Of twelve kernels so many get no such check: beside the 97 kernels of the largest op's first calls there is room for
# some 50 in 2,000 cases (`validation.parity.compile_keys`).
UNCHECKED = 7

# What a check calls with in place of a flag's value.
OTHER_FLAGS: dict[str, Callable[[Any], Any]] = {
    "casting_mode": lambda mode: "input" if mode == "float32" else "float32",
    "interleaved": lambda interleaved: not interleaved,
    "scale_constant": lambda constant: 0.5 if constant == 1.0 else 1.0,
}

# Set under compute-sanitizer, in `benchmarks/gpu_record.py`.
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"

# Regimes in which doubling neither overflows nor leaves what underflowed before.
SCALABLE = ("normal", "mean_offset", "outlier_channels", "dit")


@dataclasses.dataclass(frozen=True)
class FirstCall:
    """The call that was judged, and what is needed to make another like it.

    Attributes:
        case: what was fed.
        candidate: the op.
        make: new tensors of the case.
        arguments: of the first call; their memory is written again.
        outputs: copies of what it returned.
        returned: what it returned in memory of its own: all of it, or nothing of a call in place.
        kernels: all its arithmetic was in kernels that Triton's interpreter ran.
        even: its bits may not depend on where a row stands, nor its code on the value of eps.
        judged: what the judge says of outputs for this case, "" where they pass.
        judged_as: what it says of outputs for another case with the same tensors.
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
    judged: Callable[[Outputs], str]
    judged_as: Callable[[Case, Outputs], str]
    device: str

    def again(self, **kwargs: Any) -> Outputs:
        """Call the candidate under guards; what it returned, as a tuple.

        Raises:
            ReusedOutputError: that call wrote to what the first one returned, or returned its memory again.
        """
        with surroundings.kept():
            result, _ = structure.call_guarded(self.candidate, Arguments(kwargs, {}, {}))
        outputs = tuple(result) if isinstance(result, tuple) else (result,)
        for kept, copy in zip(self.returned, self.outputs, strict=False):
            changed = ~equal_bits(kept, copy)
            if bool(changed.any()):
                raise ReusedOutputError(
                    f"the second call wrote to what the first returned: {_words(changed, kept, copy, 'before it')}"
                )
            if any(isinstance(t, Tensor) and structure.shares_memory(t, kept) for t in outputs):
                raise ReusedOutputError("the second call returned the memory that the first had returned")
        return outputs


class ReusedOutputError(Exception):
    """An op has one buffer for the results of several calls."""


def failure(first: FirstCall) -> tuple[str, str] | None:
    """The first of the `due` checks that fails, and how, in words."""
    for name in due(first.case, first.device):
        try:
            words = CHECKS[name](first)
        except ReusedOutputError as error:
            words = str(error)
        except CannotExpress:
            continue
        except BaseException as error:  # whatever a candidate raises is its verdict
            if tracebacks.is_interrupt(error):
                raise
            words = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
        if words:
            return name, words
    return None


def due(case: Case, device: str) -> tuple[str, ...]:
    """The names of the checks that a case gets."""
    elements = max((spec.numel for spec in case.tensors.values()), default=0)
    if elements == 0:
        return ()
    applicable = [name for name in CHECKS if applies(name, case, device)]
    lot = zlib.crc32(f"{case.seed}/{case.op}/same bits".encode())
    share, check = divmod(lot, len(applicable))
    if elements <= SMALL:
        return ("repeat",) if share % 2 else (applicable[1 + lot % (len(applicable) - 1)],)
    return (applicable[check],) if share % 4 == 0 else ()


def affordable(case: Case) -> frozenset[str]:
    """The checks that a case may get where each kernel compiled for a first call may cost one more at most.

    The same for cases that one kernel computes: those that need no other kernel, and of `OTHER_KERNEL` one, or none
    (`UNCHECKED`).
    """
    kinds = sorted((n, t.dtype, len(t.shape), t.strides[-1:], t.offset % 8) for n, t in case.tensors.items())
    modes = sorted((name, value) for name, value in case.flags.items() if isinstance(value, bool | str))
    lot = zlib.crc32(f"{case.op} {kinds} {modes}".encode()) % (len(OTHER_KERNEL) + UNCHECKED)
    return frozenset(CHECKS).difference(OTHER_KERNEL) | {*OTHER_KERNEL[lot : lot + 1]}


def applies(name: str, case: Case, device: str) -> bool:
    """Whether a check can be made of a case."""
    known = case.op.removeprefix(CHAINED) in bounds.BOUNDS
    has_eps = "eps" in case.flags or "norm" not in case.op
    match name:
        case "power of two":
            # Not float16: a product may be subnormal on the way where twice the product is not.
            # Nor where one tensor is scale and shift, of which only the shift grows with x.
            shift = case.tensors.get("shift")
            alone = shift is None or shift != case.tensors.get("scale")
            return known and has_eps and alone and case.values in SCALABLE and case.dtype != "float16"
        case "zero gate":
            return known and "residual" in case.tensors
        case "zero modulation":
            return known and has_eps and _plain(case) != ""
        case "other flags":
            return any(flag in case.flags for flag in OTHER_FLAGS)
        case "side stream":
            return device == "cuda"
        case "graph replay":
            # Without its cache PyTorch allocates by cudaMalloc, which a capture refuses whatever the op.
            return device == "cuda" and NO_CACHING not in os.environ
    return True


def _plain(case: Case) -> str:
    """The norm that a modulated norm is at scale = shift = 0; "" for other ops."""
    return case.op.removeprefix(CHAINED).removesuffix("_scale_shift") if case.op.endswith("norm_scale_shift") else ""


def axes(case: Case) -> dict[str, tuple[str, ...]]:
    """What the dimensions of a case's tensors count: the same label, the same thing; "" for channels.

    ``B`` batch items, ``L`` tokens, ``F<n>`` n frames of them; a label of its own where rows stand alone.
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
    """The labels of the outputs' dimensions; None where an output has not the shape of its activation."""
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


def equal_bits(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise: equal, or both NaN. 0 and -0 differ."""
    return ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())


def _difference(got: Outputs, expected: Outputs) -> str:
    """How the bits of two calls' outputs differ, "" where they do not."""
    if len(got) != len(expected):
        return f"returned {len(got)} outputs, {len(expected)} the first time"
    for t, before in zip(got, expected, strict=True):
        if not isinstance(t, Tensor) or t.shape != before.shape or t.dtype != before.dtype:
            return f"returned {_kind(t)}, {_kind(before)} the first time"
        differ = ~equal_bits(t, before)
        if bool(differ.any()):
            return _words(differ, t, before, "the first time")
    return ""


def _kind(value: object) -> str:
    return f"{list(value.shape)} {str(value.dtype)[6:]}" if isinstance(value, Tensor) else type(value).__name__


def _words(differ: Tensor, got: Tensor, expected: Tensor, whence: str) -> str:
    at = tuple(differ.nonzero()[0].tolist())
    count = f"{int(differ.sum())} of {differ.numel()} elements differ, the first at {where.index_text(at)}"
    pattern = where.describe(differ)
    return f"{count} ({got[at].item():.9g}, {expected[at].item():.9g} {whence}){'; ' if pattern else ''}{pattern}"


def _distinct(t: Tensor, strides: tuple[int, ...] | None = None) -> Tensor:
    """The part of t that holds each element of memory once: an expanded dimension cannot be written to."""
    return t[tuple(slice(0, 1 if stride == 0 else None) for stride in strides or t.stride())]


def repeat(first: FirstCall) -> str:
    """The same case in fresh memory."""
    return _difference(first.again(**first.make().kwargs), first.outputs)


def batch_slice(first: FirstCall) -> str:
    """One batch item alone; where rows stand alone, one index of the first dimension."""
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
    words = _difference(got, tuple(item(t, dims) for t, dims in zip(first.outputs, of_outputs, strict=True)))
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
                # One step on: no row stays, and neighbours in a tile do not stay together. But tokens in
                # frames are reversed, for then the frames are too, however many there are.
                t = t.flip(dim) if frames and label != "B" else t.roll(step, dim)
        return t

    fresh = first.make().tensors
    for name, t in first.arguments.tensors.items():
        _distinct(t).copy_(_distinct(permuted(fresh[name], labels[name]), t.stride()))
    got = tuple(t.clone() if isinstance(t, Tensor) else t for t in first.again(**first.arguments.kwargs))
    for name, t in first.arguments.tensors.items():
        _distinct(t).copy_(_distinct(fresh[name]))
    words = _difference(got, tuple(permuted(t, dims) for t, dims in zip(first.outputs, of_outputs, strict=True)))
    if not words or first.even:
        return words
    return first.judged(tuple(permuted(t, dims, -1) for t, dims in zip(got, of_outputs, strict=True)))


def layout(first: FirstCall) -> str:
    """Contiguous copies of all arguments."""
    fresh = first.make()
    copies = {name: t.clone(memory_format=torch.contiguous_format) for name, t in fresh.tensors.items()}
    outputs = first.again(**_with_tensors(fresh, copies))
    return _difference(outputs, first.outputs) if first.kernels else first.judged(outputs)


def power_of_two(first: FirstCall) -> str:
    """Activations doubled where they lie, and with them what is added to them."""
    fresh = first.make()
    normalises = "norm" in first.case.op
    specs = {spec: name for name, spec in first.case.tensors.items()}  # q and k may be one tensor
    for name in specs.values():
        t, (argument, _, part) = fresh.tensors[name], name.partition(".")
        if argument in ACTIVATIONS or (argument == "shift" and not normalises and part != "index"):
            _distinct(t).mul_(2.0)
    kwargs = fresh.kwargs | ({"eps": 4.0 * fresh.kwargs["eps"]} if normalises else {})
    # What was normalised stays the same; a sum doubles, and so does the one that comes with a norm's result.
    factors = [1.0 if normalises else 2.0] * len(first.outputs)
    if first.case.op.startswith(CHAINED):
        factors[1] = 2.0
    got = first.again(**kwargs)
    words = _difference(got, tuple(t * f for t, f in zip(first.outputs, factors, strict=True)))
    if not words or first.even:
        return words
    # torch.compile compiles anew for another eps, and the new code may round otherwise (seen in float32).
    return first.judged(tuple(t / f for t, f in zip(got, factors, strict=True)))


def zero_gate(first: FirstCall) -> str:
    """``residual + x * 0``: equal in value, for -0 + 0 is 0."""
    fresh = first.make()
    kwargs = {**fresh.kwargs, "gate": torch.zeros((), dtype=torch.float32, device=first.device)}
    got, residual = first.again(**kwargs)[-1], fresh.tensors["residual"]
    differ = (got != residual) & fresh.tensors["x"].isfinite() & ~residual.isnan()
    return _words(differ, got, residual, "the residual") if bool(differ.any()) else ""


def zero_modulation(first: FirstCall) -> str:
    """``norm(x) * (1 + 0) + 0``, without weight and bias, in the budget of the norm alone."""
    fresh = first.make()
    zero = torch.zeros((), dtype=torch.float32, device=first.device)
    kwargs = {**fresh.kwargs, "scale": zero, "shift": zero}
    kwargs = {name: value for name, value in kwargs.items() if name not in ("weight", "bias")}
    outputs = first.again(**kwargs)
    # What is normalised: x, or the residual_out that the call gives.
    x = outputs[1] if len(outputs) > 1 else fresh.tensors["x"]
    op = _plain(first.case)
    norm = {"x": x, "eps": fresh.kwargs["eps"]}
    truth = reference_op(op)(**{**norm, "x": x.double()})
    budget = Budget.of(bounds.bound(op, norm)[0], x.shape, x.dtype, flush=first.device == "cuda")
    over = (outputs[0].double() - truth).abs() > budget.allowed
    return _words(over, outputs[0], truth, f"{op} alone") if bool(over.any()) else ""


def other_flags(first: FirstCall) -> str:
    """The same tensors with each of `OTHER_FLAGS` in turn: another case, whose truth and budget are its own."""
    for flag, other in OTHER_FLAGS.items():
        if flag in first.case.flags:
            value = other(first.case.flags[flag])
            case = dataclasses.replace(first.case, flags={**first.case.flags, flag: value})
            words = first.judged_as(case, first.again(**{**first.make().kwargs, flag: value}))
            if words:
                return f"called next with {flag}={value!r}: {words}"
    return ""


def side_stream(first: FirstCall) -> str:
    """On a stream that is not the default one, behind the work that made the inputs."""
    fresh, stream = first.make(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = first.again(**fresh.kwargs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return _difference(outputs, first.outputs)


def graph_replay(first: FirstCall) -> str:
    """Captured in a CUDA graph, replayed once its inputs were written anew."""
    fresh, values = first.make(), first.make().tensors
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            first.candidate(**fresh.kwargs)  # compiles what a capture may not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = first.candidate(**fresh.kwargs)
        for name, t in fresh.tensors.items():
            _distinct(t).copy_(_distinct(values[name]))
        graph.replay()
    torch.cuda.synchronize()
    return _difference(tuple(result) if isinstance(result, tuple) else (result,), first.outputs)


CHECKS: dict[str, Callable[[FirstCall], str]] = {
    "repeat": repeat,
    "batch slice": batch_slice,
    "row permutation": row_permutation,
    "layout": layout,
    "power of two": power_of_two,
    "zero gate": zero_gate,
    "zero modulation": zero_modulation,
    "other flags": other_flags,
    "side stream": side_stream,
    "graph replay": graph_replay,
}
