"""Two kernels' quantities held against each other: those that are equal in exact arithmetic are one quantity.

A kernel's steps from its elements to its output are few once a sum is one step, of which one term stands for all. A
step of one kernel and a step of the other are the same quantity if float64, in which nothing was rounded, gives both
the same value. Each quantity that both have is then computed in each by some arithmetic on quantities further down;
where that differs the kernels part.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from validation.explain.evaluate import evaluate_with
from validation.explain.forms import Form, Numbers, Step
from validation.explain.formulas import Formula, grouped
from validation.explain.graph import Node
from validation.explain.sums import Sum, sums_of

_CENTRED = re.compile(r"\((.+) - mean\(\1\)\)²")
_NARROW = [f"{name}.{kind}" for name in ("add", "sub", "mul") for kind in ("bf16", "f16")]
# Equal in exact arithmetic: float64's own errors, where a variance is a difference of squares, lie below.
SAME = 1e-8


@dataclasses.dataclass(eq=False)
class Part:
    """A step of a kernel, where a sum is one.

    Attributes:
        op: the opcode; ``sum``, ``element``, ``constant``, or ``product`` of one that is not rounded.
        operands: of a sum the term of its first element.
        exact: the value in float64. step: the step; None for such a product. sum: the sum that it is.
    """

    op: str
    operands: tuple["Part", ...]
    exact: float
    step: Step | None = None
    sum: Sum | None = None

    @property
    def short(self) -> str:
        """Its operation without modes and types."""
        return self.op.partition(".")[0]

    @property
    def narrows(self) -> bool:
        """Whether it rounds to 16 bits: a conversion, or arithmetic in 16 bits."""
        if self.step is None or self.op in ("element", "constant") or self.short in ("neg", "abs", "min", "max"):
            return False
        return self.step.node.size == 2


@dataclasses.dataclass
class Kernel:
    """A kernel's parts, operands first.

    Args:
        form: of its graph.
        numbers: of both kernels.
        label: ``a`` or ``b``.
    """

    form: Form
    numbers: Numbers
    label: str

    @cached_property
    def parts(self) -> list[Part]:
        """Its parts, each once, operands first."""
        sums = sums_of(self.form, self.numbers)
        made: dict[object, Part] = {}
        order: list[Part] = []

        def add(key: object, part: Part) -> None:
            made[key] = part
            order.append(part)

        waiting: list[object] = [self.form.root]
        while waiting:
            key = waiting[-1]
            if key in made:
                waiting.pop()
                continue
            if isinstance(key, tuple):
                needs: list[object] = [*key]
            elif key in sums:
                sample = sums[key].sample
                numbers = tuple(step.number for step in sample.steps)
                needs = [numbers if sample.fused else numbers[0]]
            else:
                needs = [*self.form.steps[key].operands]  # type: ignore[index]
            if missing := [need for need in needs if need not in made]:
                waiting += missing
                continue
            waiting.pop()
            operands = tuple(made[need] for need in needs)
            if isinstance(key, tuple):
                add(key, Part("product", operands, math.prod(one.exact for one in operands)))
                continue
            step = self.form.steps[key]  # type: ignore[index]
            found = sums.get(step.number)
            add(key, Part("sum" if found else step.op, operands, step.exact, step, found))
        return order

    @property
    def root(self) -> Part:
        """Its output."""
        return self.parts[-1]

    def with_value(self, part: Part, raw: int) -> int:
        """The bits of the output if a part had other bits."""
        assert part.step is not None
        changed = evaluate_with(self.form.order, dict.fromkeys(part.step.ids, raw))
        return changed.get(id(self.form.graph), self.form.graph.bits)


@dataclasses.dataclass
class Quantity:
    """A quantity that both kernels have.

    Attributes:
        name: in words, in terms of quantities further down.
        parts: the last part of each kernel that is this quantity.
        formulas: what each computes it by.
    """

    name: str
    parts: tuple[Part, Part]
    formulas: tuple[Formula, Formula]

    @property
    def parts_ways(self) -> bool:
        """Whether the kernels' arithmetic differs here."""
        return self.formulas[0] != self.formulas[1]

    @property
    def same_bits(self) -> bool:
        """Whether both have the same bits here."""
        a, b = (part.step for part in self.parts)
        return a is not None and b is not None and (a.value == b.value or (a.value != a.value and b.value != b.value))


def quantities(a: Kernel, b: Kernel) -> list[Quantity]:
    """The quantities that both kernels have, in the order in which the first computes them; the output is the last."""
    shared = _shared(a.parts, b.parts)
    found: list[Quantity] = []
    names: dict[int, str] = {}
    last = [_last(kernel.parts, shared[n]) for n, kernel in enumerate((a, b))]
    for number in dict.fromkeys(shared[0][id(part)] for part in a.parts if id(part) in shared[0]):
        parts = (last[0][number], last[1][number])
        formulas = tuple(_formula(part, shared[n], number, names) for n, part in enumerate(parts))
        named = [_named(part, shared[n], number, names) for n, part in enumerate(parts)]
        name = min(named, key=len)
        # Two elements of one tensor have one name.
        again = sum(one == name or one.startswith(f"{name} #") for one in names.values())
        names[number] = f"{name} #{again + 1}" if again else name
        found.append(Quantity(names[number], parts, (formulas[0], formulas[1])))
    return found


