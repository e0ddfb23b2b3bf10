"""What a case should give: truth, baseline and budget of each output."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.roles import ACTIVATIONS
from validation.cases.tensors import Arguments, as_bits
from validation.cases.values import EXACT
from validation.chains import bounds, exact, perturbed
from validation.chains.running import Running
from validation.judge import oracle
from validation.judge.stats import Budget, may_flush
from validation.ops import reference_op, reference_op_names

# Ops that compute y by another op from the residual_out that they return: y of `scale_residual_X` is judged as X.
CHAINED = "scale_residual_"


@dataclasses.dataclass(frozen=True)
class Target:
    """What one output should be.

    Attributes:
        name: the output's name in messages.
        truth: float64: the reference op in float64 on the exact inputs.
        baseline: the reference op in the working dtype.
        baseline_truth: float64: what the baseline should have been; it differs from `truth` only if the
            output is computed from another, rounded output that the two paths rounded differently.
        operands: the op's inputs to this output; first the tensor that is normalised, modulated or rotated.
        running: the error bound.
        budget: the allowed error, computed from `running`.
        slack: of exact inputs, how far a right result may be from the truth before its last rounding, and inf where
            nothing is certain (`chains.exact`); None for others.
        frames: the number of frames that the tokens of an output [B, L, D] form, 0 if unknown.
        asked: the op whose first output this is, and its arguments; None: the case's own.
        compared: the number of elements of the truth that were compared with the op's formula.
    """

    name: str
    truth: Tensor
    baseline: Tensor
    baseline_truth: Tensor
    operands: tuple[Tensor, ...]
    running: Running
    budget: Budget
    slack: Tensor | None
    frames: int
    asked: tuple[str, Mapping[str, Any]] | None = None
    compared: int = 0


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a case should give.

    Attributes:
        baseline: the reference op's outputs in the working dtype.
        target: maps the candidate's outputs to pairs of output and `Target`, in the order of judging.
    """

    baseline: tuple[Tensor, ...]
    target: Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, Target], ...]]


def outputs_of(result: Any) -> tuple[Any, ...]:
    """An op's result as a tuple of outputs."""
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


