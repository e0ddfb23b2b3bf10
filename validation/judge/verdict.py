"""The judge: the order of the checks, and the verdict.

runs -> surroundings kept -> structure -> dtype -> shape -> device -> inputs untouched -> no alias -> nothing written
outside -> everything written -> NaN and inf where the truth has them -> error -> bias -> same bits again. The first
that fails names the verdict.
"""

import dataclasses
import functools
import inspect
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.roles import ACTIVATIONS
from validation.cases.tensors import Arguments, as_bits, materialise
from validation.chains import bounds, perturbed
from validation.chains.running import Running
from validation.device import launches
from validation.device.threads import one_thread
from validation.errors import CannotExpress
from validation.judge import fingerprint, same_bits, structure, where
from validation.judge.stats import Budget, Errors, bias_threshold, independent_samples
from validation.ops import reference_op, reference_op_names, surroundings, tracebacks
from validation.verdict import Status, Tier, Verdict

Result = TypeVar("Result")

# A case is lossless if its RMS error exceeds the larger of the baseline's and of what correct float32 arithmetic
# makes (the ideal's error and the noise A, added in squares) by no more than this factor and so many standard errors
# of an RMS (`_standard_error`) that a correct op stays lossless in 10,000 cases but for a chance of 1 in 10,000: 5.6.
# (Three, of as many errors as elements: a rotation with one rounding fewer than the reference fell in one of 305
# cases, of 112 elements.) The op's own tier is decided over all its cases: `tiers`.
LOSSLESS_FACTOR = 1.02
LOSSLESS_CASES, LOSSLESS_CHANCE = 10_000, 1e-4
LOSSLESS_SIGMAS = -statistics.NormalDist().inv_cdf(LOSSLESS_CHANCE / LOSSLESS_CASES)

# The most that one rounding costs, in ulp: a path that is nearer in all of a case's elements was lucky. One without an
# error is no measure (of a constant float32 row the reference's mean is exact, and that of sums in chunks is not).
ONE_ROUNDING = 0.5

# Ops whose y is another op of the residual_out that they return: `scale_residual_X` is judged as X there.
CHAINED = "scale_residual_"


@dataclasses.dataclass(frozen=True)
class Target:
    """What one output should be.

    Attributes:
        name: of the output, as messages print it.
        truth: float64: the reference op in float64 on the exact inputs.
        baseline: the reference op in the working dtype.
        baseline_truth: float64: what the baseline should have been; another than `truth` only where the
            output follows from a rounded one that the two paths rounded differently.
        operands: what the op computes it from; first what is normalised, modulated or rotated.
        running: the error bound.
        budget: the error allowed, made from it.
        frames: how many frames the tokens of an output [B, L, D] are, 0 where nothing says so.
    """

    name: str
    truth: Tensor
    baseline: Tensor
    baseline_truth: Tensor
    operands: tuple[Tensor, ...]
    running: Running
    budget: Budget
    frames: int


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a case should give.

    Attributes:
        baseline: the reference op's outputs in the working dtype.
        target: from the candidate's outputs, what each of them should be, in the order of judging.
    """

    baseline: tuple[Tensor, ...]
    target: Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, Target], ...]]


def outputs_of(result: Any) -> tuple[Any, ...]:
    """What an op returned, as a tuple."""
    return tuple(result) if isinstance(result, tuple) else (result,)


def written_arguments(case: Case) -> tuple[str, ...]:
    """Names of the tensors that an in-place call writes."""
    if not case.flags.get("inplace"):
        return ()
    return tuple(name for name in ("x", "q", "k") if name in case.tensors)


def _truth_arguments(case: Case, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the reference call: out of place."""
    return {**kwargs, "inplace": False} if "inplace" in case.flags else dict(kwargs)


