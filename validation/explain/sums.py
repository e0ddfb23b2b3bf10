"""The sums of a form: trees of additions over different elements of one tensor, and their shapes in words."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from validation.explain.forms import Form, Numbers, Step
from validation.explain.graph import CTA

# Fewer terms are no reduction: a rotation adds two.
LEAST = 4
WARP = 32
# The shape of an addition within a thread: a value, or so many equal shapes one after another; None: of another kind.
Shape = tuple[int, "Shape"] | tuple[()] | None


@dataclasses.dataclass
class Term:
    """A term of a sum: a step, or the product that an fma adds without rounding it.

    Attributes:
        steps: the step; or the two factors.
        fused: whether it is such a product.
        name: of its first element. column: that element's last index.
        factors: of a product, rounded or not.
        first, last: the thread that adds it. size: 1. depth: 0. key: of its element.
    """

    steps: tuple[Step, ...]
    fused: bool
    factors: tuple[Step, ...]
    name: str
    column: int
    first: int
    key: int
    size: int = 1
    depth: int = 0

    @property
    def last(self) -> int:
        """The same thread."""
        return self.first


@dataclasses.dataclass
class Join:
    """An addition of a sum.

    Attributes:
        left, right: what it adds. size: terms. depth: additions from the deepest term.
        first, last: of the threads that add its terms.
        key: equal for equal orders of equal elements. fused: equal where also the same products are not rounded.
    """

    left: "Join | Term"
    right: "Join | Term"
    size: int
    depth: int
    first: int
    last: int
    key: int
    fused: int


@dataclasses.dataclass
class Sum:
    """A sum.

    Attributes:
        step: its root. tree: its additions.
        terms: in the order in which they are added, the deepest first.
    """

    step: Step
    tree: Join

    @cached_property
    def terms(self) -> list[Term]:
        """Its terms, the deepest first."""
        return [*_terms(self.tree)]

    @property
    def fused(self) -> int:
        """How many terms are products that are not rounded."""
        return sum(term.fused for term in self.terms)

    @cached_property
    def rounded(self) -> int:
        """How many terms are products that float32 does not hold exactly, whether they are rounded or not."""
        products = [(a.value * b.value) for a, b in (t.factors for t in self.terms if t.factors)]
        with np.errstate(all="ignore"):
            return sum(float(np.float32(one)) != one for one in products)

    @property
    def sample(self) -> Term:
        """The term of the first element."""
        return min(self.terms, key=lambda term: (term.column, term.name))

    def words(self) -> str:
        """How it adds."""
        inner, levels = _levels(self.tree)
        counts = Counter(term.first for term in self.terms)
        threads = sorted(counts)
        shapes = {_shape(one) for one in inner}
        sizes = sorted({*counts.values()})
        each = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        first = next(one for one in inner if one.first == threads[0])
        order = _runs([term.column for term in _terms(first)])
        of_one = sum(one.first == threads[0] for one in inner)
        who = "one thread adds" if len(threads) == 1 else f"each of {len(threads):,} threads adds"
        if of_one > 1:
            text = f"{who} {each} values, {first.size:,} at a time"
        else:
            text = f"{who} {each} value{'s' * (each != '1')}"
        if each != "1":
            text += f"{_shape_words(shapes)} (the first one's columns: {order})"
        return "; then ".join([text, *levels])


def sums_of(form: Form, numbers: Numbers) -> dict[int, Sum]:
    """The sums of a form, by the number of their step."""
    bit: dict[int, int] = {}
    of_tensor: dict[str, int] = {}
    own: dict[int, int] = {}
    least: dict[int, str] = {}
    trees: dict[int, Join] = {}
    inside = set[int]()

    def scalar(n: int) -> int:
        """The elements of a step as another operation than a sum takes it: of a finished sum none."""
        return 0 if n in trees and trees[n].size >= LEAST else own[n]

    def alike(a: int, b: int) -> bool:
        return bool(a) and bool(b) and not a & b and any(a & mask and b & mask for mask in of_tensor.values())

    for n, step in form.steps.items():
        if step.op == "element":
            bit[n] = 1 << len(bit)
            tensor = step.node.name.partition("[")[0]
            of_tensor[tensor] = of_tensor.get(tensor, 0) | bit[n]
            own[n], least[n] = bit[n], step.node.name
            continue
        named = [least[o] for o in step.operands if least.get(o)]
        least[n] = named[0] if named else ""
        if step.short in ("add", "fma") and len(step.operands) >= 2:
            factors, last = step.operands[:-1], step.operands[-1]
            product = 0
            for o in factors:
                product |= scalar(o) if step.short == "fma" else own[o]
            if alike(product, own[last]):
                parts: list[Join | Term] = []
                for operands in (factors, (last,)):
                    o = operands[0]
                    if len(operands) == 1 and o in trees:
                        parts.append(trees[o])
                        inside.add(o)
                    else:
                        of = tuple(form.steps[o] for o in operands)
                        name = next(least[o] for o in operands if scalar(o))
                        fused = len(operands) > 1
                        at = step.thread if fused else of[0].thread
                        of_product = of if fused else tuple(form.operands(of[0])) if of[0].short == "mul" else ()
                        key = numbers.of(("term", name))
                        parts.append(Term(of, fused, of_product, name, _column(name), at, key))
                trees[n] = _join(parts[0], parts[1], numbers)
                own[n] = product | own[last]
                continue
        own[n] = 0
        for o in step.operands:
            own[n] |= scalar(o)
    return {
        n: Sum(form.steps[n], tree) for n, tree in trees.items() if tree.size >= LEAST and _outside(n, inside, form)
    }


def _outside(n: int, inside: set[int], form: Form) -> bool:
    """Whether a step is used by another operation than the sum that it is a part of, or is the output."""
    return n not in inside or n == form.root


def _join(left: Join | Term, right: Join | Term, numbers: Numbers) -> Join:
    return Join(
        left,
        right,
        left.size + right.size,
        1 + max(left.depth, right.depth),
        min(left.first, right.first),
        max(left.last, right.last),
        numbers.of(("join", *sorted((left.key, right.key)))),
        numbers.of(("fused", *sorted((_fused(left, numbers), _fused(right, numbers))))),
    )


def _fused(one: Join | Term, numbers: Numbers) -> int:
    return one.fused if isinstance(one, Join) else numbers.of(("fused", one.key, one.fused))


def _terms(tree: Join | Term) -> Iterator[Term]:
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Term):
            yield one
            continue
        waiting += sorted((one.left, one.right), key=lambda side: side.depth)


def _levels(tree: Join) -> tuple[list[Join | Term], list[str]]:
    """The parts of a sum that one thread adds, and in words how those of several are added, the first level first."""
    inner: list[Join | Term] = []
    joins: list[Join] = []
    waiting: list[Join | Term] = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Term) or one.first == one.last:
            inner.append(one)
        else:
            joins.append(one)
            waiting += [one.left, one.right]
    # The distances of the threads on the longest way down from each.
    ways: dict[int, tuple[int, ...]] = {}
    regular = True
    for one in reversed(joins):
        short, long = sorted((ways.get(id(one.left), ()), ways.get(id(one.right), ())), key=len)
        rest = iter(long)
        regular = regular and all(distance in rest for distance in short)
        ways[id(one)] = (*long, abs(one.left.first - one.right.first))
    if not regular:
        return inner, [f"their sums in {len(ways[id(tree)])} levels that are not alike"]
    return inner, [*_level_words(ways.get(id(tree), ()))]


def _level_words(distances: Sequence[int]) -> Iterator[str]:
    """Additions of values of different threads, by how far these are apart."""
    for unit, group in itertools.groupby(distances, _unit):
        levels = [*group]
        if unit == 0:
            yield f"{len(levels) + 1} sums of all threads, one after another"
        else:
            name = {1: "lanes", WARP: "warps", CTA: "CTAs"}[unit]
            yield f"{name} {', '.join(str(distance // unit) for distance in levels)} apart"


def _unit(distance: int) -> int:
    """What a distance of threads is counted in; 0 for none."""
    return next((unit for unit in (CTA, WARP, 1) if distance >= unit), 0)


def _shape(one: Join | Term) -> Shape:
    """The shape of an addition within a thread."""
    if not isinstance(one, Join):
        return ()
    known: dict[int, Shape] = {}
    waiting: list[Join | Term] = [one]
    while waiting:
        top = waiting[-1]
        if isinstance(top, Term):
            known[id(top)] = ()
            waiting.pop()
            continue
        missing = [side for side in (top.left, top.right) if id(side) not in known]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        a, b = known[id(top.left)], known[id(top.right)]
        known[id(top)] = None
        for x, y in ((a, b), (b, a)):
            if x and x[1] == y and y is not None:
                known[id(top)] = (x[0] + 1, y)
                break
        else:
            known[id(top)] = (2, a) if a == b and a is not None else None
    return known[id(one)]


def _shape_words(shapes: set[Shape]) -> str:
    if all(shape is not None and (not shape or shape[1] == ()) for shape in shapes):
        return " one after another"
    if len(shapes) > 1 or None in shapes:
        return ", in an order of its own"
    shape = next(iter(shapes))
    counts = []
    while shape:
        counts.append(shape[0])
        shape = shape[1]
    if set(counts) == {2}:
        return " in pairs"
    return " as " + " of ".join(f"{n:,} sums" for n in counts[:-1]) + f" of {counts[-1]:,}, each one after another"


def _runs(columns: list[int]) -> str:
    """Columns in order, as runs: ``0-7, 1024-1031``."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][1] + 1:
            runs[-1][1] = column
        else:
            runs.append([column, column])
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in runs]
    return ", ".join(shown[:4]) + ", ..." * (len(shown) > 4)


def _column(name: str) -> int:
    last = name.rpartition("[")[2].rstrip("]").rpartition(",")[2].strip()
    return int(last) if last.isdigit() else 0
