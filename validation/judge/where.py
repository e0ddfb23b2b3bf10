"""Puts into words which elements of an output are wrong."""

from collections.abc import Sequence

import torch
from torch import Tensor


def describe(wrong: Tensor) -> str:
    """The pattern of wrong elements: rows, columns, batch items, tails; "" if nothing stands out.

    Args:
        wrong: bool, the output's shape; the last dimension is called columns, all before it rows.
    """
    if wrong.dim() == 0 or not bool(wrong.any()):
        return ""
    if bool(wrong.all()):
        return "every element is wrong"
    table = wrong.reshape(-1, wrong.shape[-1])
    patterns = [
        _dimension(wrong, 0, "batch item") if wrong.dim() > 2 else "",
        _dimension(wrong, 1, "token") if wrong.dim() > 2 else "",
        _indices(table.any(1), "row"),
        _indices(table.any(0), "column"),
    ]
    return "; ".join(p for p in patterns if p)


def _dimension(wrong: Tensor, axis: int, name: str) -> str:
    others = [d for d in range(wrong.dim()) if d != axis]
    return _indices(wrong.any(dim=tuple(others)) if others else wrong, name)


def _indices(hit: Tensor, name: str) -> str:
    """Which of the indices along one dimension are hit, if that is fewer than all of them."""
    count, wrong = hit.numel(), hit.nonzero().flatten()
    if len(wrong) == count or count < 2:
        return ""
    low, high = int(wrong[0]), int(wrong[-1])
    if len(wrong) == 1:
        tail = ", the last" if low == count - 1 else ""
        return f"only {name} {low} of {count} is wrong{tail}"
    if len(wrong) == high - low + 1:
        if high == count - 1:
            return f"only {name}s >= {low} of {count} are wrong: a tail of {count - low}"
        if low == 0:
            return f"only {name}s <= {high} of {count} are wrong"
        return f"only {name}s {low} to {high} of {count} are wrong"
    steps = torch.diff(wrong)
    if len(wrong) > 2 and bool((steps == steps[0]).all()):
        return f"every {_ordinal(int(steps[0]))} {name} is wrong, from {low}"
    if len(wrong) * 4 <= count:
        return f"{len(wrong)} of {count} {name}s are wrong"
    return ""


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def index_text(index: Sequence[int]) -> str:
    """``[2, 511, 77]``."""
    return "[" + ", ".join(map(str, index)) + "]"
