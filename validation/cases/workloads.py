"""A fused site of a real model, with its shapes, dtypes and strides; each model's folder lists its own (``workloads``).

On a GPU the workloads run whole; on the CPU with a few tokens of each kind and the same widths, dtypes and stride
patterns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from validation.cases.case import Case, TensorSpec


@dataclasses.dataclass(frozen=True)
class Workload:
    """A site of a model.

    Attributes:
        model: its name.
        site: its name and, if there are several, the resolution or stream.
        op: the op that is computed there.
        make: makes the case, whole (True) or with a few tokens (False).
    """

    model: str
    site: str
    op: str
    make: Callable[[bool], Case]

    @property
    def name(self) -> str:
        """``helios norm1 384x640``."""
        return f"{self.model} {self.site}"


def contiguous(shape: tuple[int, ...], dtype: str, storage: str, offset: int = 0) -> TensorSpec:
    """A contiguous tensor in the buffer called ``storage``, from element ``offset`` on."""
    strides, run = [], 1
    for size in reversed(shape):
        strides.append(run)
        run *= size
    return TensorSpec(shape, dtype, tuple(reversed(strides)), offset, storage)


def chunk(
    batch: int, tokens: int, width: int, dtype: str, name: str, part: int, parts: int, *, planes: bool = False
) -> TensorSpec:
    """One of the ``parts`` rows of width ``width`` that a modulation tensor holds for each token.

    The tensor is ``[B, L, parts, D]``, or, with planes, ``[B, parts, L, D]``: the memory order that diffusers
    0.42.1 gives the permuted time projection, because adding the table keeps its strides.
    """
    token, plane = (width, tokens * width) if planes else (parts * width, width)
    strides = (tokens * parts * width, token, 1)
    return TensorSpec((batch, tokens, width), dtype, strides, part * plane, f"modulation {name}")


def case_of(op: str, tensors: dict[str, TensorSpec], **flags: Any) -> Case:
    """The case of a site: DiT-like values, seed 0."""
    return Case(op, tensors, flags, "dit", 0)
