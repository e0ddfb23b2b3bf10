"""What every op asks of its arguments, and how it says no.

Both op packages check their arguments here, so that a bad call gets the same message from either.
Shapes: ``x`` is ``[B, L, D]`` where an op modulates, ``[B, S, H, head_dim]`` where it rotates, ``[..., D]``
elsewhere. A modulation argument (``shift``, ``scale``, ``gate``) is one of the forms of `modulation_strides`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

CASTING_MODES = ("float32", "input")
ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Steps that numpy's solver may take on whether two views share memory: 5 ms at worst (measured).
OVERLAP_WORK = 10_000


class IndexedRows(NamedTuple):
    """Modulation given as a few distinct rows and, for each token, which of them it takes.

    table: ``[n, D]`` or ``[B, n, D]``, floating point.
    index: ``[B, L]``, int32 or int64, values in ``[0, n)``.
    """

    table: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


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


def dtype_text(t: Tensor) -> str:
    """A dtype as messages print it: ``bfloat16``."""
    return str(t.dtype).removeprefix("torch.")


def require_tensor(op: str, name: str, t: Tensor) -> None:
    """Raise a TypeError unless t is a tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} is a {type(t).__name__}, expected a torch.Tensor")


def check_float(op: str, name: str, t: Tensor, float64: bool) -> None:
    """TypeError unless t is float32, float16, bfloat16, or float64 where `float64` allows it."""
    if t.dtype in ACTIVATION_DTYPES or (float64 and t.dtype is torch.float64):
        return
    allowed = "float32, float16, bfloat16" + (" or float64" if float64 else "")
    raise TypeError(f"{op}: {name} has dtype {dtype_text(t)}, expected {allowed}")


def check_activation(op: str, name: str, x: Tensor, *, rank: int | None, float64: bool) -> None:
    """Check an activation: a tensor, its dtype, its rank (None: any ``[..., D]``), and that D > 0."""
    require_tensor(op, name, x)
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
    require_tensor(op, name, t)
    if t.shape != x.shape:
        raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected {shape_text(x)}, that of {x_name}")
    if t.dtype != x.dtype:
        raise TypeError(f"{op}: {name} has dtype {dtype_text(t)}, expected {dtype_text(x)}, that of {x_name}")
    check_device(op, name, t, x, x_name)


def check_device(op: str, name: str, t: Tensor, x: Tensor, x_name: str = "x") -> None:
    """Check that t lies where x lies."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} is on {t.device}, expected {x.device}, where {x_name} is")


def check_row(op: str, name: str, t: Tensor | None, x: Tensor, *, float64: bool, x_name: str = "x") -> None:
    """Check a weight or bias: ``[D]`` on x's device, or None."""
    if t is None:
        return
    require_tensor(op, name, t)
    check_float(op, name, t, float64)
    if t.dim() != 1 or t.shape[0] != x.shape[-1]:
        raise ValueError(
            f"{op}: {name} has shape {shape_text(t)}, expected [{x.shape[-1]}], the last dimension of {x_name}"
        )
    check_device(op, name, t, x, x_name)


def check_number(op: str, name: str, value: float) -> None:
    """TypeError unless value is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected a float")


def check_eps(op: str, eps: float) -> None:
    """TypeError unless eps is a number, ValueError unless it is finite and not negative."""
    check_number(op, "eps", eps)
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"{op}: eps is {eps}, expected a finite number >= 0")


def check_casting_mode(op: str, casting_mode: str) -> None:
    """ValueError unless casting_mode is one of `CASTING_MODES`."""
    if casting_mode not in CASTING_MODES:
        raise ValueError(f"{op}: casting_mode is {casting_mode!r}, expected 'float32' or 'input'")


def check_flag(op: str, name: str, value: bool) -> None:
    """TypeError unless value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected a bool")


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


