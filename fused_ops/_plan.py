"""Launch plans: a call's launch is kept and repeated for the next call that is like it.

Checking the arguments and Triton's own search for the compiled kernel take longer than the launch: 16 to 41 us a call,
and 6 to 12 us with a plan (``benchmarks/host_time.py``; the driver's part not counted). Two calls are alike if they
agree in everything that a check or the launch looks at: each tensor's dtype, shape, strides, device, whether it
requires grad, and whether it begins at a multiple of 16 bytes; which arguments are the same tensor; type and value of
the other arguments; which are given by name; grad mode. A plan keeps neither a tensor's content nor its address, except
one distance: tensors that an in-place call writes to must lie apart from the others, or, if their ranges of memory
interleave, as far from one another as when they were checked.

A call that raised, launched nothing, or had an argument of another class (a tensor's subclass too) is not kept.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_ops._launch import INTERPRETED, Launch, current_device, empty, launches
from reference_ops import IndexedRows

MOST_PLANS = 4096  # per op; beyond that all are dropped

_PLAIN = frozenset({type(None), bool, int, str})
_TENSORS = frozenset({Tensor, torch.nn.Parameter})


class Plan(NamedTuple):
    """A launch that can be repeated with other tensors.

    run: launches the kernel. arguments: the kernel's arguments, without tensors. rows: for each argument that begins
    with tensors, its position, the tensors' numbers and the rest of it. new: for each new tensor, the number of one
    like it. result: the numbers of the returned tensors. single: the result is one tensor, not a tuple. apart: pairs of
    tensors that may not share memory, with the bytes that each spans and the distance from the first to the second.

    Numbers count the tensors of the arguments, in order, and then the new ones.
    """

    run: Callable[..., None]
    arguments: list[Any]
    rows: tuple[tuple[int, tuple[int, ...], tuple[Any, ...]], ...]
    new: tuple[int, ...]
    result: tuple[int, ...]
    single: bool
    apart: tuple[tuple[int, int, int, int, int], ...]


def planned(op: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an op so that a call like an earlier one repeats its launch.

    Returns the op itself under the interpreter, and on AMD GPUs, where Triton also looks at the size of a tensor's
    memory.
    """
    if INTERPRETED or torch.version.hip:
        return op
    plans: dict[Any, Plan] = {}

    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args, **kwargs)
        tensors: list[Tensor] = []
        key = _key(args, kwargs, tensors)
        if key is None:
            return op(*args, **kwargs)
        plan = plans.get(key)
        if plan is not None and _lie_apart(plan, tensors):
            return _follow(plan, tensors)
        made: list[Launch] = []
        token = launches.set(made)
        try:
            result = op(*args, **kwargs)
        finally:
            launches.reset(token)
        plan = _plan(made, tensors, result)
        if plan is not None:
            if len(plans) >= MOST_PLANS:
                plans.clear()
            plans[key] = plan
        return result

    return call


def _key(args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
    """The key that calls share if they are alike; None if a call cannot be kept. Appends its tensors to `tensors`."""
    key: list[Any] = [torch.is_grad_enabled(), *kwargs]
    for value in (*args, *kwargs.values()):
        kind = type(value)
        if kind in _TENSORS:
            tensors.append(value)
            key.append(_looked_at(value))
        elif kind in _PLAIN:
            key.append((kind, value))
        elif kind is float:
            key.append(value.hex())  # because 0.0 == -0.0
        elif kind is IndexedRows and type(value.table) in _TENSORS and type(value.index) in _TENSORS:
            tensors += value
            key.append((_looked_at(value.table), _looked_at(value.index)))
        else:
            return None
    if len(set(map(id, tensors))) < len(tensors):  # some are the same tensor, such as an index of several tables
        key.append(tuple([_number(tensors, t) for t in tensors]))
    return tuple(key)


def _looked_at(t: Tensor) -> tuple[Any, ...]:
    return t.dtype, t.shape, t.stride(), t.device, t.requires_grad, t.data_ptr() % 16 == 0


def _lie_apart(plan: Plan, tensors: list[Tensor]) -> bool:
    for a, b, a_bytes, b_bytes, distance in plan.apart:
        behind = tensors[b].data_ptr() - tensors[a].data_ptr()
        if -b_bytes < behind < a_bytes and behind != distance:
            return False
    return True


def _follow(plan: Plan, tensors: list[Tensor]) -> Any:
    for like in plan.new:
        tensors.append(empty(tensors[like]))
    arguments = plan.arguments.copy()
    for place, numbers, rest in plan.rows:
        arguments[place] = (*[tensors[n] for n in numbers], *rest)
    with current_device(tensors[0]):
        plan.run(*arguments)
    return tensors[plan.result[0]] if plan.single else tuple([tensors[n] for n in plan.result])


def _plan(made: list[Launch], tensors: list[Tensor], result: Any) -> Plan | None:
    """The plan of an op's launches for these tensors; None unless it is one launch, of these tensors alone."""
    if len(made) != 1:
        return None
    results = [result] if isinstance(result, Tensor) else [*result]
    known = [*tensors]
    new: list[int] = []
    for y in results:
        if _number(known, y) is None:
            like = next((n for n, x in enumerate(tensors) if (x.shape, x.dtype) == (y.shape, y.dtype)), None)
            if like is None or not y.is_contiguous():
                return None
            new.append(like)
            known.append(y)
    arguments: list[Any] = []
    rows = []
    for place, argument in enumerate(made[0].arguments):
        if isinstance(argument, Tensor):
            return None
        if not isinstance(argument, tuple):
            arguments.append(argument)
            continue
        first = [value for value in argument if isinstance(value, Tensor)]
        numbers = [_number(known, t) for t in first]
        found = tuple(n for n in numbers if n is not None)
        if len(found) < len(first) or any(isinstance(value, Tensor) for value in argument[len(first) :]):
            return None
        arguments.append(None)
        rows.append((place, found, tuple(argument[len(first) :])))
    written = [n for n, x in enumerate(tensors) if any(x is y for y in results)]
    return Plan(
        made[0].kernel[(made[0].programs, 1, 1)],
        arguments,
        tuple(rows),
        tuple(new),
        tuple(_number(known, y) for y in results),  # type: ignore[misc]  # all are known by now
        isinstance(result, Tensor),
        tuple(_pair(tensors, a, b) for a in written for b in range(len(tensors)) if b != a),
    )


def _number(known: list[Tensor], t: Tensor) -> int | None:
    return next((n for n, other in enumerate(known) if other is t), None)


def _pair(tensors: list[Tensor], a: int, b: int) -> tuple[int, int, int, int, int]:
    behind = tensors[b].data_ptr() - tensors[a].data_ptr()
    return a, b, _span(tensors[a]), _span(tensors[b]), behind


def _span(t: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.element_size() * (1 + reach) if t.numel() else 0
