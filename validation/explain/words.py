"""What an explanation says: where two kernels part, what each does there, and the values of both."""

import re
from collections.abc import Iterator, Sequence

from validation.explain.formulas import Formula, text_of
from validation.explain.quantities import Kernel, Part, Quantity, quantities
from validation.explain.sums import Sum

_ROUNDS = re.compile(r"cvt\.\w+\.(bf16|f16)\.f32")


def explain(a: Kernel, b: Kernel) -> list[str]:
    """Where the arithmetic of two kernels of one output element parts, in the order in which the first one computes."""
    found = quantities(a, b)

    def place(one: Quantity) -> str:
        return f"the output, {one.name}" if one is found[-1] else one.name

    apart = [one for one in found if one.parts_ways]
    if not apart:
        return ["no step of their arithmetic differs"]
    first = next((n for n, one in enumerate(apart) if not one.same_bits), len(apart))
    lines: list[str] = []
    if first < len(apart):
        lines += _told(apart[first], f"their values part first at {place(apart[first])}:")
        if apart[first] is not found[-1]:
            lines += _cause(found, a, b)
    after = [one for one in apart[first + 1 :] if not one.same_bits]
    same = [*apart[:first], *(one for one in apart[first + 1 :] if one.same_bits)]
    for one in after:
        lines += _told(one, f"after that they part at {place(one)}:")
    for one in same:
        lines += _told(one, f"other arithmetic that gives this element the same bits, at {place(one)}:")
    return lines


def _told(quantity: Quantity, head: str) -> list[str]:
    return [head, *(f"  {text}" for text in difference(quantity)), *(f"  {text}" for text in _values(quantity))]


def difference(quantity: Quantity) -> Iterator[str]:
    """How two kernels compute a quantity, in words: a line or more for each."""
    a, b = quantity.parts
    sums = (_sum_of(a), _sum_of(b))
    formulas = [_plain(formula) for formula in quantity.formulas]
    told = False
    if sums[0] is not None and sums[1] is not None:
        for text in _sums(sums[0], sums[1]):
            told = True
            yield text
    roundings = [
        [_place(one) for one in _within(part, quantity.formulas[n]) if one.narrows] for n, part in enumerate((a, b))
    ]
    if len(roundings[0]) != len(roundings[1]):
        told = True
        for label, places in zip("ab", roundings, strict=True):
            yield f"{label} rounds it to 16 bits {_times(len(places))}{f': {_listed(places)}' if places else ''}"
    if formulas[0] == formulas[1] and told:
        return
    unfused = [_unfused(formula) for formula in formulas]
    if unfused[0] == unfused[1] and formulas[0] != formulas[1]:
        for label, formula in zip("ab", formulas, strict=True):
            word = "adds a product without rounding it (fma)" if _has_fma(formula) else "rounds the product, then adds"
            yield f"{label} {word}"
    passes = ["two passes" if _passes(formula) == 2 else "one pass" for formula in formulas]
    for n, (label, part) in enumerate(zip("ab", (a, b), strict=True)):
        places = [*dict.fromkeys(_place(one) for one in _within(part, quantity.formulas[n]) if _computes(one))]
        in_passes = f" in {passes[n]}" if passes[0] != passes[1] else ""
        yield f"{label} computes {text_of(quantity.formulas[n])}{in_passes}" + f" ({_listed(places)})" * bool(places)


def _sums(a: Sum, b: Sum) -> Iterator[str]:
    """How two sums of equal terms differ."""
    if a.tree.key != b.tree.key:
        yield f"they add {len(a.terms):,} terms in another order"
        for label, one in zip("ab", (a, b), strict=True):
            yield f"{label}: {one.words()}"
    fused = [one.fused for one in (a, b)]
    if bool(fused[0]) == bool(fused[1]) and (a.tree.key != b.tree.key or a.tree.fused == b.tree.fused):
        return
    for label, one in zip("ab", (a, b), strict=True):
        place = one.step.node.place or "?"
        yield (
            f"{label} adds {one.fused:,} of {len(one.terms):,} products without rounding them (fma at {place})"
            if one.fused
            else f"{label} rounds each product to float32, then adds it (mul, then add at {place})"
        )
    if not a.rounded:
        yield "every product is a float32 number here, so that makes no difference"


