"""A corner, and the properties of a case that corners' tests read."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from validation.cases.case import Case, TensorSpec


@dataclasses.dataclass(frozen=True)
class Corner:
    """A part of the case space that a sweep must reach.

    Attributes:
        name: as reports print it, ``scale=[B,F,1,D]``.
        forced: choices of `strategies` that lead there.
        reached: whether a case is in it.
        sparse: it combines two conditions that have a corner each, and gets half as many cases.
    """

    name: str
    forced: Mapping[str, Any]
    reached: Callable[[Case], bool]
    sparse: bool = False


def main(case: Case) -> TensorSpec:
    """The tensor x, or q."""
    return case.tensors["x" if "x" in case.tensors else "q"]


def rows(case: Case) -> int:
    """How many rows x or q has: the product of all dimensions but the last."""
    spec = main(case)
    return spec.numel // spec.shape[-1]


def heads(case: Case) -> int:
    """How many heads x or q has; read from cos if x has no dimension for them."""
    x = main(case)
    return x.shape[-2] if len(x.shape) > 3 or "q" in case.tensors else case.tensors["cos"].shape[1]


def all_rows(case: Case) -> int:
    """How many rows a kernel sees: those of `rows`, or of all heads where these lie in the last dimension."""
    in_columns = "q" not in case.tensors and "cos" in case.tensors and len(main(case).shape) == 3
    return rows(case) * (heads(case) if in_columns else 1)


class Arrangement(enum.Enum):
    """How tensors lie in memory, in the words of corners' names."""

    ANY = ""
    COLUMNS_APART = "columns apart"  # in all tensors
    ROWS_APART = "rows apart"  # in activations, modulation and angles: further apart than they are long
    INDEXED = "indexed"  # all modulation, without a weight

    def of_modulation(self, name: str, form: str) -> dict[str, str]:
        """The choices that give a modulation argument of that form this arrangement."""
        match self:
            case Arrangement.COLUMNS_APART if form.startswith("indexed"):
                return {f"{name}.table.layout": "strided_last", f"{name}.index.layout": "strided_last"}
            case Arrangement.ROWS_APART if form.startswith("indexed"):
                return {f"{name}.table.layout": "gapped"}
            case Arrangement.COLUMNS_APART:
                return {f"{name}.layout": "strided_last"}
            case Arrangement.ROWS_APART:
                return {f"{name}.layout": "chunked"}
        return {}

    def holds(self, specs: Iterable[TensorSpec]) -> bool:
        """Whether columns or rows are apart in each of the tensors; True if the arrangement asks for neither."""
        match self:
            case Arrangement.COLUMNS_APART:
                return all(spec.shape and spec.strides[-1] > 1 for spec in specs)
            case Arrangement.ROWS_APART:
                return all(len(spec.shape) > 1 and spec.strides[-2] > spec.shape[-1] for spec in specs)
        return True
