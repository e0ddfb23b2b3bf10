"""Computes a graph again: with the roundings of its instructions, which must give the kernel's bits, and in float64."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.bits import DTYPES, UNSIGNED, Array, bits
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.table import Elementwise
from validation.explain.graph import CTA, Node, walk


class NotTheKernelsError(Exception):
    """A graph that does not compute what the kernel computed; the message names the first such node."""


def as_number(raw: int, type_: str) -> float:
    """The bits of a float as a number; of other types the integer."""
    if type_ == "bf16":
        return float(np.uint32(raw << 16).view(np.float32))
    dtype = DTYPES[type_]
    return float(UNSIGNED[dtype.itemsize].type(raw).view(dtype))


def evaluate(root: Node) -> dict[int, int]:
    """The bits of each node, by its id, computed from the leaves by the instructions' own roundings."""
    found: dict[int, int] = {}
    for node in walk(root):
        found[id(node)] = computed(node, [found[id(one)] for one in node.operands])
    return found


def computed(node: Node, given: Sequence[int]) -> int:
    """The bits that a node's instruction gives for operands of these bits; a leaf's own."""
    if not node.operands:
        return node.bits
    if node.op == "widen":
        return given[0] << 16
    if node.short == "part":
        return (given[0] >> 8 * int(node.op.partition(".")[2])) & ((1 << 8 * node.size) - 1)
    entry: Any = OPCODES[node.op]
    assert isinstance(entry, Elementwise)
    types = entry.operands if len(entry.operands) == len(given) else (*entry.operands, entry.operands[-1])
    arrays = [_array(raw, DTYPES[type_]) for raw, type_ in zip(given, types, strict=True)]
    with np.errstate(all="ignore"):
        return int(bits(entry.function(*([Approximation()] if entry.approximate else []), *arrays))[0, 0])


def _array(raw: int, dtype: np.dtype[Any]) -> Array:
    size = dtype.itemsize
    return np.full((1, 1), raw & ((1 << 8 * size) - 1), UNSIGNED[size]).view(dtype)


def evaluate_with(order: Sequence[Node], instead: Mapping[int, int]) -> dict[int, int]:
    """The bits of the nodes that change if some have other bits than their own, by id.

    Args:
        order: the nodes of a graph that was checked, operands first.
        instead: the bits of some, by id.
    """
    changed = dict(instead)
    for node in order:
        if id(node) not in changed and any(id(one) in changed for one in node.operands):
            raw = computed(node, [changed.get(id(one), one.bits) for one in node.operands])
            if raw != node.bits:
                changed[id(node)] = raw
    return changed


def check(root: Node, output: int) -> None:
    """Compute a graph again.

    Args:
        root: of the graph.
        output: the bits that the call gave.

    Raises:
        NotTheKernelsError: its root, or a node, has other bits than the kernel had.
    """
    found = evaluate(root)
    for node in walk(root):
        if found[id(node)] != node.bits:
            raise NotTheKernelsError(
                f"{node.op} at {node.place or node.name} of thread {node.thread % CTA} gives 0x{found[id(node)]:x}, "
                f"the kernel had 0x{node.bits:x}: the graph is not what the kernel computes"
            )
    if found[id(root)] != output:
        raise NotTheKernelsError(f"the graph gives 0x{found[id(root)]:x}, the kernel gave 0x{output:x}")


def _divided(a: float, b: float) -> float:
    return float(np.float64(a) / np.float64(b))


_EXACT: dict[str, Callable[..., float]] = {
    "add": lambda a, b, *c: a + b + sum(c),
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "div": _divided,
    "neg": lambda a: -a,
    "abs": abs,
    "cvt": lambda a: a,
    "widen": lambda a: a,
    "sqrt": lambda a: float(np.sqrt(np.float64(a))),
    "rsqrt": lambda a: float(1 / np.sqrt(np.float64(a))),
    "rcp": lambda a: _divided(1.0, a),
    "ex2": lambda a: float(np.exp2(np.float64(a))),
    "lg2": lambda a: float(np.log2(np.float64(a))),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "min": min,
    "max": max,
}
_FLOATS = ("f32", "f16", "bf16", "f64")


def exact(root: Node) -> dict[int, float]:
    """The value of each node in float64, by its id, if no instruction rounded; NaN where that is not known.

    A constant that is the float32 nearest to 1 / n of an integer n counts as 1 / n.
    """
    found: dict[int, float] = {}
    with np.errstate(all="ignore"):
        for node in walk(root):
            given = [found[id(one)] for one in node.operands]
            if node.op == "constant":
                found[id(node)] = _constant(node)
            elif node.op == "element":
                found[id(node)] = as_number(node.bits, node.type_)
            elif node.short in _EXACT and _of_floats(node):
                try:
                    found[id(node)] = _EXACT[node.short](*given)
                except (OverflowError, ValueError):
                    found[id(node)] = math.nan
            else:
                found[id(node)] = as_number(node.bits, node.type_) if node.type_ not in _FLOATS else math.nan
    return found


def _of_floats(node: Node) -> bool:
    """Whether float64 gives its value: no conversion to whole numbers, and not of bits."""
    if node.op == "widen":
        return True
    types = node.op.split(".")
    if node.short == "cvt":
        return types[1] in ("rn", "rz", "rm", "rp", *_FLOATS) and node.type_ in (*_FLOATS, "b16")
    return node.type_ in _FLOATS


def _constant(node: Node) -> float:
    value = as_number(node.bits, node.type_)
    if node.type_ == "f32" and 0 < abs(value) < 1:
        whole = round(1 / value)
        if abs(whole) < 1 << 24 and float(np.float32(1 / whole)) == value:
            return 1 / whole
    return value