def _cause(found: Sequence[Quantity], a: Kernel, b: Kernel) -> Iterator[str]:
    """Whether one quantity's value is enough to turn one output into the other."""
    tried = False
    for one in found[:-1]:
        mine, other = (part.step for part in one.parts)
        if one.same_bits or mine is None or other is None or mine.node.type_ != other.node.type_:
            continue
        tried = True
        if a.with_value(one.parts[0], other.node.bits) == b.form.graph.bits:
            yield f"  with b's value of {one.name}, the rest of a gives b's output"
            return
    if tried:
        yield "  no one value of b's, put into a, gives b's output"


def _values(quantity: Quantity) -> Iterator[str]:
    a, b = (part.step for part in quantity.parts)
    truth = quantity.parts[0].exact
    if a is None or b is None:
        return
    if quantity.same_bits:
        yield f"here both are {a.value:.9g}, exactly {truth:.12g}"
        return
    errors = abs(a.value - truth), abs(b.value - truth)
    near = "a is nearer" if errors[0] < errors[1] else "b is nearer" if errors[1] < errors[0] else "both are as near"
    yield f"here a is {a.value:.9g}, b {b.value:.9g}, exactly {truth:.12g}: {near}"


def _sum_of(part: Part) -> Sum | None:
    """The sum that a quantity is, or was rounded from."""
    while part.sum is None and part.short == "cvt":
        part = part.operands[0]
    return part.sum


def _times(count: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places)


def _place(part: Part) -> str:
    assert part.step is not None
    node = part.step.node
    return f"{node.op} at {node.place}" if node.place else node.op


def _computes(part: Part) -> bool:
    return part.sum is None and part.step is not None and part.step.node.instruction is not None


def _within(part: Part, formula: Formula) -> Iterator[Part]:
    """The parts that a formula is made of; what it names is none."""
    if isinstance(formula, str):
        return
    yield part
    rest = [*formula[3:]] if part.sum else [*formula[1:]]
    for one in part.operands:
        op = "mul.f32" if one.op == "product" else one.op
        inner = next((of for of in rest if isinstance(of, tuple) and of[0] == op), None)
        if inner is not None:
            rest.remove(inner)
            yield from _within(one, inner)


def _plain(formula: Formula) -> Formula:
    """A formula without roundings to 16 bits, and without the order of its sums."""
    if isinstance(formula, str):
        return formula
    op = str(formula[0])
    rest = formula[3:] if op == "sum" else formula[1:]
    operands = [_plain(one) for one in rest]  # type: ignore[arg-type]
    return operands[0] if _ROUNDS.match(op) else (op, *operands)


def _unfused(formula: Formula) -> Formula:
    """A formula with a product and a sum for each fma."""
    if isinstance(formula, str):
        return formula
    op, *operands = formula
    given = [_unfused(one) for one in operands]  # type: ignore[arg-type]
    name = str(op)
    if name.startswith("fma.rn."):
        kind = name.removeprefix("fma.rn.")
        return (f"add.{kind}", *sorted([(f"mul.{kind}", *sorted(given[:2], key=repr)), given[2]], key=repr))
    return (name, *(sorted(given, key=repr) if name.startswith(("add", "mul")) else given))


def _has_fma(formula: Formula) -> bool:
    return not isinstance(formula, str) and (
        str(formula[0]).startswith("fma") or any(_has_fma(one) for one in formula[1:] if isinstance(one, tuple | str))
    )


def _passes(formula: Formula, *, inside: bool = False) -> int:
    """2 where a sum is over what a mean was taken from, as (x - mean(x))²; else 1."""
    if isinstance(formula, str):
        return 2 if inside and "mean(" in formula else 1
    inside = inside or formula[0] == "sum"
    return max((_passes(one, inside=inside) for one in formula[1:] if isinstance(one, tuple | str)), default=1)
