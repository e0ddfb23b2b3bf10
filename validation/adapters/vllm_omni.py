"""vllm-omni's Triton kernels for diffusion (``diffusion/layers``; written against the wheel 0.30.0).

``pip install --no-deps vllm-omni`` installs it without its dependencies. It is built on vLLM; where that is missing,
and no GPU is there, stand-ins take the place of the parts of vLLM that the kernels' files import: the platform, Triton,
and the registration of operators. The wrappers are vllm-omni's own, down to the operator that they register.

Expresses, by the public function of the file:

* ``indexed_modulation``: ``scale_shift`` (``indexed_scale_shift_``), ``residual_gate_add`` (``indexed_gate``),
  ``rms_norm_scale_shift`` and ``scale_residual_rms_norm_scale_shift``. Rows of modulation are passed as a table and an
  index: its own, where all share one, else a row a batch item, else a row a token. A missing weight is passed as ones.
* ``qwen_select01_modulation``: ``layer_norm_scale_shift`` and ``scale_residual_layer_norm_scale_shift`` of tables of
  two rows, or one row a batch item. A gate is spread over all tokens.
* ``fused_qk_norm_rope``: ``qk_norm_rope``; cos and sin are passed as one float32 table.

What must have one dtype (scale and shift of a select01 kernel, the weights of q and k) is passed in the wider one.

The norms round once where ``casting_mode="input"`` declares more roundings, which is allowed. Cannot express: q and k
in place; no gate; ``scale_constant`` other than 1; a residual that is not bfloat16 before an RMSNorm (the kernel rounds
it to bfloat16); q and k that are not bfloat16; halves of a head as pairs, but for head_dim 128 with 96 rotated
channels; ``casting_mode="float32"`` of ``qk_norm_rope``, whose kernel rounds the normalised value. Under Triton's
interpreter, kernels that take one row per program are not given more than 16,384 rows.
"""

import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_ops.contract import expand_modulation
from validation.adapters import CannotExpress, one_program_each, required, shells

ROOT = "vllm_omni"
# The heads whose halves the kernel pairs (MiniMax-H3): head_dim and how many channels turn.
HALVES = (128, 96)
WIDEST_HEAD = 256
# Bytes of a row of a select01 kernel, rounded up to a power of two of its elements.
WIDEST_ROW = 65536


def _register(op_name: str, op_func: Any, mutates_args: Any = (), target_lib: Any = None, **_: Any) -> None:
    """Register an operator for CUDA, as vLLM does; meta functions are for a compiler."""
    target_lib.define(op_name + torch.library.infer_schema(op_func, mutates_args=mutates_args))
    target_lib.impl(op_name, op_func, "CUDA")


def _without_vllm() -> None:
    found = importlib.util.find_spec(ROOT)
    if found is None or found.origin is None:
        return
    shells.package(Path(found.origin).parents[1], ROOT, f"{ROOT}.diffusion", f"{ROOT}.diffusion.layers")
    platform = SimpleNamespace(is_cuda=lambda: True, is_npu=lambda: False)
    shells.stub("vllm")
    shells.stub("vllm.platforms", current_platform=platform)
    shells.stub("vllm.triton_utils", HAS_TRITON=True, tl=tl, triton=triton)
    shells.stub("vllm.utils")
    shells.stub("vllm.utils.torch_utils", direct_register_custom_op=_register)
    shells.stub(f"{ROOT}.platforms", current_omni_platform=platform)
    shells.stub(f"{ROOT}.diffusion.envs")


with shells.as_on_gpu():
    if shells.target() is not None and importlib.util.find_spec("vllm") is None:
        _without_vllm()
    _indexed, _select01, _qk = (
        required(f"{ROOT}.diffusion.layers.{name}", "vllm-omni", "--no-deps vllm-omni")
        for name in ("indexed_modulation", "qwen_select01_modulation", "fused_qk_norm_rope")
    )


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise CannotExpress(what)


def _row_of_each_item(m: Any) -> bool:
    return isinstance(m, Tensor) and (m.dim() < 3 or (m.dim() == 3 and m.shape[1] == 1))


