"""flash-attn's Triton ops (``flash_attn/ops/triton``; written against 2.8.3.post2).

Without a CUDA toolkit its Python files alone are installed by
``FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE FLASH_ATTENTION_FORCE_BUILD=TRUE pip install --no-deps --no-build-isolation
flash-attn``, which needs torch, packaging, psutil, ninja, setuptools and wheel. Its ``__init__`` imports the CUDA
library, so the adapter loads the Triton files without it (`validation.adapters.shells.package`).

Expresses ``layer_norm``, ``rms_norm``, ``qk_norm`` and ``rotary_embedding``. A missing weight is passed as ones. The
norms round once: less often than ``casting_mode="input"`` declares, which is allowed. Angles of ``[B, S, Dr/2]`` are
passed as one table of B*S rows, in which each batch item has an offset.

Cannot express: a norm in place, heads wider than 256 channels in a rotation, rows of more than 64 KB in a norm. Its
fused norms add a residual without a gate and modulate nothing. Under Triton's interpreter, kernels that take one row
per program are not given more than 16,384 rows.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from validation.adapters import CannotExpress, one_program_each, qk_norm_of, required, shells

WIDEST_HEAD = 256
# Bytes of a row, rounded up to a power of two of its elements.
WIDEST_ROW = 65536

INSTALL = "--no-deps --no-build-isolation flash-attn, with FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE"


def _without_cuda_library() -> None:
    found = importlib.util.find_spec("flash_attn")
    if found is not None and found.origin is not None:
        shells.package(Path(found.origin).parents[1], "flash_attn", "flash_attn.ops")


with shells.as_on_gpu():
    if shells.target() is not None:
        _without_cuda_library()
    _norm = required("flash_attn.ops.triton.layer_norm", "flash-attn", INSTALL)
    _rotary = required("flash_attn.ops.triton.rotary", "flash-attn", INSTALL)


def _check_rows(x: Tensor) -> None:
    one_program_each(x.numel() // x.shape[-1])
    if x.shape[-1] * x.element_size() > WIDEST_ROW:
        raise CannotExpress("a row of more than 64 KB: flash-attn's norms raise")


def _weight(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.new_ones(x.shape[-1]) if weight is None else weight


@shells.on_gpu
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """layer_norm_fn."""
    _check_rows(x)
    y: Tensor = _norm.layer_norm_fn(x, _weight(x, weight), bias, eps=eps)
    return y


@shells.on_gpu
def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """rms_norm_fn, in either casting mode."""
    del casting_mode
    _check_rows(x)
    y: Tensor = _norm.rms_norm_fn(x, _weight(x, weight), None, eps=eps)
    return y


qk_norm = qk_norm_of(rms_norm, "flash-attn's rms_norm_fn writes to new memory")


@shells.on_gpu
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """apply_rotary."""
    B, S, _, Dh = x.shape
    if Dh > WIDEST_HEAD:
        raise CannotExpress(f"head_dim > {WIDEST_HEAD}: flash-attn's apply_rotary refuses it")
    offsets: int | Tensor = 0
    if 3 in (cos.dim(), sin.dim()):
        cos, sin = (t.expand(B, S, -1).reshape(B * S, -1) for t in (cos, sin))
        offsets = torch.arange(B, device=x.device) * S
    y: Tensor = _rotary.apply_rotary(x, cos, sin, seqlen_offsets=offsets, interleaved=interleaved, inplace=inplace)
    return y
