"""The tensors other than activations: modulation in its forms, weights, biases, cos and sin."""

from collections.abc import Sequence

from validation.cases.case import TensorSpec
from validation.cases.chooser import Chooser
from validation.cases.layouts import (
    ANGLE_LAYOUTS,
    INDEX_LAYOUTS,
    MODULATION_LAYOUTS,
    ROW_LAYOUTS,
    TABLE_LAYOUTS,
    lay_out,
    units_of,
)
from validation.cases.signature import Signature

FORMS = (
    "[D]",
    "scalar",
    "[1]",
    "[B,D]",
    "[1,1,D]",
    "[B,1,D]",
    "[1,L,D]",
    "[B,L,D]",
    "[B,F,1,D]",
    "indexed",
    "indexed[B]",
)
RARE_TABLE_ROWS = (300,)  # more than fit a byte index, or a kernel caches


def dtype_of(choose: Chooser, name: str, dtype: str, dtypes: Sequence[str]) -> str:
    """The dtype of a parameter: the working dtype first, then any other."""
    return choose.pick(f"{name}.dtype", [dtype, *(d for d in dtypes if d != dtype)])


def modulation_units(choose: Chooser, name: str, width: int) -> tuple[int, ...]:
    """`units_of` for a modulation argument; empty if its form has no stride that grows with the sizes."""
    form = choose.pick(f"{name}.form", FORMS if name != "gate" else (*FORMS, "none"))
    if form in ("indexed", "indexed[B]"):
        return units_of(choose, f"{name}.index", 1, INDEX_LAYOUTS, inner=False)
    if form in ("none", "scalar", "[1]", "[D]"):
        return ()
    return units_of(choose, name, width, MODULATION_LAYOUTS, inner=False)


def modulation_specs(
    choose: Chooser, name: str, sizes: tuple[int, int, int, int], dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    """The tensors of one modulation argument by name; empty for a gate of None."""
    batch, frames, tokens, width = sizes
    length = frames * tokens
    form = choose.pick(f"{name}.form", (*FORMS, "none") if name == "gate" else FORMS)
    if form == "none":
        return {}
    dtype = dtype_of(choose, name, dtype, dtypes)
    if form in ("indexed", "indexed[B]"):
        rows = choose.pick(f"{name}.table.rows", (1, 2, 3, 4), RARE_TABLE_ROWS)
        shape: tuple[int, ...] = (rows, width) if form == "indexed" else (batch, rows, width)
        index_dtype = choose.pick(f"{name}.index.dtype", ("int64", "int32"))
        return {
            f"{name}.table": lay_out(choose, f"{name}.table", shape, dtype, TABLE_LAYOUTS),
            f"{name}.index": lay_out(choose, f"{name}.index", (batch, length), index_dtype, INDEX_LAYOUTS),
        }
    shape = {
        "scalar": (),
        "[1]": (1,),
        "[D]": (width,),
        "[B,D]": (batch, width),
        "[1,1,D]": (1, 1, width),
        "[B,1,D]": (batch, 1, width),
        "[1,L,D]": (1, length, width),
        "[B,L,D]": (batch, length, width),
        "[B,F,1,D]": (batch, frames, 1, width),
    }[form]
    layouts = MODULATION_LAYOUTS if len(shape) > 1 else ROW_LAYOUTS if shape else ("contiguous", "offset1")
    return {name: lay_out(choose, name, shape, dtype, layouts)}


def affine_specs(
    signature: Signature, choose: Chooser, width: int, dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    """The chosen ones of weight and bias, each ``[D]``; empty if the op takes none."""
    names = [name for name in ("weight", "bias") if name in signature]
    if not names:
        return {}
    options = ("none", "weight", "bias", "both") if len(names) == 2 else ("none", "weight")
    affine = choose.pick("affine", options)
    return {
        name: lay_out(choose, name, (width,), dtype_of(choose, name, dtype, dtypes), ROW_LAYOUTS)
        for name in names
        if affine in (name, "both")
    }


def angle_units(choose: Chooser, width: int, layouts: Sequence[str]) -> list[int]:
    """`units_of` for cos and sin, whose rows are Dr/2 long."""
    row = _rotated(choose, width) // 2
    return [unit for name in ("cos", "sin") for unit in units_of(choose, name, row, layouts)]


def _rotated(choose: Chooser, width: int) -> int:
    """Dr, the number of rotated channels: all that form pairs, half of them, a few, or all but two."""
    part = "full" if width < 4 else choose.pick("rotary_dim", ("full", "partial", "few"), ("all but two",))
    few = 8 if width > 16 else 2  # less than half for every width of its class
    all_but_two = max(width // 2 * 2 - 2, 2)
    return {"full": width // 2 * 2, "partial": 2 * (width // 4), "few": few, "all but two": all_but_two}[part]


def angle_specs(
    choose: Chooser, batch: int, length: int, width: int, dtype: str, dtypes: Sequence[str]
) -> dict[str, TensorSpec]:
    """Cos and sin, ``[S, Dr/2]`` or ``[B, S, Dr/2]`` each."""
    rows = (length, _rotated(choose, width) // 2)
    shapes: dict[str, tuple[int, ...]] = {"[S,Dr/2]": rows, "[B,S,Dr/2]": (batch, *rows)}
    form = choose.pick("cos.form", tuple(shapes))
    forms = {"cos": form, "sin": choose.pick("sin.form", [*(form,) * 3, *(f for f in shapes if f != form)])}
    kinds = angle_dtypes(choose, dtype, dtypes)
    return {name: lay_out(choose, name, shapes[forms[name]], kinds[name], ANGLE_LAYOUTS) for name in ("cos", "sin")}


def angle_dtypes(choose: Chooser, dtype: str, dtypes: Sequence[str]) -> dict[str, str]:
    """The dtypes of cos and sin, mostly the same."""
    of_cos = dtype_of(choose, "cos", dtype, dtypes)
    return {
        "cos": of_cos,
        "sin": choose.pick("sin.dtype", [*(of_cos,) * 4, *(d for d in dtypes if d != of_cos)]),
    }
