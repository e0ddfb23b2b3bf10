"""The tensors of a case, by family of ops.

A family (`Signature.family`) decides which shapes go together; an op whose arguments all have known roles needs no
change here.
"""

from collections.abc import Sequence

from validation.cases.case import TensorSpec
from validation.cases.chooser import Chooser
from validation.cases.layouts import ACTIVATION_LAYOUTS, ANGLE_LAYOUTS, QK_LAYOUTS, ROW_LAYOUTS, lay_out, units_of
from validation.cases.parameters import (
    affine_specs,
    angle_dtypes,
    angle_specs,
    angle_units,
    dtype_of,
    modulation_specs,
    modulation_units,
)
from validation.cases.signature import Signature
from validation.cases.sizes import (
    HEAD_DIMS,
    HEADS,
    MANY_HEADS,
    ODD_HEAD_DIMS,
    RARE_HEADS,
    ROTATED_ODD_HEAD_DIMS,
    WIDTHS,
    sizes_of,
    width_of,
)

AS_Q = "as q"  # k's dtype


def _modulated(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    width, widest = width_of(choose, WIDTHS)
    activations = [name for name in ("residual", "x") if name in signature]
    units = [unit for name in activations for unit in units_of(choose, name, width, ACTIVATION_LAYOUTS)]
    units += [unit for name in signature.modulations for unit in modulation_units(choose, name, width)]
    batch, frames, tokens = sizes_of(choose, widest, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    shape = (batch, frames * tokens, width)
    tensors = {name: lay_out(choose, name, shape, dtype, ACTIVATION_LAYOUTS) for name in activations}
    for name in signature.modulations:
        tensors |= modulation_specs(choose, name, (batch, frames, tokens, width), dtype, dtypes)
    return tensors | affine_specs(signature, choose, width, dtype, dtypes)


def _norm(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    width, widest = width_of(choose, WIDTHS)
    rank = choose.pick("rank", (3, 1, 2, 4))
    layouts = ACTIVATION_LAYOUTS if rank > 1 else ROW_LAYOUTS
    batch, frames, tokens = sizes_of(choose, widest, units_of(choose, "x", width, layouts))
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    shape = {
        1: (width,),
        2: (batch * frames * tokens, width),
        3: (batch, frames * tokens, width),
        4: (batch, frames, tokens, width),
    }[rank]
    tensors = {"x": lay_out(choose, "x", shape, dtype, layouts)}
    return tensors | affine_specs(signature, choose, width, dtype, dtypes)


def _qk_layouts(
    choose: Chooser, q: tuple[int, ...], k: tuple[int, ...], dtype: str, k_dtype: str
) -> dict[str, TensorSpec]:
    """Lay q and k out: separately, in one packed ``[B, S, 3, H, head_dim]`` buffer, or as one tensor."""
    layout = choose.pick("qk.layout", QK_LAYOUTS)
    alike = q == k and dtype == k_dtype
    if layout == "same" and alike:
        return dict.fromkeys(("q", "k"), lay_out(choose, "q", q, dtype, ACTIVATION_LAYOUTS))
    if layout != "packed" or not alike or len(q) != 4:
        return {
            "q": lay_out(choose, "q", q, dtype, ACTIVATION_LAYOUTS),
            "k": lay_out(choose, "k", k, k_dtype, ACTIVATION_LAYOUTS),
        }
    batch, length, heads, width = q
    token = 3 * heads * width
    strides = (max(length, 1) * token, token, width, 1)
    del batch
    return {
        "q": TensorSpec(q, dtype, strides, 0, "qkv"),
        "k": TensorSpec(k, dtype, strides, heads * width, "qkv"),
    }


def _qk(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    rope = "cos" in signature
    width, widest = width_of(choose, HEAD_DIMS | (ROTATED_ODD_HEAD_DIMS if rope else ODD_HEAD_DIMS))
    heads = choose.pick("heads", HEADS, (*RARE_HEADS, *MANY_HEADS))
    rank = 4 if rope else choose.pick("qk.rank", (4, 4, 4, 3))
    other = choose.pick("k.shape", ("same", "heads", "fewer heads", *(() if rope else ("length", "shorter", "rank"))))
    k_dtype = choose.pick("k.dtype", [*(AS_Q,) * 4, *(d for d in dtypes if d != dtype)])
    k_dtype = dtype if k_dtype == AS_Q else k_dtype
    # Grouped queries: one head of k for several of q.
    k_heads = {"heads": heads + 1, "fewer heads": max(heads // 2, min(heads, 1)), "rank": 1}.get(other, heads)
    units = [width * heads]
    if choose.pick("qk.layout", QK_LAYOUTS) != "packed" or other != "same" or k_dtype != dtype or rank == 3:
        units = _head_units(choose, "q", width, heads)
        units += _head_units(choose, "k", width, k_heads, inner=other == "rank")
        if rank == 3:  # tokens may lie inside of heads
            units += [unit for name in ("q", "k") for unit in units_of(choose, name, width, ACTIVATION_LAYOUTS)]
    if rope:
        units += angle_units(choose, width, ANGLE_LAYOUTS)
    batch, frames, tokens = sizes_of(choose, widest * max(heads, 1) * 2, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    # 16 more tokens stay in the same class.
    q_length, k_length = length + 16 * (other == "shorter"), length + 16 * (other == "length")
    q: tuple[int, ...] = (batch, q_length, heads, width)
    k: tuple[int, ...] = (batch, k_length, k_heads, width)
    if rank == 3:
        q, k = (batch * q_length, heads, width), (batch * k_length, k_heads, width)
    if other == "rank":
        k = (batch * length, width)
    tensors = _qk_layouts(choose, q, k, dtype, k_dtype)
    weights = choose.pick("qk.weights", ("both", "none", "q", "k"))
    for name in ("q_weight", "k_weight"):
        if weights in ("both", name[0]):
            tensors[name] = lay_out(choose, name, (width,), dtype_of(choose, name, dtype, dtypes), ROW_LAYOUTS)
    return tensors | (angle_specs(choose, batch, length, width, dtype, dtypes) if rope else {})


def _head_units(choose: Chooser, name: str, width: int, heads: int, *, inner: bool = False) -> list[int]:
    """`units_of` for heads ``[B, S, H, head_dim]``; if transposed, heads may lie outside of tokens."""
    units = [heads * unit for unit in units_of(choose, name, width, ACTIVATION_LAYOUTS, inner=inner)]
    return [*units, width] if choose.key[f"{name}.layout"] == "transposed" else units


def _rotary(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    del signature
    width, widest = width_of(choose, HEAD_DIMS | ROTATED_ODD_HEAD_DIMS)
    heads = choose.pick("heads", HEADS, (*RARE_HEADS, *MANY_HEADS))
    units = _head_units(choose, "x", width, heads)
    units += angle_units(choose, width, ANGLE_LAYOUTS)
    batch, frames, tokens = sizes_of(choose, widest * max(heads, 1), units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    x = lay_out(choose, "x", (batch, length, heads, width), dtype, ACTIVATION_LAYOUTS)
    return {"x": x} | angle_specs(choose, batch, length, width, dtype, dtypes)


def _split_rotary(signature: Signature, choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, TensorSpec]:
    del signature
    width, widest = width_of(choose, HEAD_DIMS)
    heads = choose.pick("heads", [n for n in HEADS if n], (*RARE_HEADS, *MANY_HEADS))
    layouts = ("contiguous", "offset1", "gapped", "transposed", "strided_last", "expanded")
    of_angles = [unit for name in ("cos", "sin") for unit in units_of(choose, name, width // 2, layouts)]
    units = [n * unit for n in (1, heads) for unit in of_angles]
    units += units_of(choose, "x", heads * width, ACTIVATION_LAYOUTS)
    batch, frames, tokens = sizes_of(choose, widest * heads, units)
    if batch * frames * tokens > 10_000:
        width = min(width, 4)
    length = frames * tokens
    x = lay_out(choose, "x", (batch, length, heads * width), dtype, ACTIVATION_LAYOUTS)
    kinds = angle_dtypes(choose, dtype, dtypes)
    shape = (batch, heads, length, width // 2)
    return {"x": x} | {name: lay_out(choose, name, shape, kinds[name], layouts) for name in ("cos", "sin")}


FAMILIES = {"modulated": _modulated, "norm": _norm, "qk": _qk, "rotary": _rotary, "split_rotary": _split_rotary}