def check_norm(
    op: str,
    x: Tensor,
    rows: Mapping[str, Tensor | None],
    eps: float,
    *,
    float64: bool,
) -> None:
    """Check the arguments of a norm without modulation: ``x [..., D]``; rows: weight, bias by name."""
    check_activation(op, "x", x, rank=None, float64=float64)
    for name, row in rows.items():
        check_row(op, name, row, x, float64=float64)
    check_eps(op, eps)
    check_no_grad(op, x=x, **rows)


def check_modulated(
    op: str,
    x: Tensor,
    modulation: Mapping[str, Modulation | None],
    casting_mode: str,
    *,
    float64: bool,
    like_x: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, ModulationStrides | None]:
    """Check the arguments of an op that modulates ``x [B, L, D]``.

    modulation: shift, scale, gate by name; a gate may be None, which means 1. like_x: tensors that share
    x's shape, dtype and device, by name. Returns the strides of each modulation argument, None for a None.
    """
    check_activation(op, "x", x, rank=3, float64=float64)
    for name, t in like_x.items():
        check_same(op, name, t, x)
    strides: dict[str, ModulationStrides | None] = {}
    for name, m in modulation.items():
        if m is None and name != "gate":
            raise TypeError(f"{op}: {name} is None, expected a torch.Tensor or an IndexedRows")
        strides[name] = None if m is None else modulation_strides(op, name, m, x, float64=float64)
    check_casting_mode(op, casting_mode)
    check_no_grad(op, x=x, **like_x, **modulation)
    return strides


def check_modulated_norm(
    op: str,
    x: Tensor,
    modulation: Mapping[str, Modulation | None],
    rows: Mapping[str, Tensor | None],
    eps: float,
    casting_mode: str,
    *,
    float64: bool,
    like_x: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, ModulationStrides | None]:
    """`check_modulated`, and the norm's own arguments; rows: weight, bias by name."""
    strides = check_modulated(op, x, modulation, casting_mode, float64=float64, like_x=like_x)
    for name, row in rows.items():
        check_row(op, name, row, x, float64=float64)
    check_eps(op, eps)
    check_no_grad(op, **rows)
    return strides


def check_angles(op: str, x: Tensor, cos: Tensor, sin: Tensor, *, float64: bool, x_name: str = "x") -> None:
    """Check the ``cos`` and ``sin`` of a rotation of ``x [B, S, H, head_dim]``.

    Each is ``[S, Dr/2]`` or ``[B, S, Dr/2]``, independently, with the same 2 <= Dr <= head_dim.
    """
    B, S, _, head_dim = x.shape
    for name, t in (("cos", cos), ("sin", sin)):
        require_tensor(op, name, t)
        check_float(op, name, t, float64)
        if t.dim() not in (2, 3) or t.shape[-2] != S or (t.dim() == 3 and t.shape[0] != B):
            raise ValueError(
                f"{op}: {name} has shape {shape_text(t)}, expected [S={S}, Dr/2] or [B={B}, S={S}, Dr/2], "
                f"of {x_name} [B, S, H, head_dim]"
            )
        if not 2 <= 2 * t.shape[-1] <= head_dim:
            raise ValueError(
                f"{op}: {name} has shape {shape_text(t)}, that is Dr = {2 * t.shape[-1]} rotated channels, "
                f"expected 2 <= Dr <= head_dim = {head_dim}"
            )
        check_device(op, name, t, x, x_name)
    if sin.shape[-1] != cos.shape[-1]:
        raise ValueError(
            f"{op}: sin has shape {shape_text(sin)}, expected Dr/2 = {cos.shape[-1]} in the last dimension, that of cos"
        )


def check_qk(
    op: str,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    casting_mode: str,
    inplace: bool,
    *,
    rank: int | None,
    float64: bool,
) -> None:
    """Check what `qk_norm` and `qk_norm_rope` share."""
    check_activation(op, "q", q, rank=rank, float64=float64)
    check_activation(op, "k", k, rank=rank, float64=float64)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{op}: k has shape {shape_text(k)}, expected head_dim = {q.shape[-1]} in the last dimension, that of q"
        )
    check_device(op, "k", k, q, "q")
    check_row(op, "q_weight", q_weight, q, float64=float64, x_name="q")
    check_row(op, "k_weight", k_weight, k, float64=float64, x_name="k")
    check_eps(op, eps)
    check_casting_mode(op, casting_mode)
    check_flag(op, "inplace", inplace)
    check_no_grad(op, q=q, k=k, q_weight=q_weight, k_weight=k_weight)


