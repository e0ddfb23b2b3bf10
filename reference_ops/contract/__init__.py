"""The requirements on every op's arguments, and the errors for a bad call.

Both op packages check their arguments here, so that a bad call gets the same message from either.
Shapes: ``x`` is ``[B, L, D]`` if an op modulates, ``[B, S, H, head_dim]`` if it rotates, else ``[..., D]``.
A modulation argument (``shift``, ``scale``, ``gate``) is one of the forms of `forms.modulation_strides`.
"""

from reference_ops.contract.arguments import check_casting_mode, check_number, check_same, compute_dtype
from reference_ops.contract.families import (
    check_modulated,
    check_modulated_norm,
    check_no_grad,
    check_norm,
    check_qk,
    check_qk_rope,
    check_rotary,
    check_split_rotary,
)
from reference_ops.contract.forms import IndexedRows, Modulation, ModulationStrides, expand_modulation
from reference_ops.contract.memory import check_inplace, may_overlap, overlaps_itself

__all__ = [
    "IndexedRows",
    "Modulation",
    "ModulationStrides",
    "check_casting_mode",
    "check_inplace",
    "check_modulated",
    "check_modulated_norm",
    "check_no_grad",
    "check_norm",
    "check_number",
    "check_qk",
    "check_qk_rope",
    "check_rotary",
    "check_same",
    "check_split_rotary",
    "compute_dtype",
    "expand_modulation",
    "may_overlap",
    "overlaps_itself",
]
