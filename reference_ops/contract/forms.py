"""The forms of a modulation argument, and the place of its rows in memory."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from reference_ops.contract.arguments import check_device, check_float, dtype_text, require_tensor, shape_text


class IndexedRows(NamedTuple):
    """Modulation given as a few distinct rows and, for each token, the index of its row.

    table: ``[n, D]`` or ``[B, n, D]``, floating point.
    index: ``[B, L]``, int32 or int64, values in ``[0, n)``.
    """

    table: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class SupportsIndexedRows(Protocol):
    """Anything with the two attributes of `IndexedRows`; ops require no class."""

    @property
    def table(self) -> Tensor:
        """Floating point, ``[n, D]`` or ``[B, n, D]``."""

    @property
    def index(self) -> Tensor:
        """Integers, ``[B, L]``."""


Modulation = Tensor | SupportsIndexedRows


class ModulationStrides(NamedTuple):
    """The place of each token's row in a modulation tensor.

    Element d of the row of token l of batch item b is at ``b * batch + (l // tokens_per_row) * token +
    d * column``, in elements from the tensor's first; for `IndexedRows`, ``index[b, l]`` replaces
    ``l // tokens_per_row``.
    """

    batch: int
    token: int
    column: int
    tokens_per_row: int


def modulation_strides(op: str, name: str, m: Modulation, x: Tensor, *, float64: bool) -> ModulationStrides:
    """Check a modulation argument against ``x [B, L, D]`` and return the strides of its rows.

    Forms: a 0-d or ``[1]`` tensor; ``[D]``; ``[B, D]`` (one row a batch item, also when B == L);
    ``[1|B, 1, D]``; ``[1|B, L, D]``; ``[B, F, 1, D]`` with L % F == 0 (one row for each frame of
    L // F tokens); `IndexedRows`.

    Raises TypeError for another dtype or class, ValueError for another shape or device or (on the CPU,
    where looking costs no synchronisation) an index out of range.
    """
    B, L, D = x.shape
    if not isinstance(m, Tensor):
        return _indexed_strides(op, name, m, x, float64=float64)
    check_float(op, name, m, float64)
    check_device(op, name, m, x)
    shape, stride = m.shape, m.stride()
    match m.dim():
        case 0:
            return ModulationStrides(0, 0, 0, 1)
        case 1 if shape[0] == D:
            return ModulationStrides(0, 0, stride[0], 1)
        case 1 if shape[0] == 1:
            return ModulationStrides(0, 0, 0, 1)
        case 2 if shape == (B, D):
            return ModulationStrides(stride[0], 0, stride[1], 1)
        case 3 if shape[0] in (1, B) and shape[1] in (1, L) and shape[2] == D:
            return ModulationStrides(stride[0] if shape[0] == B else 0, stride[1] if shape[1] == L else 0, stride[2], 1)
        case 4 if shape[0] == B and shape[2] == 1 and shape[3] == D and shape[1] > 0:
            if L % shape[1]:
                raise ValueError(
                    f"{op}: {name} has shape {shape_text(m)}, that is F = {shape[1]} frames, "
                    f"expected an F that divides L = {L}"
                )
            return ModulationStrides(stride[0], stride[1], stride[3], max(L // shape[1], 1))
    raise ValueError(
        f"{op}: {name} has shape {shape_text(m)}, expected [], [1], [D], [B, D], [1|B, 1, D], [1|B, L, D] "
        f"or [B, F, 1, D] for x [B={B}, L={L}, D={D}]"
    )


def _indexed_strides(op: str, name: str, m: SupportsIndexedRows, x: Tensor, *, float64: bool) -> ModulationStrides:
    B, L, D = x.shape
    if not (hasattr(m, "table") and hasattr(m, "index")):
        raise TypeError(f"{op}: {name} is a {type(m).__name__}, expected a torch.Tensor or an IndexedRows")
    table, index = m.table, m.index
    require_tensor(op, f"{name}.table", table)
    require_tensor(op, f"{name}.index", index)
    check_float(op, f"{name}.table", table, float64)
    check_device(op, f"{name}.table", table, x)
    check_device(op, f"{name}.index", index, x)
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name}.index has dtype {dtype_text(index)}, expected int32 or int64")
    if index.shape != (B, L):
        raise ValueError(f"{op}: {name}.index has shape {shape_text(index)}, expected [B={B}, L={L}]")
    batched = table.dim() == 3
    if table.dim() not in (2, 3) or table.shape[-1] != D or (batched and table.shape[0] != B):
        raise ValueError(
            f"{op}: {name}.table has shape {shape_text(table)}, expected [n, D] or [B, n, D] with B={B}, D={D}"
        )
    rows = table.shape[-2]
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.numel():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= rows:
            raise ValueError(f"{op}: {name}.index has values from {low} to {high}, expected [0, {rows})")
    stride = table.stride()
    return ModulationStrides(stride[0] if batched else 0, stride[-2], stride[-1], 1)


def expand_modulation(m: Modulation, x: Tensor) -> Tensor:
    """Expand a checked modulation to a tensor that broadcasts against ``x [B, L, D]`` row for row.

    0-d tensors stay 0-d: PyTorch's type promotion treats them as scalars, and so do the eager chains.
    """
    B, L, D = x.shape
    if not isinstance(m, Tensor):
        index = m.index.long()
        if m.table.dim() == 2:
            return m.table[index]
        return m.table.gather(1, index.unsqueeze(-1).expand(B, L, D))
    if m.dim() == 2:
        return m.unsqueeze(1)
    if m.dim() == 4:
        frames = m.shape[1]
        return m.expand(B, frames, L // frames, D).reshape(B, L, D)
    return m
