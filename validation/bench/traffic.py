"""The bytes that an op must move, and enough copies of its arguments that none of them stays in the cache.

The model: each distinct element of each input is read once, each output element is written once. An expanded
dimension (stride 0) holds one distinct element, an `IndexedRows` its table and its index. Gaps between the elements
of a strided tensor are not counted, though memory moves in sectors of 32 bytes: if every second float32 of a table is
needed, the GPU reads twice what is counted here.
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
    """The least bytes that one call reads and writes."""

    read: int
    written: int

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def traffic(case: Case) -> Traffic:
    """The bytes that a call of this case must move."""
    return Traffic(
        # A set, because the tables of a compact modulation share one index.
        read=sum(distinct(spec.shape, spec.strides) * spec.torch_dtype.itemsize for spec in set(case.tensors.values())),
        written=sum(spec.numel * spec.torch_dtype.itemsize for spec in outputs(case.op, case.tensors)),
    )


def outputs(op: str, arguments: Mapping[str, T]) -> list[T]:
    """For each output of an op, the argument of the same form: q and k, or x once for each tensor that it returns."""
    if "q" in arguments:
        return [arguments["q"], arguments["k"]]
    returned = typing.get_type_hints(reference_op(op)).get("return")
    return [arguments["x"]] * (len(typing.get_args(returned)) or 1)


def distinct(shape: Iterable[int], strides: Iterable[int]) -> int:
    """The number of elements of a tensor, those along an expanded dimension counted once."""
    return math.prod(size for size, stride in zip(shape, strides, strict=True) if stride or size == 0)


def argument_sets(case: Case, device: str, count: int) -> list[dict[str, Any]]:
    """``count`` sets of the case's keyword arguments, each in its own memory; values are normally distributed."""
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
            view.sign_()  # otherwise all but one channel of a row vanish within a few dozen calls
        argument, _, part = name.partition(".")
        if part == "index":
            table, tokens = views[f"{argument}.table"], view.shape[1]
            # Runs of tokens share a row, as history and current tokens do.
            view.copy_(torch.arange(tokens, device=device) * table.shape[-2] // tokens)
            arguments[argument] = IndexedRows(table, view)
        elif not part:
            arguments[name] = view
    return arguments
