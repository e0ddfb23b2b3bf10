"""The bytes that an op must move, and arguments in enough copies that none of them waits in the cache.

The model: each distinct element of each input is read once, each output element is written once. An expanded
dimension (stride 0) holds one distinct element, an `IndexedRows` its table and its index. What lies between the
elements of a strided tensor is not counted, though memory moves in sectors of 32 bytes: of a table of which every
second float32 is needed, the GPU reads twice what is counted here.
"""

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from reference_ops import IndexedRows
from validation.cases.case import Case
from validation.ops import reference_op

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one call reads and writes at least."""

    read: int
    written: int

    @property
    def total(self) -> int:
        """Both."""
        return self.read + self.written


def traffic(case: Case) -> Traffic:
    """What a call of this case must move."""
    return Traffic(
        # A set: the tables of a compact modulation share one index.
        read=sum(distinct(spec.shape, spec.strides) * spec.torch_dtype.itemsize for spec in set(case.tensors.values())),
        written=sum(spec.numel * spec.torch_dtype.itemsize for spec in outputs(case.op, case.tensors)),
    )


def outputs(op: str, arguments: Mapping[str, T]) -> list[T]:
    """Of each output of an op the argument that it is like: q and k, or x once for each tensor that it returns."""
    if "q" in arguments:
        return [arguments["q"], arguments["k"]]
    returned = typing.get_type_hints(reference_op(op)).get("return")
    return [arguments["x"]] * (len(typing.get_args(returned)) or 1)


def distinct(shape: Iterable[int], strides: Iterable[int]) -> int:
    """How many elements a tensor has, those along an expanded dimension counted once."""
    return math.prod(size for size, stride in zip(shape, strides, strict=True) if stride or size == 0)


def argument_sets(case: Case, device: str, count: int) -> list[dict[str, Any]]:
    """Keyword arguments of the case, so many times, each in memory of its own; values are normal."""
    generator = torch.Generator(device).manual_seed(case.seed)
    return [_arguments(case, device, generator) for _ in range(count)]


def _arguments(case: Case, device: str, generator: torch.Generator) -> dict[str, Any]:
    extents: dict[str, tuple[int, torch.dtype]] = {}
    for spec in case.tensors.values():
        extents[spec.storage] = (max(spec.extent, extents.get(spec.storage, (0,))[0]), spec.torch_dtype)
    storages = {name: torch.empty(extent, dtype=dtype, device=device) for name, (extent, dtype) in extents.items()}
    for memory in storages.values():
        if memory.dtype.is_floating_point:
            memory.normal_(generator=generator)
    views: dict[str, Tensor] = {
        name: storages[spec.storage].as_strided(spec.shape, spec.strides, spec.offset)
        for name, spec in case.tensors.items()
    }
    arguments: dict[str, Any] = dict(case.flags)
    for name, view in views.items():
        if case.flags.get("inplace") and name.endswith("weight"):
            view.sign_()  # else all but one channel of a row vanish in a few dozen calls
        argument, _, part = name.partition(".")
        if part == "index":
            table, tokens = views[f"{argument}.table"], view.shape[1]
            # Runs of tokens, as history and current tokens are.
            view.copy_(torch.arange(tokens, device=device) * table.shape[-2] // tokens)
            arguments[argument] = IndexedRows(table, view)
        elif not part:
            arguments[name] = view
    return arguments
