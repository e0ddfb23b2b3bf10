"""What every op asks of its arguments, and how it says no.

Both op packages check their arguments here, so that a bad call gets the same message from either.
Shapes: ``x`` is ``[B, L, D]`` where an op modulates, ``[..., D]`` elsewhere. A modulation argument
(``shift``, ``scale``, ``gate``) is one of the forms of `modulation_strides`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CASTING_MODES = ("float32", "input")
ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class IndexedRows(NamedTuple):
    """Modulation given as a few distinct rows and, for each token, which of them it takes.

    table: ``[n, D]`` or ``[B, n, D]``, floating point.
    index: ``[B, L]``, int32 or int64, values in ``[0, n)``.
    """

    table: Tensor
    index: Tensor


class SupportsIndexedRows(Protocol):
    """Anything with the two attributes of `IndexedRows`; ops ask for no class."""

    @property
    def table(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...


Modulation = Tensor | SupportsIndexedRows


class ModulationStrides(NamedTuple):
    """Where the row of token l of batch item b lies in a modulation tensor.

    Element d of it is at ``b * batch + (l // tokens_per_row) * token + d * column``, in elements from
    the tensor's first; for `IndexedRows`, ``l // tokens_per_row`` is replaced by ``index[b, l]``.
    """

    batch: int
    token: int
    column: int
    tokens_per_row: int


def shape_text(t: Tensor) -> str:
    """A shape as messages print it: ``[3, 769, 5120]``."""
    return "[" + ", ".join(str(n) for n in t.shape) + "]"


def require_tensors(op: str, **tensors: Tensor | None) -> None:
    """Raise a TypeError naming the first argument that is not a tensor (None is let through)."""
    for name, t in tensors.items():
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} is a {type(t).__name__}, expected a torch.Tensor")


def check_float(op: str, name: str, t: Tensor, float64: bool) -> None:
    """TypeError unless t is float32, float16, bfloat16, or float64 where `float64` allows it."""
    if t.dtype in ACTIVATION_DTYPES or (float64 and t.dtype is torch.float64):
        return
    allowed = "float32, float16, bfloat16" + (" or float64" if float64 else "")
    raise TypeError(f"{op}: {name} has dtype {str(t.dtype)[6:]}, expected {allowed}")


def check_activation(op: str, name: str, x: Tensor, *, rank: int | None, float64: bool) -> None:
    """Check an activation: dtype, rank (``[B, L, D]`` for rank 3, any ``[..., D]`` for None), D > 0."""
    check_float(op, name, x, float64)
    if rank is None:
        if x.dim() < 1:
            raise ValueError(f"{op}: {name} has shape [], expected [..., D]")
    elif x.dim() != rank:
        expected = {3: "[B, L, D]", 4: "[B, S, H, head_dim]"}[rank]
        raise ValueError(f"{op}: {name} has shape {shape_text(x)}, expected {expected}")
    if x.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has shape {shape_text(x)}, expected D >= 1 in the last dimension")


def check_same(op: str, name: str, t: Tensor, x: Tensor, x_name: str = "x") -> None:
    """Check that t has the shape, the dtype and the device of x."""
    if t.shape != x.shape:
        raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected {shape_text(x)}, that of {x_name}")
    if t.dtype != x.dtype:
        raise TypeError(f"{op}: {name} has dtype {str(t.dtype)[6:]}, expected {str(x.dtype)[6:]}, that of {x_name}")
    check_device(op, name, t, x, x_name)


def check_device(op: str, name: str, t: Tensor, x: Tensor, x_name: str = "x") -> None:
    """Check that t lies where x lies."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device}, expected {x.device}, where {x_name} is")


def check_row(op: str, name: str, t: Tensor | None, x: Tensor, *, float64: bool, x_name: str = "x") -> None:
    """Check a weight or bias: ``[D]`` on x's device, or None."""
    if t is None:
        return
    check_float(op, name, t, float64)
    if t.dim() != 1 or t.shape[0] != x.shape[-1]:
        raise ValueError(
            f"{op}: {name} has shape {shape_text(t)}, expected [{x.shape[-1]}], the last dimension of {x_name}"
        )
    check_device(op, name, t, x, x_name)


