"""Corners of memory: layouts of activations, and two arguments that are one tensor."""

from collections.abc import Callable, Mapping
from typing import Any

from validation.cases.case import Case, TensorSpec
from validation.cases.corners.corner import Corner, main
from validation.cases.families import AS_Q
from validation.cases.roles import ACTIVATIONS, MODULATIONS
from validation.cases.signature import Signature
from validation.cases.sizes import width_class
from validation.cases.strategies import SHARED

# One row a token, for both shift and scale.
WHOLE_ROWS = {"form": "[B,L,D]", "dtype": "float32"}


def layout_corners(signature: Signature) -> list[Corner]:
    """Each activation in each layout."""
    corners = []
    names = [n for n in ACTIVATIONS if n in signature]
    own: dict[str, Any] = {}
    if signature.family == "qk":
        own = {"qk.layout": "own", "k.shape": "same", "heads": 2, "qk.rank": 4}
    if signature.family == "norm":
        own = {"rank": 3}
    if signature.family in ("rotary", "split_rotary"):
        own = {"heads": 2}
    for name in names:
        base = {**own, "size": "frames", "width": "pow2"}

        def laid_out(
            label: str,
            layout: str,
            test: Callable[[TensorSpec], bool],
            name: str = name,
            base: Mapping[str, Any] = base,
            more: Mapping[str, Any] | None = None,
            sparse: bool = False,
        ) -> Corner:
            def reached(case: Case) -> bool:
                spec = case.tensors[name]
                return len(spec.shape) > 2 and min(spec.shape) > 1 and spec.storage == name and test(spec)

            return Corner(f"{name}: {label}", {**base, f"{name}.layout": layout, **(more or {})}, reached, sparse)

        corners += [
            laid_out("contiguous", "contiguous", lambda s: s.contiguous and s.offset == 0),
            laid_out("offset 1", "offset1", lambda s: s.offset == 1),
            laid_out(
                "rows apart, 16k", "gapped", lambda s: _row_gap(s) and s.strides[-2] % 8 == 0, more={f"{name}.gap": 8}
            ),
            laid_out(
                "rows apart, odd", "gapped", lambda s: _row_gap(s) and s.strides[-2] % 2 == 1, more={f"{name}.gap": 1}
            ),
            # Rows that begin at multiples of four elements and not of eight: 16-byte aligned only in float32.
            laid_out(
                "rows apart, float16, 4",
                "gapped",
                lambda s: _row_gap(s) and s.dtype == "float16" and s.strides[-2] % 8 == 4 and s.shape[-1] % 8 == 0,
                more={f"{name}.gap": 4, "dtype": "float16", "k.dtype": AS_Q, "width.class": width_class(32)},
                sparse=True,
            ),
            laid_out(
                "outer dimensions swapped",
                "transposed",
                lambda s: s.strides[0] < s.strides[1],
                more={f"{name}.swap": 0},
            ),
            laid_out("last dimension strided", "strided_last", lambda s: s.strides[-1] > 1),
            laid_out("one of three packed", "packed", lambda s: s.strides[-2] == 3 * s.shape[-1]),
            laid_out("tokens of a longer sequence", "sliced", lambda s: s.strides[0] > s.shape[1] * s.strides[1]),
            laid_out("stride 0", "repeated", lambda s: s.strides[0] == 0, more={f"{name}.expanded": 1}, sparse=True),
        ]
        if signature.family in ("norm", "qk", "rotary"):
            corners.append(_swapped_heads_corner(name, base, signature.family))
        # The two pairings may have two kernels.
        pairings: tuple[dict[str, Any], ...] = ({},)
        if "interleaved" in signature:
            pairings = ({"interleaved": True}, {"interleaved": False})
        corners += [_one_token_corner(name, base, flags) for flags in pairings]
    return corners


def _one_token_corner(name: str, base: Mapping[str, Any], flags: Mapping[str, Any]) -> Corner:
    """``[B, 1, ...]`` in the memory of ``[1, B, ...]``: contiguous, but its stride over L is not the size of a token.

    A dimension of 1 may have any stride. Liger's rotary kernel uses this one as the distance between rows, and writes
    past the end (docs/third-party.md, 4).
    """

    def reached(case: Case) -> bool:
        spec = case.tensors[name]
        swapped = len(spec.shape) > 2 and spec.shape[1] == 1 < spec.shape[0] and spec.strides[1] > spec.strides[0] > 0
        return swapped and all(case.flags[flag] == value for flag, value in flags.items())

    label = "".join(f", {flag}={value}" for flag, value in flags.items())
    layout = {"size": "one_token_each", "inplace": True, f"{name}.layout": "transposed", f"{name}.swap": 0}
    return Corner(f"{name}: L=1, outer dimensions swapped{label}", {**base, **flags, **layout}, reached)


def _swapped_heads_corner(name: str, base: Mapping[str, Any], family: str) -> Corner:
    """``[B, S, H, Dh]`` in the memory of ``[B, H, S, Dh]``, as attention leaves it: each item is dense."""

    def reached(case: Case) -> bool:
        spec = case.tensors[name]
        swapped = len(spec.shape) == 4 and min(spec.shape) > 1 and spec.strides[0] > spec.strides[2] > spec.strides[1]
        return swapped and spec.strides[-1] == 1

    layout = {f"{name}.layout": "transposed", f"{name}.swap": 1, **({"rank": 4} if family == "norm" else {})}
    return Corner(f"{name}: [B,H,S,Dh] in memory", {**base, **layout}, reached, sparse=True)


def _row_gap(spec: TensorSpec) -> bool:
    return spec.strides[-1] == 1 and spec.strides[-2] > spec.shape[-1]


def shared_corners(signature: Signature) -> list[Corner]:
    """Two arguments that are one tensor: nothing forbids it for tensors that are only read."""
    corners = []
    for first, second in SHARED:
        if first in signature and second in signature:

            def reached(case: Case, first: str = first, second: str = second) -> bool:
                one, other = case.tensors.get(first), case.tensors.get(second)
                return one is not None and one == other and one.numel > 1 and main(case).numel > 0

            forced: dict[str, Any] = {f"{first} is {second}": True, "size": "frames", "width": "pow2"}
            if signature.family in ("qk", "rotary", "split_rotary"):
                forced["heads"] = 2  # one in ten cases has no heads, and shows nothing
            if first in MODULATIONS:
                forced |= {f"{name}.{key}": v for name in (first, second) for key, v in WHOLE_ROWS.items()}
            if first == "residual":
                forced["gate.form"] = "[B,L,D]"
            if first == "q_weight":
                forced |= {"qk.weights": "both"}
            corners.append(Corner(f"{first} is {second}", forced, reached))
    return corners
