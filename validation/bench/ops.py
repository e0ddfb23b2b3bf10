"""``validate bench ops``: times every op at every workload of the real models, beside everything else that computes it.

The arms of a workload are timed in turn, there and back, in every round, on arguments that rotate past the cache, also
from one arm's call to the next arm's; results are kept as long, so that outputs rotate as well. One of the arms is
``copy``: a device-to-device copy that moves exactly as many bytes as the op must (`traffic`). An op's share of the
roof is the copy's time over its own.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from validation.bench.ops_results import ADAPTERS, ARMS, COPY, NORM_ALONE, OURS, Row, Times
from validation.bench.results import one_line
from validation.bench.timing import Timer, random_pair
from validation.bench.traffic import argument_sets, outputs, traffic
from validation.cases.workloads import Workload
from validation.device.private import dynamo
from validation.errors import CannotExpress, UsageError
from validation.ops import load_op_set, reference_op


def chosen_arms(names: Sequence[str] = ()) -> tuple[str, ...]:
    """Our arm and the named ones, or all.

    Raises:
        UsageError: an unknown arm.
    """
    for name in names:
        if name not in ARMS:
            raise UsageError(f"--arm: unknown arm {name!r}, expected some of: {', '.join(ARMS)}")
    return tuple(dict.fromkeys((OURS, *names))) if names else ARMS


def norm_alone(*, rms: bool, eps: float, **arguments: Any) -> list[Tensor]:
    """PyTorch's fused norm of x, or of q and of k, without weight and modulation: less than the op does."""
    activations = (arguments[name] for name in ("x", "q", "k") if name in arguments)
    if rms:
        return [functional.rms_norm(t, t.shape[-1:], eps=eps) for t in activations]
    return [functional.layer_norm(t, t.shape[-1:], eps=eps) for t in activations]


def arm(name: str, op: str) -> Callable[..., Any]:
    """The function with which an arm computes an op; it takes keyword arguments.

    Raises:
        CannotExpress: the library has no such op.
        UsageError: the library is not installed.
    """
    if name == "torch.compile":
        dynamo().reset()
        compiled: Callable[..., Any] = torch.compile(reference_op(op), fullgraph=True, dynamic=False)
        return compiled
    if name == NORM_ALONE:
        if "norm" not in op:
            raise CannotExpress("there is no norm in it")
        return partial(norm_alone, rms="layer" not in op)
    found = load_op_set(f"validation.adapters.{name}" if name in ADAPTERS else name)
    if op not in found:
        raise CannotExpress("the library has no such op")
    return found[op]


def time_workload(
    workload: Workload, timer: Timer, *, whole: bool, names: Sequence[str] = ARMS, rounds: int, calls: int
) -> Row:
    """Time every arm at a workload.

    Args:
        workload: the site.
        timer: measures the calls, on its device.
        whole: whether at full size; else with a few tokens.
        names: some of `ARMS`; a copy is always timed too.
        rounds: number of samples of each arm; a round times all arms in turn.
        calls: number of calls in a sample.

    Raises:
        Exception: whatever making the arguments raises, except out of memory, and whatever the copy raises. An arm's
            errors are recorded, and the arm is left out.
    """
    case = workload.make(whole)
    moved = traffic(case)
    # Between two uses of a set, twice the size of the cache is moved.
    count = max(2, 1 + math.ceil(2 * timer.cache_bytes / moved.total))
    x = outputs(case.op, case.tensors)[0]
    row = Row(workload, x.shape, x.dtype, moved, count, {}, {})
    try:
        sets = argument_sets(case, timer.device, count)
        copy = _copy(moved.total, timer.device, count)
    except torch.OutOfMemoryError as error:
        row.left_out = dict.fromkeys(names, f"its arguments: {one_line(error)}")
        return row
    arms, row.left_out = _prepared(workload.op, names, sets, timer, calls)
    arms[COPY] = copy
    row.arms = {name: Times() for name in arms}
    for n in range(rounds):
        for name in list(arms)[:: 1 if n % 2 else -1]:
            if name not in row.arms:
                continue
            try:
                row.arms[name].samples.append(timer.sample(arms[name], calls))
            except Exception as error:  # such as out of memory, or a run that took too long to queue
                if name == COPY:
                    raise
                row.left_out[name] = one_line(error)
                del row.arms[name]
    return row


def _prepared(
    op: str, names: Sequence[str], sets: list[dict[str, Any]], timer: Timer, calls: int
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The arms that run, warmed up, and the reasons why others do not."""
    arms: dict[str, Callable[[], object]] = {}
    left_out = {}
    rotation = itertools.cycle(sets)  # shared by all arms: each goes on where the previous one stopped
    for name in names:
        try:
            call = _rotating(arm(name, op), rotation, len(sets))
            for _ in range(2 * len(sets)):
                call()
            timer.sample(call, calls)
            arms[name] = call
        except Exception as error:  # of any kind: the other arms and workloads are still measured
            left_out[name] = one_line(error)
    return arms, left_out


def _rotating(function: Callable[..., Any], sets: Iterator[dict[str, Any]], count: int) -> Callable[[], object]:
    # Held until their memory has left the cache: otherwise the allocator would reuse one block again and again.
    results: deque[Any] = deque(maxlen=count)

    def call() -> None:
        results.append(function(**next(sets)))

    return call


def _copy(total: int, device: str, count: int) -> Callable[[], object]:
    half = max(total // 16, 1)  # number of int64, each read and written
    pairs = itertools.cycle([random_pair(half, device) for _ in range(count)])

    def call() -> None:
        source, target = next(pairs)
        target.copy_(source)

    return call


def run(
    found: Sequence[Workload],
    timer: Timer,
    *,
    whole: bool,
    names: Sequence[str] = ARMS,
    rounds: int = 9,
    calls: int = 20,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Row]:
    """Time workloads, one after the other; the arguments are those of `time_workload`."""
    for n, workload in enumerate(found):
        progress(f"{n + 1} of {len(found)}: {workload.op}, {workload.name}")
        yield time_workload(workload, timer, whole=whole, names=names, rounds=rounds, calls=calls)
        if timer.device == "cuda":
            torch.cuda.empty_cache()
