"""Which predictions hold on another device."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from validation.bench.results import aligned, one_line
from validation.device import Device
from validation.errors import UsageError
from validation.ops import OpSet
from validation.predictions.calls import call
from validation.predictions.kept import Call, Output, Predictions


class Outcome(enum.StrEnum):
    """What became of a prediction."""

    HELD = "HELD"
    HELD_OTHERWISE = "HELD, BY ANOTHER KERNEL"  # the same bits; another version of the compiler made other code
    DIFFERS = "DIFFERS"  # the same code, other bits: what was executed is not what the hardware does
    OTHER_KERNEL = "ANOTHER KERNEL"  # other code and other bits: nothing was predicted of it
    OTHER_RESULT = "ANOTHER RESULT"  # of another number, dtype or shape: the Python around the kernel is another
    OTHER_INPUTS = "OTHER INPUTS"  # the same seed gave other values
    NOT_PREDICTED = "NOT PREDICTED"
    FAILED = "FAILED"  # the call raised


@dataclasses.dataclass(frozen=True)
class Compared:
    """A prediction and what became of it, with the reason in words."""

    predicted: Call
    outcome: Outcome
    reason: str = ""


def confirm(
    predictions: Predictions,
    ops: OpSet,
    device: Device,
    *,
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Compared]:
    """Make each predicted call again, and compare.

    Args:
        predictions: what was predicted.
        ops: the op set.
        device: selected.
        names: of these ops alone.
        progress: is told of each call.

    Raises:
        UsageError: a name of no predicted op.
    """
    known = list(dict.fromkeys(one.op for one in predictions.calls))
    for name in names:
        if name not in known:
            raise UsageError(f"--op: nothing was predicted of {name!r}, expected some of: {', '.join(known)}")
    mine = [one for one in predictions.calls if not names or one.op in names]
    for n, one in enumerate(mine):
        progress(f"{n + 1} of {len(mine)}: {one.op}, {one.workload}")
        if one.unknown:
            yield Compared(one, Outcome.NOT_PREDICTED, one.unknown)
            continue
        try:
            yield compare(one, call(one.op, one.workload, one.case, ops, device))
        except Exception as error:  # of any kind: the other predictions are still compared
            yield Compared(one, Outcome.FAILED, one_line(error))


def compare(predicted: Call, found: Call) -> Compared:
    """Compare a call with its prediction."""
    others = [name for name, digest in predicted.inputs.items() if found.inputs.get(name) != digest]
    if others:
        return Compared(predicted, Outcome.OTHER_INPUTS, f"{', '.join(others)} of this seed differ here")
    if found.unknown:
        return Compared(predicted, Outcome.FAILED, found.unknown)
    forms, before = ([(of.dtype, [*of.shape]) for of in made.outputs] for made in (found, predicted))
    if forms != before:
        return Compared(predicted, Outcome.OTHER_RESULT, f"{_forms(forms)}, predicted {_forms(before)}")
    same_code, same_bits = predicted.kernels == found.kernels, predicted.outputs == found.outputs
    if same_bits:
        return Compared(predicted, Outcome.HELD if same_code else Outcome.HELD_OTHERWISE)
    reason = "; ".join(
        text
        for n, (before, after) in enumerate(zip(predicted.outputs, found.outputs, strict=True))
        if (text := _difference(n, before, after))
    )
    return Compared(predicted, Outcome.DIFFERS if same_code else Outcome.OTHER_KERNEL, reason)


def _forms(forms: Sequence[tuple[str, list[int]]]) -> str:
    return " and ".join(f"{dtype} {shape}" for dtype, shape in forms) or "nothing"


def _difference(n: int, before: Output, after: Output) -> str:
    parts = [k + 1 for k, (a, b) in enumerate(zip(before.parts, after.parts, strict=True)) if a != b]
    return f"output {n}: {len(parts)} of its {len(before.parts)} parts differ, the first is {parts[0]}" if parts else ""


def table(compared: Sequence[Compared]) -> str:
    """The outcomes as text: a line for each op, the reasons, and how many there are of each."""
    counts = Counter(one.outcome for one in compared)
    lines = []
    for op in dict.fromkeys(one.predicted.op for one in compared):
        of_op = [one for one in compared if one.predicted.op == op]
        cells = [("workload", "outcome"), *((one.predicted.workload, one.outcome) for one in of_op)]
        lines += ["", op, *aligned(cells)]
    reasons = Counter((one.outcome, one.predicted.op, one.reason) for one in compared if one.reason)
    lines += ["", *(f"{outcome}, {op}: {reason} ({number})" for (outcome, op, reason), number in reasons.items())]
    lines += ["", ", ".join(f"{number} {outcome.lower()}" for outcome, number in counts.items())]
    return "\n".join(lines[1:])
