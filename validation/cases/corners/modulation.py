"""Corners of modulation, weight and bias: forms, layouts, dtypes, and their combinations."""

from collections.abc import Callable
from typing import Any

from validation.cases.case import Case, TensorSpec
from validation.cases.corners.corner import Arrangement, Corner, main
from validation.cases.parameters import FORMS
from validation.cases.signature import Signature
from validation.cases.sizes import width_class

# Forms that models pass for shift and scale alike. A kernel may be compiled for both at once, with or without weight
# and bias: each such combination is a corner. The other forms get one of the combinations.
TOGETHER = frozenset({"[B,1,D]", "[B,L,D]", "[B,F,1,D]", "indexed"})
# Those of them in which a tile of tokens may share a row (a frame longer than the tile) or may not (an index a token):
# one of their combinations has enough tokens for tiles.
BY_TILE = frozenset({"[B,F,1,D]", "indexed"})

# Forms without columns, and forms with one row for all tokens.
ONE_NUMBER, SAME_ROW = frozenset({"scalar", "[1]"}), frozenset({"[D]", "[1,1,D]"})


def modulation_corners(name: str, bfloat16: bool) -> list[Corner]:
    """One modulation argument: each form, layout and pair of dtypes."""

    def spec_of(case: Case) -> TensorSpec | None:
        return case.tensors.get(name)

    frames = {"size": "frames", "width": "pow2"}
    forms = (*FORMS, "none") if name == "gate" else FORMS
    # PyTorch's type promotion counts a tensor of shape [1], unlike a 0-d one: in float32, it makes for less rounding.
    more = {"[1]": {"dtype": "float16", f"{name}.dtype": "float32", "casting_mode": "input"}}
    corners = [
        Corner(f"{name}={f}", {f"{name}.form": f, **frames, **more.get(f, {})}, _form_reached(name, f)) for f in forms
    ]
    whole = {f"{name}.form": "[B,L,D]", **frames}

    def laid_out(label: str, layout: str, test: Callable[[TensorSpec], bool], **more: Any) -> Corner:
        def reached(case: Case) -> bool:
            spec = spec_of(case)
            return spec is not None and len(spec.shape) == 3 and spec.shape[-1] > 1 and test(spec)

        return Corner(f"{name}: {label}", {**whole, f"{name}.layout": layout, **more}, reached)

    corners += [
        laid_out("offset 1", "offset1", lambda s: s.offset == 1),
        laid_out("last dimension strided", "strided_last", lambda s: s.strides[-1] > 1),
        laid_out("chunk of [B,L,6,D]", "chunked", lambda s: s.strides[1] == 6 * s.shape[-1]),
        laid_out("stride 0", "expanded", lambda s: 0 in s.strides),
        laid_out("row stride not 16k", "gapped", lambda s: s.strides[1] % 16 != 0, **{f"{name}.gap": 1}),
    ]
    pairs = [("float32", "float16"), ("float16", "float32")]
    if bfloat16:
        pairs += [("bfloat16", "float32"), ("float32", "bfloat16")]
    for working, other in pairs:

        def mixed(case: Case, working: str = working, other: str = other) -> bool:
            spec = spec_of(case)
            return case.dtype == working and spec is not None and len(spec.shape) > 0 and spec.dtype == other

        forced = {"dtype": working, f"{name}.dtype": other, **whole}
        corners.append(Corner(f"{name}: {other} with {working} x", forced, mixed))
    many_table_rows = {
        f"{name}.table.rows": 300,
        "size": "long_frames",
        "width": "model",
        "width.class": width_class(64),
    }
    for kind in ("int32", "int64"):
        corners.append(
            Corner(
                f"{name}: {kind} index, many rows",
                {**many_table_rows, f"{name}.form": "indexed", f"{name}.index.dtype": kind},
                lambda case, kind=kind: (  # type: ignore[misc]
                    getattr(case.tensors.get(f"{name}.index"), "dtype", "") == kind
                    and case.tensors[f"{name}.table"].shape[0] > 256
                    and case.tensors[f"{name}.index"].shape[1] > 199
                ),
            )
        )

    def table(case: Case) -> TensorSpec:
        return case.tensors.get(f"{name}.table", TensorSpec((0,), "", (0,), 0, ""))

    several = {"size": "frames", "width": "pow2", f"{name}.table.rows": 3}
    strided = {f"{name}.form": "indexed", f"{name}.table.layout": "strided_last", f"{name}.index.layout": "expanded"}
    sliced = {f"{name}.form": "indexed[B]", f"{name}.table.layout": "sliced"}
    corners += [
        Corner(
            f"{name}: table last dimension strided, index stride 0",
            {**several, **strided},
            lambda case: table(case).strides[-1] > 1 and case.tensors[f"{name}.index"].strides[0] == 0,
        ),
        Corner(
            f"{name}: a slice of each item's table",
            {**several, **sliced},
            lambda case: (
                len(table(case).shape) == 3 and table(case).strides[0] > table(case).shape[1] * table(case).strides[1]
            ),
        ),
    ]
    # One row a batch item, in a shape where it could be mistaken for one row a token.
    corners.append(
        Corner(
            f"{name}=[B,D], B==L>1",
            {f"{name}.form": "[B,D]", "size": "square", "width": "pow2"},
            lambda case: (
                (spec := spec_of(case)) is not None
                and len(spec.shape) == 2
                and main(case).shape[0] == main(case).shape[1] > 1
            ),
        )
    )
    return corners