def check_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inplace: bool, *, float64: bool) -> None:
    """Check the arguments of `rotary_embedding`."""
    op = "rotary_embedding"
    check_activation(op, "x", x, rank=4, float64=float64)
    check_angles(op, x, cos, sin, float64=float64)
    check_flag(op, "interleaved", interleaved)
    check_flag(op, "inplace", inplace)
    check_no_grad(op, x=x, cos=cos, sin=sin)
    if inplace:
        check_inplace(op, {"x": x}, {"cos": cos, "sin": sin})


def check_split_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, float64: bool) -> None:
    """Check the arguments of `split_rotary_embedding`."""
    op = "split_rotary_embedding"
    for name, t in (("x", x), ("cos", cos), ("sin", sin)):
        require_tensor(op, name, t)
        check_float(op, name, t, float64)
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {shape_text(x)}, expected [B, S, H*Dh]")
    B, S, width = x.shape
    for name, t in (("cos", cos), ("sin", sin)):
        if t.dim() != 4 or t.shape[0] != B or t.shape[2] != S:
            raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected [B={B}, H, S={S}, Dh/2]")
        if t.shape[3] == 0:
            raise ValueError(f"{op}: {name} has shape {shape_text(t)}, expected Dh/2 >= 1 in the last dimension")
        check_device(op, name, t, x)
    if width != 2 * cos.shape[1] * cos.shape[3]:
        raise ValueError(
            f"{op}: x has shape {shape_text(x)}, expected H*Dh = {2 * cos.shape[1] * cos.shape[3]} in the last "
            f"dimension, of cos {shape_text(cos)}"
        )
    if sin.shape != cos.shape:
        raise ValueError(f"{op}: sin has shape {shape_text(sin)}, expected {shape_text(cos)}, that of cos")
    check_no_grad(op, x=x, cos=cos, sin=sin)


def check_qk_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    interleaved: bool,
    casting_mode: str,
    inplace: bool,
    *,
    float64: bool,
) -> None:
    """Check the arguments of `qk_norm_rope`."""
    op = "qk_norm_rope"
    check_qk(op, q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=4, float64=float64)
    check_angles(op, q, cos, sin, float64=float64, x_name="q")
    check_angles(op, k, cos, sin, float64=float64, x_name="k")
    check_flag(op, "interleaved", interleaved)
    check_no_grad(op, cos=cos, sin=sin)
    if inplace:
        inputs = {"q_weight": q_weight, "k_weight": k_weight, "cos": cos, "sin": sin}
        check_inplace(op, {"q": q, "k": k}, inputs)


def check_inplace(op: str, targets: Mapping[str, Tensor], inputs: Mapping[str, Tensor | None]) -> None:
    """Check that the tensors of an in-place call may be written: no element twice, none that is read.

    Refused with a ValueError are a target that holds an element twice (see `overlaps_itself`), and a
    target that shares memory with another target or an input (see `may_overlap`). While torch.compile
    traces, tensors have no addresses and nothing is refused.
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

    Sufficient and, but for strides that no slicing of a dense tensor gives, necessary for t to hold each
    element once.
    """
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n > 1):
        if stride <= reach:
            return t.numel() > 0
        reach += stride * (size - 1)
    return False


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """True if a and b share a byte of memory; exact, whatever their strides.

    q and k in a packed QKV buffer share none, nor do ``x[..., ::2]`` and ``x[..., 1::2]``. Also True where
    the strides are so tangled that `OVERLAP_WORK` steps do not decide; a packed buffer takes a handful.
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
    """An array of t's addresses, to be computed with and never read: it may be the GPU's memory."""
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
