"""Two results compared bit by bit."""

from torch import Tensor

from validation.judge import where

Outputs = tuple[Tensor, ...]


def equal_bits(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise: equal, or both NaN. 0 and -0 differ."""
    return ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())


def difference(got: Outputs, expected: Outputs) -> str:
    """Describe how the bits of two calls' outputs differ; "" if they do not."""
    if len(got) != len(expected):
        return f"returned {len(got)} outputs, {len(expected)} the first time"
    for t, before in zip(got, expected, strict=True):
        if not isinstance(t, Tensor) or t.shape != before.shape or t.dtype != before.dtype:
            return f"returned {_kind(t)}, {_kind(before)} the first time"
        differ = ~equal_bits(t, before)
        if bool(differ.any()):
            return words_of(differ, t, before, "the first time")
    return ""


def _kind(value: object) -> str:
    return f"{list(value.shape)} {str(value.dtype)[6:]}" if isinstance(value, Tensor) else type(value).__name__


def words_of(differ: Tensor, got: Tensor, expected: Tensor, whence: str) -> str:
    """How many elements differ, and the first of them.

    Args:
        differ: bool, True where the two differ; at least one element is.
        got, expected: the two tensors, of the same shape.
        whence: what `expected` is; it ends the message.
    """
    at = tuple(differ.nonzero()[0].tolist())
    count = f"{int(differ.sum())} of {differ.numel()} elements differ, the first at {where.index_text(at)}"
    pattern = where.describe(differ)
    return f"{count} ({got[at].item():.9g}, {expected[at].item():.9g} {whence}){'; ' if pattern else ''}{pattern}"
