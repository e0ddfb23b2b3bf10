"""Checks of one argument: class, dtype, rank, shape, device, value."""

import torch
from torch import Tensor

CASTING_MODES = ("float32", "input")
ACTIVATION_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    """Raise a TypeError unless t is float32, float16, bfloat16, or float64 if `float64` allows it."""
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
    """Check that t is on x's device."""
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
    """Raise a TypeError unless value is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected a float")


def check_eps(op: str, eps: float) -> None:
    """Raise a TypeError unless eps is a number, a ValueError unless it is finite and not negative."""
    check_number(op, "eps", eps)
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"{op}: eps is {eps}, expected a finite number >= 0")


def check_casting_mode(op: str, casting_mode: str) -> None:
    """Raise a ValueError unless casting_mode is one of `CASTING_MODES`."""
    if casting_mode not in CASTING_MODES:
        raise ValueError(f"{op}: casting_mode is {casting_mode!r}, expected 'float32' or 'input'")


def check_flag(op: str, name: str, value: bool) -> None:
    """Raise a TypeError unless value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected a bool")


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of ``casting_mode="float32"`` arithmetic: float32, or float64 if x is float64 (the truth)."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32
