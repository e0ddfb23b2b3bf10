"""The judge: the order of the checks, and the verdict."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import Arguments, materialise
from validation.compiled.ptx import executing
from validation.device.threads import one_thread
from validation.errors import CannotExpress, NotExecutedError
from validation.judge import fingerprint, oracle, same_bits, structure
from validation.judge.expected import Expected, absent, expect, outputs_of, written_arguments
from validation.judge.form import wrong_form, wrong_memory
from validation.judge.reference import ReferenceFailedError, checked_target, of_reference
from validation.judge.remembered import expected_of
from validation.judge.second_calls import FirstCall
from validation.judge.values import judge_values
from validation.ops import tracebacks
from validation.verdict import Numbers, Status, Tier, Verdict

Result = TypeVar("Result")

# Verdicts that depend on the truth.
WRONG_VALUES = frozenset({Status.INCORRECT_NONFINITE, Status.INCORRECT_NUMERICAL, Status.BIASED})

# The check of a REFERENCE_ERROR whose reference op computes another function than its formula.
WRONG_TRUTH = "formula"

# The judge's stages in order; the first that fails names the verdict: runs -> surroundings kept -> structure -> dtype
# -> shape -> device -> inputs untouched -> no alias -> nothing written outside -> nothing read outside -> what
# executed PTX may not do -> everything written -> NaN and inf where the truth has them -> error -> bias -> same bits
# again.
STAGES = (
    Status.REFERENCE_ERROR,
    Status.COMPILE_ERROR,
    Status.RUNTIME_ERROR,
    Status.TIMEOUT,
    Status.CRASHED,
    Status.STATE_CHANGED,
    Status.INCORRECT_STRUCTURE,
    Status.INCORRECT_DTYPE,
    Status.INCORRECT_SHAPE,
    Status.INCORRECT_DEVICE,
    Status.INPUT_MODIFIED,
    Status.OUTPUT_ALIASES_INPUT,
    Status.OUT_OF_BOUNDS_WRITE,
    Status.OUT_OF_BOUNDS_READ,
    Status.MISALIGNED,
    Status.RACE,
    Status.UNINITIALISED_READ,
    Status.ASSERTION_FAILED,
    Status.NOT_WRITTEN,
    Status.INCORRECT_NONFINITE,
    Status.INCORRECT_NUMERICAL,
    Status.BIASED,
    Status.NOT_REPRODUCIBLE,
)
# Races are looked for in one case of so many: a launch takes 1.5 to 5 times as long then
# (benchmarks/executed_time.py).
RACES_IN = 8
# Failures of which a second call may give other bits.
CALLED_AGAIN = WRONG_VALUES | {Status.NOT_WRITTEN}


def judge(
    case: Case, result: Any, arguments: Arguments, guards: structure.GuardedAllocations, expected: Expected
) -> Verdict:
    """Judge what a candidate returned for a case, and what it did to memory."""
    outputs = outputs_of(result)
    written = written_arguments(case)
    wrong = wrong_form(outputs, expected.baseline, alone=not isinstance(result, tuple))
    wrong = wrong or wrong_memory(outputs, arguments, guards, written)
    if wrong:
        return wrong
    targets = expected.target(outputs)
    judged = [judge_values(output, target) for output, target in targets]
    worst = min(judged, key=_rank)
    count = sum(target.compared for _, target in targets)
    compared: Numbers = {"formula_elements": count} if count else {}
    if worst.status.failed:
        return dataclasses.replace(worst, numbers={**worst.numbers, **compared})
    # If several outputs pass: the numbers of the one that used most of its budget, and the loosest tier.
    tier = Tier.loosest(j.tier for j in judged)
    ratios = {
        key: max((float(value) for j in judged if (value := j.numbers[key]) is not None), default=None)
        for key in ("rms_ratio", "max_ratio", "max_ulp", "rms_ulp")
    }
    shares = {
        "equal_share": min(float(j.numbers["equal_share"] or 0.0) for j in judged),
        "informative_share": max(float(j.numbers["informative_share"] or 0.0) for j in judged),
    }
    apart = _by_output(case, [str(output.dtype).removeprefix("torch.") for output, _ in targets], judged)
    return dataclasses.replace(worst, tier=tier, numbers={**worst.numbers, **ratios, **shares, **compared, **apart})


def _by_output(case: Case, dtypes: Sequence[str], judged: Sequence[Verdict]) -> Numbers:
    """The numbers by which an op is judged over its cases, for each of its outputs: ``rms_ratio_0``.

    Each output is held to its own: the larger of two right outputs' ratios is above 1 on average, a mean of both halves
    what is lost in one, and opposite biases cancel. Empty if there is one output, of the case's dtype.
    """
    if (*dtypes,) == (case.dtype,):
        return {}
    found: Numbers = {"output_dtypes": " ".join(dtypes)}
    for n, one in enumerate(judged):
        for key in ("rms_ratio", "max_ratio", "baseline_rms_ulp"):
            found[f"{key}_{n}"] = one.numbers[key]
        for key in ("bias_ulp", "magnitude_bias_ulp"):
            found |= {f"{path}{key}_{n}": one.numbers[f"{path}{key}"] for path in ("", "baseline_", "ideal_")}
    return found


def _rank(verdict: Verdict) -> tuple[int, float]:
    """Failures first, in the order of the stages; then the largest share of the budget."""
    stage = STAGES.index(verdict.status) if verdict.status.failed else len(STAGES)
    used = verdict.numbers.get("budget_percent", 0.0)
    return stage, -float(used if isinstance(used, (int, float)) else 0.0)


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
        """Wrap the function so that its time counts for that stage and not for the one in which it is called."""

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
    # A sweep of 158 cases on two cores took 33 s of processor time with two threads, which wait for each other on
    # tensors this small, and 5 s with one.
    try:
        with one_thread(), executing.how(turn=case.seed, races=_looks_for_races(case)):
            verdict = _judge_call(case, candidate, device, clock)
    except ReferenceFailedError as error:
        verdict = Verdict(Status.REFERENCE_ERROR, "reference", str(error))
    except oracle.WrongTruthError as error:
        verdict = Verdict(Status.REFERENCE_ERROR, WRONG_TRUTH, str(error))
    except NotExecutedError as error:
        verdict = Verdict(Status.NOT_EXECUTED, "runs", str(error))
    return dataclasses.replace(verdict, seconds=clock.seconds)


def _judge_call(case: Case, candidate: Callable[..., Any], device: str, clock: _Clock) -> Verdict:
    def make() -> Arguments:
        arguments = materialise(case, device)
        arguments.kwargs |= absent(case, arguments.kwargs)
        return arguments

    arguments = make()
    clock.lap("inputs")
    expected = of_reference(lambda: expected_of(case, arguments, make, device))
    # A chained op's truth is computed from the candidate's outputs, hence after the call.
    expected = dataclasses.replace(expected, target=clock.apart("truth", checked_target(expected)))
    clock.lap("truth")
    try:
        result, guards = structure.call_guarded(candidate, arguments)
    except NotExecutedError:
        raise
    except CannotExpress as error:
        return Verdict(Status.NOT_EXPRESSED, "runs", str(error))
    except BaseException as error:  # whatever a candidate raises is its verdict
        if tracebacks.is_interrupt(error):
            raise
        status = Status.COMPILE_ERROR if "Compilation" in type(error).__name__ else Status.RUNTIME_ERROR
        reason = f"raised {type(error).__name__}: {tracebacks.said(error)[:300]}{tracebacks.of_error(error)}"
        return Verdict(status, "runs", reason)
    clock.lap("candidate")
    launched = guards.launched
    if guards.changed:
        reason = f"the call changed what the whole process computes with: {guards.changed}"
        return Verdict(Status.STATE_CHANGED, "surroundings", reason)
    verdict = judge(case, result, arguments, guards, expected)
    if verdict.status in WRONG_VALUES:
        _confirm(case, outputs_of(result), expected, make)
    counted: Numbers = {"launches": launched.count}
    reason = verdict.reason
    if launched.executed.contracted:
        counted["contracted"] = "; ".join(sorted(launched.executed.contracted))
        reason += f"; {counted['contracted']}: a GPU's bits may be others than those judged"
    verdict = dataclasses.replace(verdict, reason=reason, numbers={**verdict.numbers, **counted})
    if _wants_fingerprint(case, verdict):
        verdict = _with_fingerprint(verdict, case.op, make().kwargs, outputs_of(result))
    clock.lap("judge")
    if verdict.status is not Status.PASSED and verdict.status not in CALLED_AGAIN:
        return verdict
    kernels = device == "cpu" and launched.count > 0 and not guards.computed
    first = FirstCall(
        case=case,
        candidate=candidate,
        make=make,
        arguments=arguments,
        outputs=tuple(output.clone() for output in outputs_of(result)),
        returned=() if written_arguments(case) else outputs_of(result),
        # A compiled kernel may read another layout by wider loads, with another order of summation.
        kernels=kernels and launched.interpreted > 0,
        even=not guards.uneven_on_cuda if device == "cuda" else kernels or (guards.computed and guards.basic),
        failed=lambda outputs: _failed(case, outputs, expected, make),
        judged_as=lambda other, outputs: _failed(
            other,
            outputs,
            of_reference(lambda: expect(other, _with_flags(make(), other), device)),
            lambda: _with_flags(make(), other),
        ),
        device=device,
    )
    wrong = verdict.status.failed
    executed = launched.executed
    asked = {same_bits.APPROXIMATIONS: executed.approximate, same_bits.THREAD_ORDER: bool(executed.unordered)}
    checks = (*same_bits.due(case, device), *(name for name, due in asked.items() if due))
    failure = same_bits.failure(first, ("repeat",) if wrong else checks)
    clock.lap("same bits")
    if failure is None:
        lines = (*verdict.lines, "a second call gives the same bits") if wrong else verdict.lines
        return dataclasses.replace(verdict, lines=lines)
    check, status, words = failure
    if check == same_bits.THREAD_ORDER:
        status, words = Status.RACE, f"{words}; the order shows in {', '.join(executed.unordered)}"
    reason = f"{check}: {words}" + (f"; the first call: {verdict.reason}" if wrong else "")
    return dataclasses.replace(verdict, status=status, check=check, reason=reason, tier=None)


def _looks_for_races(case: Case) -> bool:
    """Whether races are looked for where kernels are executed: in all cases if that is asked for, else in some."""
    return executing.current().races or case.seed % RACES_IN == 0


def _with_flags(arguments: Arguments, case: Case) -> Arguments:
    return dataclasses.replace(arguments, kwargs={**arguments.kwargs, **case.flags})


def _wants_fingerprint(case: Case, verdict: Verdict) -> bool:
    """Whether to ask where the candidate rounds: if that may be the fault, and in one case in eight."""
    if verdict.status in (Status.INCORRECT_NUMERICAL, Status.BIASED) or verdict.tier is Tier.CLOSE:
        return True
    sampled = case.dtype == "bfloat16" and case.casting_mode == "float32" and case.seed % 8 == 0
    return sampled and verdict.status is Status.PASSED


def _with_fingerprint(verdict: Verdict, op: str, kwargs: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> Verdict:
    found = fingerprint.shares(op, kwargs, outputs)
    if not found:
        return verdict
    best = next(iter(found))
    numbers = {**verdict.numbers, "fingerprint": best, "fingerprint_share": found[best]}
    lines = (*verdict.lines, *([fingerprint.sentence(kwargs, found)] if found[best] > fingerprint.NAMED else []))
    return dataclasses.replace(verdict, numbers=numbers, lines=lines)


def _failed(case: Case, outputs: tuple[Any, ...], expected: Expected, make: Callable[[], Arguments]) -> Verdict | None:
    """The failed verdict on the outputs of another call; None if they pass."""
    judged = [wrong_form(outputs, expected.baseline, alone=len(outputs) == 1)]
    if judged == [None]:
        judged = [judge_values(output, target) for output, target in expected.target(outputs)]
    failed = next((j for j in judged if j is not None and j.status.failed), None)
    if failed is not None and failed.status in WRONG_VALUES:
        _confirm(case, outputs, expected, make)
    return failed


def _confirm(case: Case, outputs: tuple[Any, ...], expected: Expected, make: Callable[[], Arguments]) -> None:
    """Ask the op's formula before outputs are called wrong: is the truth right where they are furthest from it?

    Raises:
        WrongTruthError: it is not.
    """
    for n, (output, target) in enumerate(expected.target(outputs)):
        if target.asked is None:
            oracle.confirm(case.op, make().kwargs, target.truth, n, output, target.budget.allowed)
        else:
            oracle.confirm(*target.asked, target.truth, 0, output, target.budget.allowed)