def _in_float64(op: str, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(reference_op(op)(**{name: _double(value) for name, value in kwargs.items()}))


def expect(case: Case, arguments: Arguments, device: str = "cpu") -> Expected:
    """Truth, baseline and budget of a case, from arguments that no candidate has touched yet.

    Raises:
        WrongTruthError: the truth is not what the op's formula says.
    """
    kwargs = _truth_arguments(case, arguments.kwargs)
    with torch.no_grad():
        baseline = outputs_of(reference_op(case.op)(**kwargs))
    if case.op.startswith(CHAINED) and case.op.removeprefix(CHAINED) in reference_op_names():
        return Expected(baseline, _Chained(case, kwargs, baseline, device))
    truths = _in_float64(case.op, kwargs)
    compared = oracle.sampled(case, case.op, kwargs, truths)
    running = _bound(case.op, kwargs, truths)
    names: tuple[str, ...] = ("y",)
    if len(truths) > 1:
        names = ("q", "k") if "q" in case.tensors else tuple(f"output {i}" for i in range(len(truths)))
    targets = tuple(
        _target(name, truth, base, truth, _operands(kwargs, name if name in ("q", "k") else "x"), bound, slack, device)
        for name, truth, base, bound, slack in zip(
            names, truths, baseline, running, _slack(case, case.op, kwargs, len(truths)), strict=True
        )
    )
    targets = (dataclasses.replace(targets[0], compared=compared), *targets[1:])
    return Expected(baseline, lambda outputs: tuple(zip(outputs, targets, strict=True)))


def _bound(op: str, kwargs: Mapping[str, Any], truths: tuple[Tensor, ...]) -> tuple[Running, ...]:
    """The op's hand-made error bound; without one, the bound measured by replaying its reference."""
    if op in bounds.BOUNDS:
        return bounds.bound(op, kwargs)
    return perturbed.bound(reference_op(op), kwargs, truths)


def _slack(case: Case, op: str, kwargs: Mapping[str, Any], outputs: int = 1) -> tuple[Tensor | None, ...]:
    """How far right results of exact inputs may be from the truth; None for an op whose chain is not known."""
    return exact.slack(op, kwargs) if case.values == EXACT and op in bounds.BOUNDS else (None,) * outputs


def _target(
    name: str,
    truth: Tensor,
    baseline: Tensor,
    baseline_truth: Tensor,
    operands: tuple[Tensor, ...],
    running: Running,
    slack: Tensor | None,
    device: str,
) -> Target:
    budget = Budget.of(running, baseline.shape, baseline.dtype, flush=may_flush(device))
    bound = running.expanded(baseline.shape)
    slack = None if slack is None else slack.expand(baseline.shape)
    return Target(name, truth, baseline, baseline_truth, operands, bound, budget, slack, _frames(operands))


def _frames(operands: tuple[Tensor, ...]) -> int:
    """F of a modulation [B, F, 1, D] among the operands."""
    x, *others = operands
    per_frame = (t for t in others if x.dim() == 3 and t.dim() == 4 and t.shape[2:] == (1, x.shape[-1]))
    return next((t.shape[1] for t in per_frame), 0)


def _operands(kwargs: Mapping[str, Any], activation: str) -> tuple[Tensor, ...]:
    """The floating-point arguments: the named activation first, without the other activations."""
    others = (
        getattr(value, "table", value)
        for name, value in kwargs.items()
        if name not in ACTIVATIONS and value is not None
    )
    return (kwargs[activation], *(t for t in others if isinstance(t, Tensor)))


class _Chained:
    """Targets of an op `scale_residual_X`: residual_out against the gated sum; y against X of that residual_out."""

    def __init__(self, case: Case, kwargs: Mapping[str, Any], baseline: tuple[Tensor, ...], device: str) -> None:
        self._case, self._norm = case, case.op.removeprefix(CHAINED)
        if oracle.is_sampled(case):  # the truth is of the two parts, the baseline of the whole
            oracle.sampled(case, case.op, kwargs, _in_float64(case.op, kwargs))
        self._gated = {name: kwargs[name] for name in ("residual", "x", "gate") if name in kwargs}
        self._gated["casting_mode"] = kwargs.get("casting_mode", "float32")
        self._rest = {name: value for name, value in kwargs.items() if name not in ("residual", "x", "gate")}
        self._baseline, self._device = baseline, device

    def __call__(self, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Target], ...]:
        y, residual_out = outputs
        same = torch.equal(as_bits(residual_out.contiguous()), as_bits(self._baseline[1].contiguous()))
        return (residual_out, self._sum), (y, self._of_the_baseline if same else self._normed(residual_out))

    @functools.cached_property
    def _sum(self) -> Target:
        op = "residual_gate_add"
        sums = _in_float64(op, self._gated)[0]
        compared = oracle.sampled(self._case, op, self._gated, (sums,))
        (bound,) = _bound(op, self._gated, (sums,))
        (slack,) = _slack(self._case, op, self._gated)
        operands = _operands(self._gated, "x")
        target = _target("residual_out", sums, self._baseline[1], sums, operands, bound, slack, self._device)
        return dataclasses.replace(target, asked=(op, self._gated), compared=compared)

    @functools.cached_property
    def _of_the_baseline(self) -> Target:
        return self._normed(self._baseline[1])

    def _normed(self, residual_out: Tensor) -> Target:
        arguments = {**self._rest, "x": residual_out}
        truth = _in_float64(self._norm, arguments)[0]
        compared = oracle.sampled(self._case, self._norm, arguments, (truth,))
        own = truth
        if residual_out is not self._baseline[1]:
            own = _in_float64(self._norm, {**self._rest, "x": self._baseline[1]})[0]
        (bound,) = _bound(self._norm, arguments, (truth,))
        (slack,) = _slack(self._case, self._norm, arguments)
        operands = _operands(arguments, "x")
        target = _target("y", truth, self._baseline[0], own, operands, bound, slack, self._device)
        return dataclasses.replace(target, asked=(self._norm, arguments), compared=compared)


@functools.cache
def _required(op: str) -> tuple[str, ...]:
    parameters = inspect.signature(reference_op(op)).parameters
    return tuple(name for name, p in parameters.items() if p.default is inspect.Parameter.empty)


def absent(case: Case, kwargs: Mapping[str, Any]) -> dict[str, None]:
    """Required arguments that the case leaves out (a gate, a weight), as None: some signatures give no default."""
    return {name: None for name in _required(case.op) if name not in kwargs}