def same_form_corners(signature: Signature) -> list[Corner]:
    """Shift, scale and gate of one form; `TOGETHER` with each choice of weight and bias, `BY_TILE` with tiles.

    Columns are apart in one of these corners, and rows, if there are several, in another: the rows of a
    `chunk` of ``[B, 6 D]``, for one, are 6 D apart. Other corners have contiguous ones (`parity.telling`).
    """
    corners, names = [], signature.modulations
    for form in FORMS:
        # The gate too, if there is one: a kernel may read one of them like the other two.
        forced: dict[str, Any] = {f"{name}.form": form for name in names} | {"size": "frames", "width": "pow2"}
        if form.startswith("indexed"):
            forced |= {f"{name}.table.rows": 3 for name in names}
        arrangements = [Arrangement.ANY] if form in ONE_NUMBER else [Arrangement.COLUMNS_APART, Arrangement.ROWS_APART]
        if form in SAME_ROW:
            arrangements.pop()
        every = affine_choices(signature) if form in TOGETHER else {}
        choices: list[tuple[str, tuple[bool, bool] | None]] = [*every.items()] or [("", None)] * len(arrangements)
        arrangements += [Arrangement.ANY] * (len(choices) - len(arrangements))
        for number, ((affine, want), arrangement) in enumerate(zip(choices, arrangements, strict=True)):
            if len(names) == 1 and arrangement is Arrangement.ANY:
                continue  # a corner of its own already
            tiles = form in BY_TILE and number == len(choices) - 1
            more: dict[str, Any] = {"affine": affine} if affine else {}
            if tiles:
                more |= {"size": "long_frames", "width": "model", "width.class": width_class(64)}
            for name in names:
                more |= arrangement.of_modulation(name, form)

            def reached(
                case: Case,
                form: str = form,
                want: tuple[bool, bool] | None = want,
                least: int = 199 * tiles,
                arrangement: Arrangement = arrangement,
            ) -> bool:
                if not all(_form_reached(name, form)(case) for name in names) or main(case).shape[1] <= least:
                    return False
                rows = [case.tensors.get(name) or case.tensors[f"{name}.table"] for name in names]
                return arrangement.holds(rows) and want in (None, ("weight" in case.tensors, "bias" in case.tensors))

            parts = (f"{' and '.join(names)}={form}", affine and f"affine={affine}", "L>199" * tiles, arrangement.value)
            label = ", ".join(filter(None, parts))
            corners.append(Corner(label, {**forced, **more}, reached, sparse=not tiles))
    return corners


def partial_corners(signature: Signature) -> list[Corner]:
    """Modulation that is zero, or equal, for some items, frames or tokens: what tempts to look at the first alone."""
    corners, names = [], signature.modulations
    for regime in ("some_zero", "some_equal"):
        for form, size in {"[B,1,D]": "items", "[B,F,1,D]": "frames", "[B,L,D]": "frames"}.items():
            forced = {f"{name}.form": form for name in names}
            forced |= {"values": regime, "size": size, "width": "pow2"}

            def reached(case: Case, regime: str = regime, form: str = form) -> bool:
                if form == "[B,1,D]":  # of two items no two are equal and the third another
                    each = all(name in case.tensors for name in names) and main(case).shape[0] > 2
                    each = each and all(case.tensors[name].shape[:-1] == (main(case).shape[0], 1) for name in names)
                else:
                    each = all(_form_reached(name, form)(case) for name in names)
                return case.values == regime and each

            corners.append(Corner(f"values={regime}, {form}", forced, reached, sparse=True))
    return corners


def _form_reached(name: str, form: str) -> Callable[[Case], bool]:
    """A test for the form, with B, F and L > 1, so that no two forms look alike."""

    def reached(case: Case) -> bool:
        batch, length, width = main(case).shape
        if min(batch, length) < 2:
            return False
        table, spec = case.tensors.get(f"{name}.table"), case.tensors.get(name)
        if form in ("indexed", "indexed[B]"):
            return table is not None and len(table.shape) == (2 if form == "indexed" else 3)
        if table is not None or spec is None:
            return form == "none" and table is None
        shapes: dict[str, Callable[[tuple[int, ...]], bool]] = {
            "scalar": lambda s: s == (),
            "[1]": lambda s: s == (1,) and width > 1,
            "[D]": lambda s: s == (width,) and width > 1,
            "[B,D]": lambda s: s == (batch, width),
            "[1,1,D]": lambda s: s == (1, 1, width),
            "[B,1,D]": lambda s: s == (batch, 1, width),
            "[1,L,D]": lambda s: s == (1, length, width),
            "[B,L,D]": lambda s: s == (batch, length, width),
            "[B,F,1,D]": lambda s: len(s) == 4 and 1 < s[1] < length,
        }
        return form in shapes and shapes[form](spec.shape)

    return reached


def affine_choices(signature: Signature) -> dict[str, tuple[bool, bool]]:
    """Maps a choice to whether there is a weight and a bias; empty for an op that takes none."""
    if "weight" not in signature:
        return {}
    choices = {"none": (False, False), "weight": (True, False)}
    return choices | ({"bias": (False, True), "both": (True, True)} if "bias" in signature else {})


def affine_corners(signature: Signature) -> list[Corner]:
    """Weight and bias: which of them are given, a stride, another dtype."""
    corners = [
        Corner(
            f"affine={name}",
            {"affine": name},
            lambda case, want=want: ("weight" in case.tensors, "bias" in case.tensors) == want,  # type: ignore[misc]
        )
        for name, want in affine_choices(signature).items()
    ]
    return [
        *corners,
        Corner(
            "weight: last dimension strided",
            {"affine": "weight", "weight.layout": "strided_last", "width": "pow2"},
            lambda case: "weight" in case.tensors and case.tensors["weight"].strides[0] > 1,
        ),
        Corner(
            "weight: another dtype",
            {"affine": "weight", "dtype": "float16", "weight.dtype": "float32"},
            lambda case: "weight" in case.tensors and case.tensors["weight"].dtype != case.dtype,
        ),
    ]