def _double(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.double()
    if hasattr(argument, "table"):
        return type(argument)(argument.table.double(), argument.index)
    return argument


def _in_float64(reference: Callable[..., Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(reference(**{name: _double(value) for name, value in kwargs.items()}))


def expect(case: Case, arguments: Arguments, device: str = "cpu") -> Expected:
    """Truth, baseline and budget of a case, from arguments that no candidate has touched yet."""
    kwargs = _truth_arguments(case, arguments.kwargs)
    reference = reference_op(case.op)
    with torch.no_grad():
        baseline = outputs_of(reference(**kwargs))
    if case.op.startswith(CHAINED) and case.op.removeprefix(CHAINED) in reference_op_names():
        return Expected(baseline, lambda outputs: _chained_targets(case.op, kwargs, baseline, outputs, device))
    truths = _in_float64(reference, kwargs)
    running = _bound(case.op, kwargs, truths)
    names: tuple[str, ...] = ("y",)
    if len(truths) > 1:
        names = ("q", "k") if "q" in case.tensors else tuple(f"output {i}" for i in range(len(truths)))
    targets = tuple(
        _target(name, truth, base, truth, _operands(kwargs, name if name in ("q", "k") else "x"), bound, device)
        for name, truth, base, bound in zip(names, truths, baseline, running, strict=True)
    )
    return Expected(baseline, lambda outputs: tuple(zip(outputs, targets, strict=True)))


def _bound(op: str, kwargs: Mapping[str, Any], truths: tuple[Tensor, ...]) -> tuple[Running, ...]:
    """The op's hand-made error bound; where there is none, that of its reference replayed."""
    if op in bounds.BOUNDS:
        return bounds.bound(op, kwargs)
    return perturbed.bound(reference_op(op), kwargs, truths)


def _target(
    name: str,
    truth: Tensor,
    baseline: Tensor,
    baseline_truth: Tensor,
    operands: tuple[Tensor, ...],
    running: Running,
    device: str,
) -> Target:
    budget = Budget.of(running, baseline.shape, baseline.dtype, flush=device == "cuda")
    bound = running.expanded(baseline.shape)
    return Target(name, truth, baseline, baseline_truth, operands, bound, budget, _frames(operands))


def _frames(operands: tuple[Tensor, ...]) -> int:
    """F of a modulation [B, F, 1, D] among the operands."""
    x, *others = operands
    per_frame = (t for t in others if x.dim() == 3 and t.dim() == 4 and t.shape[2:] == (1, x.shape[-1]))
    return next((t.shape[1] for t in per_frame), 0)


def _operands(kwargs: Mapping[str, Any], activation: str) -> tuple[Tensor, ...]:
    """The floating-point arguments, the activation of that name first, other activations of a pair left out."""
    others = (
        getattr(value, "table", value)
        for name, value in kwargs.items()
        if name not in ACTIVATIONS and value is not None
    )
    return (kwargs[activation], *(t for t in others if isinstance(t, Tensor)))


def _chained_targets(
    op: str, kwargs: Mapping[str, Any], baseline: tuple[Tensor, ...], outputs: tuple[Tensor, ...], device: str
) -> tuple[tuple[Tensor, Target], ...]:
    """residual_out against the gated sum; y against the norm of the residual_out that came with it."""
    gated = {name: kwargs[name] for name in ("residual", "x", "gate") if name in kwargs}
    gated["casting_mode"] = kwargs.get("casting_mode", "float32")
    tail = op.removeprefix(CHAINED)
    rest = {name: value for name, value in kwargs.items() if name not in ("residual", "x", "gate")}
    y, residual_out = outputs
    base_y, base_residual = baseline
    sums = _in_float64(reference_op("residual_gate_add"), gated)[0]
    sum_target = _target(
        "residual_out",
        sums,
        base_residual,
        sums,
        _operands(gated, "x"),
        _bound("residual_gate_add", gated, (sums,))[0],
        device,
    )
    norm_arguments = {**rest, "x": residual_out}
    truth = _in_float64(reference_op(tail), norm_arguments)[0]
    same = torch.equal(as_bits(residual_out.contiguous()), as_bits(base_residual.contiguous()))
    base_truth = truth if same else _in_float64(reference_op(tail), {**rest, "x": base_residual})[0]
    norm_target = _target(
        "y",
        truth,
        base_y,
        base_truth,
        _operands(norm_arguments, "x"),
        _bound(tail, norm_arguments, (truth,))[0],
        device,
    )
    return (residual_out, sum_target), (y, norm_target)


def judge(
    case: Case, result: Any, arguments: Arguments, guards: structure.GuardedAllocations, expected: Expected
) -> Verdict:
    """Judge what a candidate returned for a case, and what it did to memory."""
    outputs = outputs_of(result)
    written = written_arguments(case)
    wrong = _structure(outputs, expected.baseline, alone=not isinstance(result, tuple))
    wrong = wrong or _memory(outputs, arguments, guards, written)
    if wrong:
        return wrong
    judged = [_values(output, target) for output, target in expected.target(outputs)]
    worst = min(judged, key=_rank)
    if worst.status.failed:
        return worst
    # Of several outputs that pass: the numbers of the one that used most of its budget, the loosest tier.
    tier = Tier.loosest(j.tier for j in judged)
    ratios = {
        key: max(float(j.numbers[key] or 0.0) for j in judged)
        for key in ("rms_ratio", "max_ratio", "max_ulp", "rms_ulp")
    }
    equal = min(float(j.numbers["equal_share"] or 0.0) for j in judged)
    return dataclasses.replace(worst, tier=tier, numbers={**worst.numbers, **ratios, "equal_share": equal})


def _rank(judgement: Verdict) -> tuple[int, float]:
    """Failures first, in the order of the stages; then the largest share of the budget."""
    order = list(Status)
    stage = order.index(judgement.status) if judgement.status.failed else len(order)
    used = judgement.numbers.get("budget_percent", 0.0)
    return stage, -float(used if isinstance(used, (int, float)) else 0.0)


def _structure(outputs: tuple[Any, ...], expected: tuple[Tensor, ...], *, alone: bool) -> Verdict | None:
    """What is wrong with the form of what was returned: one value alone, or a tuple of them."""

    def wrong(status: Status, check: str, came: object, wanted: object, index: int) -> Verdict:
        place = f" {index} of {len(expected)}" if len(expected) > 1 else ""
        return Verdict(status, check, f"output{place} is {came}, expected {wanted}")

    tensors = all(isinstance(output, Tensor) for output in outputs)
    if not tensors or alone != (len(expected) == 1) or len(outputs) != len(expected):
        came = ", ".join(type(o).__name__ for o in outputs)
        wanted = "a tensor" if len(expected) == 1 else f"a tuple of {len(expected)} tensors"
        came = came if alone else f"({came}{',' if len(outputs) == 1 else ''})"
        return Verdict(Status.INCORRECT_STRUCTURE, "structure", f"returned {came}, expected {wanted}")
    for i, (output, want) in enumerate(zip(outputs, expected, strict=True)):
        if odd := _odd(output):
            return wrong(Status.INCORRECT_STRUCTURE, "structure", odd, "a plain torch.Tensor", i)
        if output.dtype != want.dtype:
            return wrong(Status.INCORRECT_DTYPE, "dtype", str(output.dtype)[6:], str(want.dtype)[6:], i)
        if output.shape != want.shape:
            return wrong(Status.INCORRECT_SHAPE, "shape", list(output.shape), list(want.shape), i)
        if output.device.type != want.device.type:
            return wrong(Status.INCORRECT_DEVICE, "device", output.device, want.device, i)
    return None


def _odd(output: Tensor) -> str:
    """What an output is, in words, if a kernel that takes its address next would not find its values there."""
    if type(output) is not Tensor:  # an nn.Parameter and other subclasses too
        return f"a {type(output).__module__}.{type(output).__qualname__}"
    if output.is_nested or output.layout is not torch.strided:
        return "a nested tensor" if output.is_nested else f"a tensor of layout {str(output.layout)[6:]}"
    if output.is_neg() or output.is_conj():
        return "a view that negates lazily"
    return "a tensor that requires grad under torch.no_grad()" if output.requires_grad else ""


def _memory(
    outputs: tuple[Tensor, ...],
    arguments: Arguments,
    guards: structure.GuardedAllocations,
    written: tuple[str, ...],
) -> Verdict | None:
    if guards.moved:
        reason = f"an argument was made another tensor: {guards.moved}"
        return Verdict(Status.INPUT_MODIFIED, "inputs untouched", reason)
    changed, outside = structure.inputs_changed(arguments, written)
    if changed:
        return Verdict(Status.INPUT_MODIFIED, "inputs untouched", f"an input was written: {changed}")
    for name, output in zip(written, outputs, strict=False):
        if output is not arguments.tensors[name]:
            reason = f"inplace=True returned another tensor than {name}, expected {name} itself"
            return Verdict(Status.OUTPUT_ALIASES_INPUT, "in place", reason)
    alias = structure.aliased_input(outputs, arguments, written)
    if alias:
        return Verdict(Status.OUTPUT_ALIASES_INPUT, "no alias", f"an output shares memory with the input {alias}")
    outside = outside or guards.written_outside()
    if outside:
        return Verdict(Status.OUT_OF_BOUNDS_WRITE, "canaries", f"written outside: {outside}")
    for output in outputs:
        missed = structure.unwritten(output)
        if bool(missed.any()):
            reason = f"{int(missed.sum())} of {output.numel()} elements were never written"
            return Verdict(
                Status.NOT_WRITTEN, "poison", f"{reason}, the first at {_first(missed)}", lines=_pattern(missed)
            )
    return None


def _first(hit: Tensor) -> str:
    return where.index_text(hit.nonzero()[0].tolist())


def _pattern(wrong: Tensor, frames: int = 0) -> tuple[str, ...]:
    words = where.describe(wrong, frames)
    return (words,) if words else ()


def _kind(t: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 +inf, 3 -inf."""
    kind = t.isnan().to(torch.int8)
    return torch.where(t.isinf(), torch.where(t > 0, 2, 3).to(torch.int8), kind)


def _nonfinite(output: Tensor, target: Target) -> Tensor:
    """Where the output is NaN or inf and should not be, or the other way round.

    Right is what the truth rounds to, from either end of its budget (at the edge of overflow both are right),
    and what lies between: a budget may reach from -inf to inf (a weight and a bias of 6e4 that cancel, times a
    scale of 6e4, with float16 roundings on the way), and then any finite number is judged by its error. Where a
    declared rounding may have overflowed on the way, what the reference path gives and any non-finite value are
    right too.
    """
    dtype, truth, budget = output.dtype, target.truth, target.budget
    kind = _kind(output)
    right = kind == _kind(truth.to(dtype))
    finite = truth.isfinite()
    low, high = (_kind(edge.to(dtype)) for edge in (truth - budget.allowed, truth + budget.allowed))
    right |= finite & ((kind == low) | (kind == high) | ((kind == 0) & (low == 3) & (high == 2)))
    right |= target.running.overflow & ((kind != 0) | (kind == _kind(target.baseline)))
    return ~right


def _values(output: Tensor, target: Target) -> Verdict:
    name, truth, baseline, budget = target.name, target.truth, target.baseline, target.budget
    misplaced = _nonfinite(output, target)
    if bool(misplaced.any()):
        at = tuple(misplaced.nonzero()[0].tolist())
        reason = (
            f"{int(misplaced.sum())} of {output.numel()} elements of {name} are NaN or inf where they should not be, "
            f"or are not where they should be: the first at {where.index_text(at)} "
            f"(got {output[at].item()}, truth {truth[at].item():.6g}, reference {baseline[at].item():.6g})"
        )
        return Verdict(Status.INCORRECT_NONFINITE, "nonfinite", reason, lines=_pattern(misplaced, target.frames))

    finite = truth.isfinite() & output.isfinite() & budget.allowed.isfinite()
    error = output.double() - truth
    errors = Errors.of(error, truth, budget.unit, finite)
    path_finite = finite & baseline.isfinite()
    path = Errors.of(baseline.double() - target.baseline_truth, truth, budget.unit, path_finite)
    ideal = Errors.of(truth.to(output.dtype).double() - truth, truth, budget.unit, finite)
    equal = same_bits.equal_bits(output, baseline)
    used = torch.where(finite, error.abs() / budget.allowed, torch.zeros_like(error))
    worst = float(used.max()) if used.numel() else 0.0
    of_exact = 1.0 if errors.rms_ulp == 0.0 else math.inf
    ratio = errors.rms_ulp / path.rms_ulp if path.rms_ulp else of_exact
    max_ratio = max(errors.max_ulp, ONE_ROUNDING) / max(path.max_ulp, ONE_ROUNDING) if path.rms_ulp else of_exact
    numbers: dict[str, float | int | str | None] = {
        "budget_percent": 100.0 * worst,
        **errors.numbers(""),
        **path.numbers("baseline_"),
        **ideal.numbers("ideal_"),
        "rms_ratio": ratio,
        "max_ratio": max_ratio,
        "equal_share": float(equal.double().mean()) if equal.numel() else 1.0,
        "elements": output.numel(),
    }
    if worst > 1.0:
        at = tuple((used == worst).nonzero()[0].tolist())
        reason = (
            f"worst |error| {abs(float(error[at])):.3g} is {_over(worst)}x its budget at {name}{where.index_text(at)} "
            f"(got {output[at].item():.9g}, truth {truth[at].item():.9g}); rms {ratio:.3g}x the reference path's"
        )
        wrong = used > 1.0
        share = f"{int(wrong.sum())} of {output.numel()} elements exceed their budget"
        place = f"the worst is in {where.place(at, output.shape, target.frames)}"
        # Of one wrong element the place says it all.
        pattern = _pattern(wrong, target.frames) if int(wrong.sum()) > 1 else ()
        lines = (share, place, *pattern, *where.displaced(output, truth, budget.allowed, wrong))
        return Verdict(Status.INCORRECT_NUMERICAL, "error", reason, numbers=numbers, lines=lines)

    rounds_on_the_way = bool(target.running.declared.any())

    @functools.cache  # a third of judging, where it was counted whether or not a verdict hung on it
    def samples() -> int:
        return independent_samples(truth, finite, output.dtype, target.operands if rounds_on_the_way else ())

    for label, bias, path_bias in (
        ("mean signed error", errors.bias_ulp, path.bias_ulp),
        ("mean error away from zero", errors.magnitude_bias_ulp, path.magnitude_bias_ulp),
    ):
        # What is below the threshold of ever so many errors is below that of however many there are.
        if abs(bias) <= bias_threshold(errors, errors.count, output.dtype) + abs(path_bias):
            continue
        threshold = bias_threshold(errors, samples(), output.dtype)
        if samples() >= 16 and abs(bias) > threshold + abs(path_bias):
            reason = (
                f"{label} of {name} is {bias:+.3f} ulp, over {threshold:.3f} ulp for {samples()} independent errors "
                f"(the reference path's is {path_bias:+.3f})"
            )
            return Verdict(Status.BIASED, "bias", reason, numbers=numbers)

    noise = torch.where(finite, target.running.noise / budget.unit, torch.zeros_like(error))
    arithmetic = math.sqrt(ideal.rms_ulp**2 + float((noise * noise).sum()) / max(errors.count, 1))
    least = max(path.rms_ulp, arithmetic)
    if bool(equal.all()):
        tier = "bit-exact"
    elif errors.rms_ulp <= LOSSLESS_FACTOR * least:
        tier = "lossless"
    else:
        spread = _standard_error(target, finite, least, samples() if rounds_on_the_way else errors.count)
        by_chance = errors.rms_ulp <= LOSSLESS_FACTOR * least + LOSSLESS_SIGMAS * spread
        tier = "lossless" if by_chance else "close"
    reason = f"{100.0 * worst:.0f} % of the error budget used, rms {ratio:.3g}x the reference path's"
    return Verdict(Status.PASSED, "bias", reason, tier=tier, numbers=numbers)


def _standard_error(target: Target, finite: Tensor, least: float, samples: int) -> float:
    """By how much, in ulp, the RMS error of a correct op scatters about its mean.

    ``r / sqrt(2 n)`` for n errors of RMS r. An element's error has the variance of its last rounding, of the noise
    and of the declared roundings, uniform over their bound; few elements with large ones count as few
    (``(sum v)^2 / sum v^2``), and make the baseline's own RMS a matter of luck. Measured: a contracted rotation of
    six float16 numbers with outliers was at 3.6 times the reference path's, 8.9 standard errors of six equal errors.

    Args:
        target: what was judged.
        finite: the elements that count.
        least: the RMS error to compare with, in ulp.
        samples: how many errors are independent.
    """
    noise, declared = (t[finite] / target.budget.unit[finite] for t in (target.running.noise, target.running.declared))
    variance = 1.0 / 12.0 + noise * noise + declared * declared / 3.0
    total = float(variance.sum())
    if not 0.0 < total < math.inf:
        return 0.0
    count = min(samples, total * total / float((variance * variance).sum()))
    return max(least, math.sqrt(total / variance.numel())) / math.sqrt(2 * max(count, 1.0))


def _over(ratio: float) -> str:
    """A ratio above 1, never printed as 1."""
    short = f"{ratio:.3g}"
    return short if short != "1" else f"{ratio:.9g}"


@functools.cache
def _required(op: str) -> frozenset[str]:
    parameters = inspect.signature(reference_op(op)).parameters
    return frozenset(name for name, p in parameters.items() if p.default is inspect.Parameter.empty)


class _Clock:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for that stage."""
        now = time.perf_counter()
        self._add(stage, now - self._since)
        self._since = now

    def apart(self, stage: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, its time counted for that stage and not for the one in which it is called."""

        def call(*args: Any) -> Result:
            began = time.perf_counter()
            result = function(*args)
            took = time.perf_counter() - began
            self._add(stage, took)
            self._since += took
            return result

        return call

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 6)


def judge_call(case: Case, candidate: Callable[..., Any], device: str) -> Verdict:
    """Make a case's tensors, call the candidate under guards, judge; exceptions become verdicts."""
    clock = _Clock()
    # A sweep of 158 cases took 33 s of processor time on two cores with two threads, which wait for each other over
    # tensors this small, and 5 s with one.
    with one_thread():
        judgement = _judge_call(case, candidate, device, clock)
    return dataclasses.replace(judgement, seconds=clock.seconds)


def absent(case: Case, kwargs: Mapping[str, Any]) -> dict[str, None]:
    """Arguments that a call needs besides: a gate or weight left out is None; some signatures have no default."""
    return dict.fromkeys(_required(case.op) - set(kwargs))


def _judge_call(case: Case, candidate: Callable[..., Any], device: str, clock: _Clock) -> Verdict:
    def make() -> Arguments:
        arguments = materialise(case, device)
        arguments.kwargs |= absent(case, arguments.kwargs)
        return arguments

    arguments = make()
    clock.lap("inputs")
    expected = expect(case, arguments, device)
    # Of a chained op the truth follows from what the candidate returned.
    expected = dataclasses.replace(expected, target=clock.apart("truth", expected.target))
    clock.lap("truth")
    try:
        with launches.counted() as launched, surroundings.kept() as around:
            result, guards = structure.call_guarded(candidate, arguments)
    except CannotExpress as error:
        return Verdict(Status.NOT_EXPRESSED, "runs", str(error))
    except BaseException as error:  # whatever a candidate raises is its verdict
        if tracebacks.is_interrupt(error):
            raise
        status = Status.COMPILE_ERROR if "Compilation" in type(error).__name__ else Status.RUNTIME_ERROR
        reason = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
        return Verdict(status, "runs", reason)
    clock.lap("candidate")
    if around.changed:
        reason = f"the call changed what the whole process computes with: {around.changed}"
        return Verdict(Status.STATE_CHANGED, "surroundings", reason)
    judgement = judge(case, result, arguments, guards, expected)
    judgement = dataclasses.replace(judgement, numbers={**judgement.numbers, "launches": launched.count})
    if _wants_fingerprint(case, judgement):
        judgement = _with_fingerprint(judgement, case.op, make().kwargs, outputs_of(result))
    clock.lap("judge")
    if judgement.status is not Status.PASSED:
        return judgement
    kernels = device == "cpu" and launched.count > 0 and not guards.computed
    first = same_bits.FirstCall(
        case=case,
        candidate=candidate,
        make=make,
        arguments=arguments,
        outputs=tuple(output.clone() for output in outputs_of(result)),
        returned=() if written_arguments(case) else outputs_of(result),
        kernels=kernels,
        even=not guards.uneven_on_cuda if device == "cuda" else kernels or (guards.computed and guards.basic),
        judged=lambda outputs: _failure(outputs, expected),
        judged_as=lambda other, outputs: _failure(outputs, expect(other, _with_flags(make(), other), device)),
        device=device,
    )
    failure = same_bits.failure(first)
    clock.lap("same bits")
    if failure is None:
        return judgement
    check, words = failure
    reason = f"{check}: {words}"
    return dataclasses.replace(judgement, status=Status.NOT_REPRODUCIBLE, check=check, reason=reason, tier=None)


def _with_flags(arguments: Arguments, case: Case) -> Arguments:
    return dataclasses.replace(arguments, kwargs={**arguments.kwargs, **case.flags})


def _wants_fingerprint(case: Case, judgement: Verdict) -> bool:
    """Whether to ask where the candidate rounds: where that may be what is wrong, and of one case in eight."""
    if judgement.status in (Status.INCORRECT_NUMERICAL, Status.BIASED) or judgement.tier == "close":
        return True
    sampled = case.dtype == "bfloat16" and case.casting_mode == "float32" and case.seed % 8 == 0
    return sampled and judgement.status is Status.PASSED


def _with_fingerprint(judgement: Verdict, op: str, kwargs: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> Verdict:
    found = fingerprint.shares(op, kwargs, outputs)
    if not found:
        return judgement
    best = next(iter(found))
    numbers = {**judgement.numbers, "fingerprint": best, "fingerprint_share": found[best]}
    lines = (*judgement.lines, *([fingerprint.sentence(kwargs, found)] if found[best] > fingerprint.NAMED else []))
    return dataclasses.replace(judgement, numbers=numbers, lines=lines)


def _failure(outputs: tuple[Any, ...], expected: Expected) -> str:
    """What is wrong with the values of another call of the same case, "" if nothing is."""
    judged = [_structure(outputs, expected.baseline, alone=len(outputs) == 1)]
    if judged == [None]:
        judged = [_values(output, target) for output, target in expected.target(outputs)]
    return next((j.reason for j in judged if j is not None and j.status.failed), "")