def same(a: float, b: float) -> bool:
    """Whether two values are equal in exact arithmetic."""
    return a == b or abs(a - b) <= SAME * max(abs(a), abs(b))


def _shared(a: Sequence[Part], b: Sequence[Part]) -> tuple[dict[int, int], dict[int, int]]:
    """The number of the quantity that each part is, by its id, of those that both kernels have; the outputs are one."""
    of_a, of_b = dict[int, int](), dict[int, int]()
    values: list[float] = []
    for part in _computed(a):
        if any(same(part.exact, other.exact) for other in _computed(b)):
            number = next((n for n, value in enumerate(values) if same(value, part.exact)), len(values))
            if number == len(values):
                values.append(part.exact)
            of_a[id(part)] = number
    for part in _computed(b):
        number = next((n for n, value in enumerate(values) if same(value, part.exact)), -1)
        if number >= 0:
            of_b[id(part)] = number
    if of_a.get(id(a[-1]), -1) != of_b.get(id(b[-1]), -2):
        of_a[id(a[-1])] = of_b[id(b[-1])] = len(values)
    return of_a, of_b


def _computed(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts that are computed, and finite."""
    return (p for p in parts if p.op not in ("element", "constant", "product") and math.isfinite(p.exact))


def _last(parts: Sequence[Part], number_of: Mapping[int, int]) -> dict[int, Part]:
    """The last part of each quantity, that others use; not the unrounded product within a sum where another is."""
    found: dict[int, Part] = {}
    for part in parts:
        if id(part) in number_of:
            found[number_of[id(part)]] = part
    return found


def _formula(part: Part, number_of: Mapping[int, int], mine: int, names: Mapping[int, str]) -> Formula:
    """A part as a formula of quantities further down, elements and constants."""
    if part.op == "element":
        assert part.step is not None
        return part.step.node.name
    if part.op == "constant":
        assert part.step is not None
        return repr(part.step.value)
    number = number_of.get(id(part), mine)
    if number != mine:
        return names.get(number, f"quantity {number}")
    operands = [_formula(one, number_of, mine, names) for one in part.operands]
    if part.short in ("add", "mul", "product"):
        operands.sort(key=repr)
    if part.short == "fma":
        operands[:2] = sorted(operands[:2], key=repr)
    if part.sum is not None:
        return ("sum", part.sum.tree.key, part.sum.tree.fused, *operands)
    if part.op in _NARROW:
        # float32 holds their result before it is rounded: 24 bits are at least 2 p + 2.
        name, kind = part.op.split(".")
        return (f"cvt.rn.{kind}.f32", (f"{name}.f32", *operands))
    # The product that an fma adds: that it is not rounded is said of the sum.
    return ("mul.f32" if part.op == "product" else part.op, *operands)


def _named(part: Part, number_of: Mapping[int, int], mine: int, names: Mapping[int, str]) -> str:
    """A quantity in words: ``mean(x²)``; roundings and conversions have no name."""
    if part.op == "element":
        assert part.step is not None
        return part.step.node.name.partition("[")[0]
    if part.op == "constant":
        assert part.step is not None
        node: Node = part.step.node
        return node.name or f"{part.step.value:g}"
    number = number_of.get(id(part), mine)
    if number != mine and number in names:
        return names[number]
    of = [_named(one, number_of, mine, names) for one in part.operands]
    if part.sum is not None:
        return f"sum({of[0]})"
    if part.short in ("cvt", "widen"):
        return of[0]
    if part.short in ("mul", "product"):
        if part.operands[0] is part.operands[1]:
            return f"{grouped(of[0])}²"
        if (mean := _mean(part, of)) is not None:
            return mean
        return f"{grouped(of[0])} * {grouped(of[1])}"
    if part.short == "div":
        if (mean := _mean(part, of)) is not None:
            return mean
        return "rstd" if of[1].startswith("sqrt(") and of[0] == "1" else f"{grouped(of[0])} / {grouped(of[1])}"
    if part.short == "rsqrt":
        return "rstd"
    signs = {"add": "+", "sub": "-"}
    if part.short in signs:
        return f"{of[0]} {signs[part.short]} {grouped(of[1]) if part.short == 'sub' else of[1]}"
    if part.short == "fma":
        return f"{grouped(of[0])} * {grouped(of[1])} + {of[2]}"
    return f"{part.short}({', '.join(of)})"


def _mean(part: Part, of: Sequence[str]) -> str | None:
    """``mean(...)`` where a sum is divided by its number of terms, or multiplied by its inverse."""
    for n, one in enumerate(part.operands):
        other = part.operands[1 - n]
        inner = one
        while inner.short == "cvt":
            inner = inner.operands[0]
        if inner.sum is not None and other.op == "constant":
            size = inner.sum.tree.size
            if same(other.exact, size if part.short == "div" else 1 / size):
                of_what = of[n].removeprefix("sum(").removesuffix(")")
                return "variance" if _CENTRED.fullmatch(of_what) else f"mean({of_what})"
    return None