def check_eps(op: str, eps: float) -> None:
    """TypeError unless eps is a number, ValueError unless it is finite and not negative."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: eps is a {type(eps).__name__}, expected a float")
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"{op}: eps is {eps}, expected a finite number >= 0")


def check_casting_mode(op: str, casting_mode: str) -> None:
    """ValueError unless casting_mode is one of `CASTING_MODES`."""
    if casting_mode not in CASTING_MODES:
        raise ValueError(f"{op}: casting_mode is {casting_mode!r}, expected 'float32' or 'input'")


def check_no_grad(op: str, **arguments: Modulation | None) -> None:
    """NotImplementedError if grad mode is on and an argument requires grad: these are inference ops."""
    if not torch.is_grad_enabled():
        return
    for name, t in arguments.items():
        if t is not None and not isinstance(t, Tensor):
            t = t.table
        if t is not None and t.requires_grad:
            raise NotImplementedError(
                f"{op}: {name} requires grad, expected no grad: this is an inference op "
                "(call it under torch.no_grad() or detach the argument)"
            )


def modulation_strides(op: str, name: str, m: Modulation, x: Tensor, *, float64: bool) -> ModulationStrides:
    """Check a modulation argument against ``x [B, L, D]`` and say where its rows lie.

    Forms: a 0-d or ``[1]`` tensor; ``[D]``; ``[B, D]`` (one row a batch item, also when B == L);
    ``[1|B, 1, D]``; ``[1|B, L, D]``; ``[B, F, 1, D]`` with L % F == 0 (one row for each frame of
    L // F tokens); `IndexedRows`.

    Raises TypeError for a dtype or a class that is none of these, ValueError for a shape, a device or
    (on the CPU, where looking costs no synchronisation) an index out of range.
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


def _indexed_strides(
    op: str, name: str, m: SupportsIndexedRows, x: Tensor, *, float64: bool
) -> ModulationStrides:
    B, L, D = x.shape
    if not (hasattr(m, "table") and hasattr(m, "index")):
        raise TypeError(f"{op}: {name} is a {type(m).__name__}, expected a torch.Tensor or an IndexedRows")
    table, index = m.table, m.index
    require_tensors(op, **{f"{name}.table": table, f"{name}.index": index})
    check_float(op, f"{name}.table", table, float64)
    check_device(op, f"{name}.table", table, x)
    check_device(op, f"{name}.index", index, x)
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name}.index has dtype {str(index.dtype)[6:]}, expected int32 or int64")
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
    """A checked modulation as a tensor that broadcasts against ``x [B, L, D]`` row for row.

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


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of ``casting_mode="float32"`` arithmetic: float32, or float64 where the truth is computed."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def check_modulated_norm(
    op: str,
    x: Tensor,
    modulation: Mapping[str, Modulation | None],
    rows: Mapping[str, Tensor | None],
    eps: float,
    casting_mode: str,
    *,
    float64: bool,
) -> dict[str, ModulationStrides | None]:
    """Check the arguments of a modulated norm at once.

    modulation: shift, scale (and gate, where None means 1) by name; rows: weight, bias by name.
    Returns the strides of each modulation argument, None for a None.
    """
    require_tensors(op, x=x, **rows)
    check_activation(op, "x", x, rank=3, float64=float64)
    strides = {
        name: None if m is None and name == "gate" else modulation_strides(op, name, m, x, float64=float64)
        for name, m in modulation.items()
    }
    for name, row in rows.items():
        check_row(op, name, row, x, float64=float64)
    check_eps(op, eps)
    check_casting_mode(op, casting_mode)
    check_no_grad(op, x=x, **modulation, **rows)
    return strides
