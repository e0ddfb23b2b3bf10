"""Shared memory that a kernel declares: where its variables lie, and which bytes are between them."""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from validation.compiled.ptx.bits import Array

# Between two variables lie as many bytes as an access has at most: it is seen where it leaves one of them. ptxas leaves
# none, and may choose another order. Addresses are the same modulo this as without a gap.
GAP = 16
_LOCAL_NAME = re.compile(r"_ZZ\w*?E(\d+)([A-Za-z_]\w*)$")


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of shared memory.

    Attributes:
        name: as PTX writes it. align: in bytes.
        nbytes: its size; None if the launch says how much it is (``extern __shared__``).
        start: its address in shared memory, which begins at 0.
    """

    name: str
    align: int
    nbytes: int | None
    start: int = 0

    @property
    def source_name(self) -> str:
        """As the source writes it: of ``_ZZ9block_sumfE7partial`` ``partial``."""
        match = _LOCAL_NAME.match(self.name)
        return match[2][: int(match[1])] if match and len(match[2]) >= int(match[1]) else self.name


def laid_out(declared: Iterable[Variable]) -> tuple[Variable, ...]:
    """Variables at their addresses: in order, each at a multiple of its alignment, those without a size at the end.

    All variables without a size begin at one address (PTX ISA, "Kernel and Function Directives: .extern").
    """
    placed: list[Variable] = []
    ordered = sorted(declared, key=lambda one: one.nbytes is None)
    end = 0
    for n, one in enumerate(ordered):
        if one.nbytes is None:
            align = max(other.align for other in ordered[n:])
            start = _next(end, max(align, GAP), gap=n > 0)
            return (*placed, *(dataclasses.replace(other, start=start) for other in ordered[n:]))
        start = _next(end, one.align, gap=n > 0)
        placed.append(dataclasses.replace(one, start=start))
        end = start + one.nbytes
    return tuple(placed)


def _next(end: int, align: int, *, gap: bool) -> int:
    return -(-(end + GAP * gap) // align) * align


def static_bytes(variables: Iterable[Variable]) -> int:
    """How many bytes lie before what the launch asks for."""
    return max((one.start + (one.nbytes or 0) for one in variables), default=0)


def between(variables: tuple[Variable, ...], nbytes: int) -> Array | None:
    """Which of the bytes of shared memory belong to no variable, bool; None if all belong to one."""
    if len({one.start for one in variables}) < 2 or not nbytes:
        return None
    outside = np.ones(nbytes, bool)
    for one in variables:
        outside[one.start : nbytes if one.nbytes is None else one.start + one.nbytes] = False
    return outside


def where(variables: tuple[Variable, ...], address: int, nbytes: int) -> str:
    """An address in words: its distance from the last variable before it, if there are several or one has a size."""
    before = [one for one in variables if one.start <= address]
    if not before or all(one.nbytes is None for one in variables):
        return f"byte {address} of {nbytes} of shared memory"
    one = max(before, key=lambda one: one.start)
    size = nbytes - one.start if one.nbytes is None else one.nbytes
    at = address - one.start
    place = f"{at - size} bytes behind the end of" if at >= size else f"{at} bytes into"
    return f"{place} {one.source_name}, {size} bytes of shared memory"
