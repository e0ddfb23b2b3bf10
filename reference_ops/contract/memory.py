"""Decide which tensors share memory, and which an in-place call may write."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from reference_ops.contract.arguments import shape_text

# Steps that numpy's solver may take to decide whether two views share memory: 5 ms at worst (measured).
OVERLAP_WORK = 10_000


def check_inplace(op: str, targets: Mapping[str, Tensor], inputs: Mapping[str, Tensor | None]) -> None:
    """Check that an in-place call may write its targets: no element twice, and none that it reads.

    Raises a ValueError for a target that holds an element twice (see `overlaps_itself`), and for a target
    that shares memory with another target or an input (see `may_overlap`). While torch.compile traces,
    tensors have no addresses and nothing is refused.
    """
    if torch.compiler.is_compiling():
        return
    seen = [(name, _addresses(t)) for name, t in inputs.items() if t is not None]
    for name, target in targets.items():
        if overlaps_itself(target):
            raise ValueError(
                f"{op}: {name} has shape {shape_text(target)} and strides {list(target.stride())}, expected no two "
                "elements in one place where inplace=True writes to it"
            )
        addresses = _addresses(target)
        for other_name, other in seen:
            if _share(addresses, other):
                raise ValueError(
                    f"{op}: {name} and {other_name} overlap in memory, expected no element in common (views of one "
                    "buffer may interleave) where inplace=True writes to them"
                )
        seen.append((name, addresses))


def overlaps_itself(t: Tensor) -> bool:
    """False if each stride steps over everything that the smaller strides reach; else True.

    False guarantees that t holds each element once. True means that it holds one twice, except for strides
    that no slicing of a dense tensor gives.
    """
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1):
        if stride <= reach:
            return t.numel() > 0
        reach += stride * (size - 1)
    return False


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """True if a and b share a byte of memory; exact, whatever their strides.

    q and k in a packed QKV buffer share none, nor do ``x[..., ::2]`` and ``x[..., 1::2]``. Also True if the
    strides are so tangled that `OVERLAP_WORK` steps do not decide; a packed buffer takes a handful.
    """
    return _share(_addresses(a), _addresses(b))


Addresses = np.ndarray[tuple[int, ...], np.dtype[np.void]]


def _share(a: Addresses, b: Addresses) -> bool:
    if a.size == 0 or b.size == 0:
        return False
    try:
        return np.shares_memory(a, b, max_work=OVERLAP_WORK)  # type: ignore[arg-type]  # any int will do
    except np.exceptions.TooHardError:
        return True


def _addresses(t: Tensor) -> Addresses:
    """An array over t's memory, for address computations only: it may be GPU memory, so never read it."""
    return np.asarray(_Memory(t))


class _Memory:
    def __init__(self, t: Tensor) -> None:
        size = t.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": tuple(t.shape),
            "strides": tuple(stride * size for stride in t.stride()),
            "data": (t.data_ptr(), False),
        }
