"""FlagGems' forward kernels (``pip install --no-deps flag_gems sqlalchemy``; written against 5.0.2).

It is installed without its dependencies, since numpy 1.26 is one of them; on a GPU it imports sqlalchemy.

Expresses ``layer_norm``, ``rms_norm``, ``qk_norm`` and ``rotary_embedding``. A missing RMSNorm weight is passed
as ones. FlagGems rounds once: less often than ``casting_mode="input"`` declares, which is allowed. Angles of
``[B, S, Dr/2]`` are passed as B*S separate positions.

Cannot express: a norm in place, a rotation of part of a head. Its fused norms add the residual without a gate
and modulate nothing.

FlagGems imports only on a machine with a GPU, or where one is believed in (`validation.adapters.shells`): where PTX is
executed on the CPU its own launcher (``libentry``), its tuned configurations and its device guard are used. The
launcher keeps the kernel of a call, with its configuration; it forgets them at each case, which has a configuration of
its own (`validation.compiled.ptx.executing.How`). Its database of timings is kept in memory: nothing is timed there.

Under Triton's interpreter, whose kernels that launcher does not take, the adapter loads the kernels' own files without
it: the kernels are FlagGems', their launch is not. Kernels that take one row per program are not given more than 16,384
rows there.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.adapters import CannotExpress, interpreted, one_program_each, qk_norm_of, required, shells
from validation.compiled.ptx import executing
from validation.errors import UsageError

INSTALL = "--no-deps flag_gems sqlalchemy"


@triton.jit  # type: ignore[untyped-decorator]
def _program_id(axis: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.program_id(axis).to(tl.int64)


def _tuned(name: str) -> list[triton.Config]:
    """One configuration for each kernel: FlagGems' smallest block of columns if it tunes that."""
    return [triton.Config({"TILE_N": 1024} if name.endswith("_loop") else {})]


def _without_launcher() -> None:
    """Make the packages and modules around the kernels' files, so that these import under the interpreter."""
    spec = importlib.util.find_spec("flag_gems")
    if spec is None or spec.origin is None:
        raise UsageError(f"--ops: needs flag_gems: pip install {INSTALL}")
    root = Path(spec.origin).parents[1]
    shells.package(root, "flag_gems", "flag_gems.ops", "flag_gems.fused", "flag_gems.utils")
    guard = SimpleNamespace(device=torch.cuda.device)
    shells.stub("flag_gems.runtime", torch_device_fn=guard, get_tuned_config=_tuned)
    shells.stub("flag_gems.utils.triton_lang_extension", program_id=_program_id)
    vars(sys.modules["flag_gems.utils"]).update(libentry=shells.undecorated)


def _whole() -> None:
    """Import all of FlagGems, which asks its surroundings which GPU there is."""
    if executing.target() is not None:
        # Else it asks nvidia-smi, and keeps timings in the user's home.
        os.environ.setdefault("GEMS_VENDOR", "nvidia")
        os.environ.setdefault("FLAGGEMS_DB_URL", "sqlite://")
    required("flag_gems", "flag_gems", INSTALL)


with shells.as_on_gpu():
    _without_launcher() if interpreted() else _whole()
_layernorm = required("flag_gems.ops.layernorm", "flag_gems", INSTALL)
_rms_norm = required("flag_gems.ops.rms_norm", "flag_gems", INSTALL)
_rotary = required("flag_gems.fused.rotary_embedding", "flag_gems", INSTALL)


_turn: int | None = None


def _forget_kernels() -> None:
    """Empty the launchers' caches where the configuration of tuned kernels is another one than at the last call."""
    global _turn
    if executing.target() is None or executing.current().turn == _turn:
        return
    _turn = executing.current().turn
    for module in (_layernorm, _rms_norm, _rotary):
        for launcher in vars(module).values():
            for kernels in getattr(launcher, "kernel_cache", ()):
                kernels.clear()


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """flag_gems.layer_norm."""
    _forget_kernels()
    y: Tensor = _layernorm.layer_norm(x, x.shape[-1:], weight, bias, eps)[0]
    return y


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    """flag_gems.rms_norm, in either casting mode."""
    del casting_mode
    _forget_kernels()
    one_program_each(x.numel() // x.shape[-1])
    y: Tensor = _rms_norm.rms_norm(x, x.shape[-1:], x.new_ones(x.shape[-1]) if weight is None else weight, eps)
    return y


qk_norm = qk_norm_of(rms_norm, "flag_gems.rms_norm writes to new memory")


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = True, inplace: bool = False) -> Tensor:
    """flag_gems.apply_rotary_pos_emb, with x as q and a k of one head."""
    _forget_kernels()
    B, S, _, Dh = x.shape
    if 2 * cos.shape[-1] != Dh:
        raise CannotExpress("Dr < head_dim: flag_gems.apply_rotary_pos_emb rotates whole heads")
    one_program_each(B * S)
    if inplace and not x.is_contiguous():
        raise CannotExpress("inplace=True: flag_gems.apply_rotary_pos_emb takes tensors that can be viewed as rows")
    positions: Any = None
    if 3 in (cos.dim(), sin.dim()):
        cos, sin = (t.expand(B, S, -1).reshape(B * S, -1) for t in (cos, sin))
        positions = torch.arange(B * S, device=x.device).view(B, S)
    q = x if inplace else x.contiguous()
    k = x.new_zeros(B, S, 1, Dh)
    y: Tensor = _rotary.apply_rotary_pos_emb(q, k, cos.contiguous(), sin.contiguous(), positions, interleaved, inplace)[
        0
    ]
    return x if inplace else y