def _same_index(modulation: tuple[Any, ...]) -> bool:
    indexed = [not isinstance(m, Tensor) for m in modulation]
    return all(indexed) and all(torch.equal(m.index, modulation[0].index) for m in modulation)


def _tables(x: Tensor, *modulation: Any) -> tuple[list[Tensor], Tensor]:
    """Each modulation as rows ``[N, D]``, and the row of each token, ``[B*L]``."""
    B, L, D = x.shape
    one_program_each(B * L)
    items = torch.arange(B, device=x.device)
    if all(_row_of_each_item(m) for m in modulation):
        rows = [expand_modulation(m, x).expand(B, 1, D).reshape(B, D) for m in modulation]
        return [_last_dense(row) for row in rows], items.repeat_interleave(L)
    if _same_index(modulation) and len({m.table.shape for m in modulation}) == 1:
        table, index = modulation[0].table, modulation[0].index
        index = (index + items[:, None] * table.shape[-2] if table.dim() == 3 else index).reshape(-1)
        return [_last_dense(m.table.reshape(-1, D)) for m in modulation], index
    rows = [expand_modulation(m, x).expand(B, L, D).reshape(B * L, D) for m in modulation]
    return [_last_dense(row) for row in rows], torch.arange(B * L, device=x.device)


def _last_dense(t: Tensor) -> Tensor:
    """The kernels take the distance between rows, and none between columns."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _flat(x: Tensor) -> Tensor:
    return _last_dense(x.reshape(-1, x.shape[-1]))


def _ones(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.new_ones(x.shape[-1]) if weight is None else weight.contiguous()


@shells.on_gpu
def scale_shift(
    x: Tensor, shift: Any, scale: Any, scale_constant: float = 1.0, *, casting_mode: str = "float32"
) -> Tensor:
    """indexed_scale_shift_, of a copy of x."""
    del casting_mode
    _need(scale_constant == 1.0, "scale_constant: indexed_scale_shift_ adds 1 to the scale")
    (shift, scale), index = _tables(x, shift, scale)
    copy = x.clone(memory_format=torch.contiguous_format)
    y: Tensor = _indexed.indexed_scale_shift_(copy.view(-1, x.shape[-1]), shift, scale, index)
    return y.view(x.shape)


@shells.on_gpu
def residual_gate_add(residual: Tensor, x: Tensor, gate: Any, *, casting_mode: str = "float32") -> Tensor:
    """indexed_gate."""
    del casting_mode
    _need(gate is not None, "no gate: indexed_gate takes one")
    (gate,), index = _tables(x, gate)
    y: Tensor = _indexed.indexed_gate(_flat(residual), gate, _flat(x), index)
    return y.view(x.shape)


@shells.on_gpu
def rms_norm_scale_shift(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """rms_norm_indexed_scale_shift."""
    del casting_mode
    (shift, scale), index = _tables(x, shift, scale)
    y: Tensor = _indexed.rms_norm_indexed_scale_shift(_flat(x), _ones(x, weight), shift, scale, index, eps)
    return y.view(x.shape)


@shells.on_gpu
def scale_residual_rms_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Any,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """indexed_gate_rms_norm_scale_shift."""
    del casting_mode
    _need(x.dtype is torch.bfloat16, "not bfloat16: indexed_gate_rms_norm_scale_shift rounds the residual to it")
    _need(gate is not None, "no gate: indexed_gate_rms_norm_scale_shift takes one")
    (gate, shift, scale), index = _tables(x, gate, shift, scale)
    residual_out, y = _indexed.indexed_gate_rms_norm_scale_shift(
        _flat(residual), gate, _flat(x), _ones(x, weight), shift, scale, index, eps
    )
    return y.view(x.shape), residual_out.view(x.shape)


def _parameters(x: Tensor, *modulation: Any) -> tuple[Tensor, Tensor]:
    """Shift, scale and a gate of zeros, ``[2*B, 3*D]``, and which of a batch item's two rows a token takes, ``[B, L]``.

    Without indices all tokens take the first row, and the second holds NaN.
    """
    B, L, D = x.shape
    one_program_each(B * L)
    _need(D * x.element_size() <= WIDEST_ROW, "a row of more than 64 KB: the select01 kernels raise")
    indexed = [m for m in modulation if not isinstance(m, Tensor)]
    _need(not indexed or _same_index(tuple(indexed)), "rows by several indices: the select01 kernels take one")
    _need(all(m.table.shape[-2] == 2 for m in indexed), "a table that has not two rows: the select01 kernels take two")
    dtypes = [m.dtype if isinstance(m, Tensor) else m.table.dtype for m in modulation]
    # One tensor holds all of it: that of the wider dtype, which has the values of both.
    dtype = functools.reduce(torch.promote_types, dtypes)
    # Filled: `torch.cat` of float16 raises under autocast on the CPU.
    parameters = torch.zeros(2, B, 3, D, dtype=dtype, device=x.device)
    for n, m in enumerate(modulation):
        if isinstance(m, Tensor):
            _need(_row_of_each_item(m), "more than one row a batch item, without an index")
            row = expand_modulation(m, x).expand(B, 1, D).reshape(B, D)
            parameters[0, :, n] = row
            parameters[1, :, n] = row if indexed else torch.nan
        else:
            parameters[:, :, n] = m.table.expand(B, 2, D).transpose(0, 1)
    index = indexed[0].index if indexed else torch.zeros(B, L, dtype=torch.int64, device=x.device)
    return parameters.view(2 * B, 3 * D), index


@shells.on_gpu
def layer_norm_scale_shift(
    x: Tensor,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    """fused_layernorm_select01."""
    del casting_mode
    parameters, index = _parameters(x, shift, scale)
    _need(len(x) > 0, "no batch item: fused_layernorm_select01 refuses it")
    y: Tensor = _select01.fused_layernorm_select01(x.contiguous(), parameters, index, eps, weight, bias)[0]
    return y


@shells.on_gpu
def scale_residual_layer_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Any,
    shift: Any,
    scale: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> tuple[Tensor, Tensor]:
    """fused_residual_layernorm_select01."""
    del casting_mode
    parameters, index = _parameters(x, shift, scale)
    _need(len(x) > 0, "no batch item: fused_residual_layernorm_select01 refuses it")
    gates = torch.ones((), dtype=x.dtype, device=x.device) if gate is None else expand_modulation(gate, x)
    y, residual_out, _ = _select01.fused_residual_layernorm_select01(
        x.contiguous(), residual.contiguous(), gates.expand(x.shape).contiguous(), parameters, index, eps, weight, bias
    )
    return y, residual_out


@shells.on_gpu
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float = 1e-6,
    *,
    interleaved: bool = True,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """fused_qk_norm_rope."""
    B, S, _, Dh = q.shape
    _need(not inplace, "inplace=True: fused_qk_norm_rope writes to new memory")
    _need(q.dtype is k.dtype is torch.bfloat16, "not bfloat16: fused_qk_norm_rope takes its eager path")
    _need(casting_mode == "input", 'casting_mode="float32": the kernel rounds the normalised value')
    _need(interleaved or (Dh, 2 * cos.shape[-1]) == HALVES, "halves of other heads: it takes its eager path")
    _need(Dh <= WIDEST_HEAD, f"head_dim > {WIDEST_HEAD}: it takes its eager path")
    _need(k.shape[:2] == q.shape[:2], "q and k of other tokens")
    one_program_each(B * S)
    table = torch.empty(B * S, 2, cos.shape[-1], dtype=torch.float32, device=q.device)
    for n, angles in enumerate((cos, sin)):
        table.view(B, S, 2, -1)[:, :, n] = angles
    weights = [_ones(q, q_weight), _ones(k, k_weight)]
    # Of two dtypes the kernel does not compile.
    weights = [weight.to(torch.promote_types(weights[0].dtype, weights[1].dtype)) for weight in weights]
    flat = q.flatten(0, 1), k.flatten(0, 1)
    out = _qk.fused_qk_norm_rope(*flat, *weights, table.flatten(1), eps, interleaved=interleaved)
    return out[0].view(q.shape), out[1].view(k.shape)
