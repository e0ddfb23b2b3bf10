"""Explains an op of two op sets: on the first case whose outputs differ, at the first element that does."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import as_bits
from validation.compiled.ptx.sass import contracted
from validation.device import Device
from validation.errors import NotExecutedError
from validation.explain.calls import TYPES, Made
from validation.explain.evaluate import check
from validation.explain.forms import Numbers, form_of
from validation.explain.graph import Node, walk
from validation.explain.quantities import Kernel
from validation.explain.words import explain
from validation.ops import OpSet


@dataclasses.dataclass
class Explained:
    """What was found.

    Attributes:
        lines: the explanation, or that nothing differs.
        compared: how many cases were. left_out: why others were not, each reason once.
        case: the one whose outputs differ; None if none does.
        followed: whether the arithmetic of both was followed.
    """

    lines: list[str]
    compared: int = 0
    left_out: list[str] = dataclasses.field(default_factory=list)
    case: Case | None = None
    followed: bool = True


def explain_first(
    cases: Iterable[Case],
    a: OpSet,
    b: OpSet,
    device: Device,
    *,
    progress: Callable[[str], None] = lambda _text: None,
) -> Explained:
    """Compare the op sets on cases, and explain the first one whose outputs differ.

    Args:
        cases: of one op that both have.
        a, b: the op sets.
        device: selected, compiled.
        progress: is told of each case.

    Raises:
        NotTheKernelsError: what was followed does not give a kernel's bits: a defect of this module.
    """
    found = Explained([])
    for n, case in enumerate(cases):
        progress(f"case {n + 1}: {case.op}, {case.describe()}")
        made = [Made(case, ops, device) for ops in (a, b)]
        unknown = [f"{one.name}: {one.unknown}" for one in made if one.unknown]
        if not unknown:
            unknown = _other_forms(*made)
        if unknown:
            found.left_out += [text for text in unknown if text not in found.left_out]
            continue
        found.compared += 1
        differ = [_differ(x, y) for x, y in zip(made[0].outputs, made[1].outputs, strict=True)]
        if any(mask.any() for mask in differ):
            found.case = case
            found.lines, found.followed = _explained(made[0], made[1], differ)
            return found
    return found


def _other_forms(a: Made, b: Made) -> list[str]:
    forms = [[(str(t.dtype).removeprefix("torch."), [*t.shape]) for t in one.outputs] for one in (a, b)]
    return [] if forms[0] == forms[1] else [f"{a.name} returns {forms[0]}, {b.name} {forms[1]}"]


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Where two outputs have other bits; NaN equals NaN."""
    differ = as_bits(a) != as_bits(b)
    return differ & ~(a.isnan() & b.isnan()) if a.is_floating_point() else differ


def _explained(a: Made, b: Made, differ: list[Tensor]) -> tuple[list[str], bool]:
    lines = [f"{a.case.op}, {a.case.describe()}"]
    several = len(differ) > 1
    counts = [
        f"{int(mask.sum()):,} of {mask.numel():,} elements" + f" of output {n}" * several
        for n, mask in enumerate(differ)
        if mask.any()
    ]
    output = next(n for n, mask in enumerate(differ) if mask.any())
    index = _first(differ[output], a.outputs[output], b.outputs[output])
    name = f"output {output} " if several else "y"
    values = [one.outputs[output][index].item() for one in (a, b)]
    lines.append(
        f"{' and '.join(counts)} differ; {name}[{', '.join(map(str, index))}]: a {values[0]:.9g}, b {values[1]:.9g}, "
        f"{_apart(a.outputs[output][index], b.outputs[output][index])} apart"
    )
    graphs: list[Node] = []
    for label, made in zip("ab", (a, b), strict=True):
        try:
            graph = made.element(output, index)
            check(graph, _bits(made.outputs[output][index]))
        except NotExecutedError as error:
            lines.append(f"{label} ({made.name}) is not followed: {error}")
        else:
            graphs.append(graph)
    if len(graphs) < 2:
        return lines, False
    numbers = Numbers()
    kernels = [Kernel(form_of(graph, numbers), numbers, label) for graph, label in zip(graphs, "ab", strict=True)]
    lines += explain(*kernels)
    lines += _notes((a, b), graphs)
    return lines, True


def _notes(made: Sequence[Made], graphs: Sequence[Node]) -> list[str]:
    """What the explanation does not know of a GPU's bits."""
    found = {node.op for graph in graphs for node in walk(graph)}
    approximate = sorted(op for op in found if {"approx", "full"} & {*op.split(".")})
    notes = []
    if approximate:
        notes.append(f"{', '.join(approximate)}: a GPU's bits lie within an interval; taken is the value, rounded")
    changed = [
        f"{label}: {text}"
        for label, one in zip("ab", made, strict=True)
        for kept in one.launches
        if (text := contracted(kept.program.kernel, kept.launch.cubin))
    ]
    return [*notes, *dict.fromkeys(changed)]


def _first(differ: Tensor, a: Tensor, b: Tensor) -> tuple[int, ...]:
    """The first index that differs, with finite values in both if there is such a one."""
    finite = differ & a.isfinite() & b.isfinite()
    place = (finite if finite.any() else differ).nonzero()[0]
    return tuple(map(int, place))


def _bits(x: Tensor) -> int:
    size = x.element_size()
    signed = x.reshape(1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    return int(signed[0]) & ((1 << 8 * size) - 1)


def _apart(a: Tensor, b: Tensor) -> str:
    """How many representable numbers lie between two, in words."""
    if a.dtype not in TYPES or not (a.isfinite() and b.isfinite()):
        return "not a number"
    top = 1 << (8 * a.element_size() - 1)
    order = [raw if raw < top else top - raw for raw in (_bits(a), _bits(b))]
    return f"{abs(order[0] - order[1]):,} ulp"
