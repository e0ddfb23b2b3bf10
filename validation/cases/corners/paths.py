"""Corners where another kernel or another path of it may run, with values that expose arithmetic mistakes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from validation.cases.case import Case
from validation.cases.corners.corner import Arrangement, Corner, heads, main, rows
from validation.cases.corners.modulation import affine_choices
from validation.cases.roles import ACTIVATIONS, ANGLES, MODULATIONS, ROWS
from validation.cases.signature import Signature
from validation.cases.sizes import RARE_HEADS, width_class


def path_corners(signature: Signature) -> list[Corner]:
    """Each path of the norms and modulated ops in the value regimes that expose arithmetic mistakes.

    Left to chance, D>8192 met a mean offset in one of five sweeps of `layer_norm`, near_max and variance_eps in none.
    The same cases have tensors whose strides do not follow from their shape: bugs that need both (`faults.wide`) were
    left to chance as well.
    """
    rank = {"rank": 3} if signature.family == "norm" else {}

    def of_rows(test: Callable[[tuple[int, ...]], bool]) -> Callable[[Case], bool]:
        return lambda case: len(main(case).shape) == 3 and test(main(case).shape)

    # Each arrangement at a width beyond any block, and two of them at each model width.
    paths: dict[str, tuple[dict[str, Any], Callable[[tuple[int, ...]], bool], tuple[Arrangement, Arrangement]]] = {
        "D>8192": (
            {"width": "beyond", "width.class": width_class(9000), "size": "frames"},
            lambda shape: shape[-1] > 8192 + 512,
            (Arrangement.COLUMNS_APART, Arrangement.ROWS_APART),
        ),
        "D=8193": (
            {"width": "beyond", "width.class": width_class(8193), "size": "frames"},
            lambda shape: shape[-1] == 8193,
            (Arrangement.INDEXED, Arrangement.COLUMNS_APART),
        ),
        "D=3072": (
            {"width": "model", "width.class": width_class(3072), "width.member": 3072, "size": "frames"},
            lambda shape: shape[-1] == 3072,
            (Arrangement.ROWS_APART, Arrangement.INDEXED),
        ),
        "D=5120": (
            {"width": "model", "width.class": width_class(5120), "width.member": 5120, "size": "frames"},
            lambda shape: shape[-1] == 5120,
            (Arrangement.COLUMNS_APART, Arrangement.ROWS_APART),
        ),
        # With few rows, cancelling sums may round well by luck: with one to eight, one sweep in five showed nothing.
        "L=1": (
            {"width": "model", "width.class": width_class(1024), "size": "single_tokens"},
            lambda shape: shape[1] == 1 and shape[0] > 8,
            (Arrangement.ANY, Arrangement.ANY),
        ),
        "rows>65535": (
            {"width": "pow2", "size": "many_rows"},
            lambda shape: math.prod(shape[:-1]) > 65535,
            (Arrangement.ROWS_APART, Arrangement.ANY),
        ),
    }
    regimes = {"mean_offset": "float32", "variance_eps": "float32"} if "eps" in signature else {}
    corners = _tall_corners(signature, rank)
    for path, (forced, test, arrangements) in paths.items():
        corners += _in_regimes(signature, path, {**forced, **rank}, of_rows(test), regimes, arrangements)
    return corners


def _tall_corners(signature: Signature, rank: Mapping[str, Any]) -> list[Corner]:
    """More than 512 rows that are wide as well: a persistent loop takes several rows a program, a pipeline fills.

    Two cases, for one has 610,000 elements, as many as 40 of the others: with and without rows apart.
    """
    corners = []
    forced = {"width": "model", "width.class": width_class(1024), "size": "tall", **rank}
    for dtype, arrangement in {"float32": Arrangement.ANY, "float16": Arrangement.ROWS_APART}.items():

        def reached(case: Case, dtype: str = dtype, arrangement: Arrangement = arrangement) -> bool:
            shape = main(case).shape
            wide = len(shape) == 3 and math.prod(shape[:-1]) > 512 and shape[-1] >= 1024
            return wide and case.dtype == dtype and _is_arranged(case, arrangement)

        choices = {**forced, **_arranged(signature, arrangement), "dtype": dtype, "casting_mode": "float32"}
        choices |= {f"{name}.form": "[B,L,D]" for name in signature.modulations}
        label = ", ".join(filter(None, ("rows>512, D=1024", arrangement.value)))
        corners.append(Corner(label, choices, reached, sparse=True))
    return corners


def head_path_corners(signature: Signature) -> list[Corner]:
    """`path_corners` for the ops that work on heads. Left to chance, a sweep of 400 cases met few of these pairs."""
    (most,) = RARE_HEADS
    paths: dict[str, tuple[dict[str, Any], Callable[[Case], bool]]] = {
        "L=1": (
            {"width": "model", "width.class": width_class(64), "size": "single_tokens", "heads": 2},
            lambda case: main(case).shape[1] == 1 and main(case).shape[0] > 8,
        ),
        "rows>65535": ({"width": "pow2", "size": "many_rows", "heads": 2}, lambda case: rows(case) > 65535),
        f"H={most}": ({"width": "model", "size": "frames", "heads": most}, lambda case: heads(case) == most),
    }
    if signature.family != "split_rotary":
        paths["D odd"] = (
            {"width": "prime", "width.class": width_class(31), "size": "frames", "heads": 2},
            lambda case: main(case).shape[-1] % 2 == 1 < main(case).shape[-1],
        )
    rank: dict[str, Any] = {"k.shape": "same"}
    if signature.family == "qk":
        rank |= {"qk.rank": 4, "qk.weights": "both"}
    # An RMS norm subtracts no mean, so mean_offset is left out.
    regimes = {"variance_eps": "float32"} if "eps" in signature else {}
    arrangements = (Arrangement.COLUMNS_APART, Arrangement.ROWS_APART)
    corners = []
    for path, (forced, test) in paths.items():
        corners += _in_regimes(signature, path, {**forced, **rank}, test, regimes, arrangements)
    return corners


def _in_regimes(
    signature: Signature,
    path: str,
    forced: Mapping[str, Any],
    test: Callable[[Case], bool],
    regimes: Mapping[str, str],
    arrangements: tuple[Arrangement, Arrangement],
) -> list[Corner]:
    """One corner of a path for each regime, and for near_max and nonfinite.

    Args:
        signature: the op's signature.
        path: the path's name in reports.
        forced: the choices that lead to it.
        test: whether a case is on it.
        regimes: maps a regime to the dtype in which a mistake shows.
        arrangements: how the tensors lie in float16, and in the other dtypes.
    """
    corners = []
    # In float16 a bug overflows, in float32 it shows in the last bits.
    for regime, dtype in {"near_max": "float16", "nonfinite": "", **regimes}.items():
        arrangement = arrangements[dtype != "float16"]

        def reached(
            case: Case, regime: str = regime, dtype: str = dtype, arrangement: Arrangement = arrangement
        ) -> bool:
            on_path = len(main(case).shape) > 2 and test(case) and _is_arranged(case, arrangement)
            return on_path and case.values == regime and dtype in ("", case.dtype)

        of_dtype = {"dtype": dtype} if dtype else {}
        if dtype == "float32" and "casting_mode" in signature:
            of_dtype["casting_mode"] = "float32"  # an intermediate rounding would hide the mistake
        label = ", ".join(filter(None, (path, arrangement.value, f"values={regime}{' ' if dtype else ''}{dtype}")))
        choices = {**forced, **_arranged(signature, arrangement), **of_dtype, "values": regime}
        corners.append(Corner(label, choices, reached, sparse=True))
    return corners


def _arranged(signature: Signature, arrangement: Arrangement) -> dict[str, Any]:
    """The choices that lead to an arrangement, for the arguments that the op has."""
    rows = [name for name in signature.names if name in (*ACTIVATIONS, *ANGLES)]
    affine = list(affine_choices(signature))
    form = "indexed" if arrangement is Arrangement.INDEXED else "[B,L,D]"
    forced: dict[str, Any] = {}
    for name in signature.modulations if arrangement is not Arrangement.ANY else ():
        forced |= {f"{name}.form": form, **arrangement.of_modulation(name, form)}
    match arrangement:
        case Arrangement.COLUMNS_APART:
            weights = [name for name in signature.names if name in ROWS]
            forced |= {f"{name}.layout": "strided_last" for name in (*rows, *weights)}
            forced |= {"affine": affine[-1]} if affine else {}
            forced |= {"qk.layout": "own"} if "k" in signature else {}
        case Arrangement.ROWS_APART:
            forced |= {f"{name}.layout": "gapped" for name in rows}
            if "k" in signature:
                forced |= {"qk.layout": "own", "q.gap": 8, "k.gap": 16}  # q's strides are not k's
            if signature.family != "split_rotary":
                forced |= {f"{name}.form": "[B,S,Dr/2]" for name in rows if name in ANGLES}
        case Arrangement.INDEXED:
            forced |= {f"{name}.table.rows": 3 for name in signature.modulations}
            forced |= {"affine": "bias" if "bias" in affine else "none"} if affine else {}
    return forced


def _is_arranged(case: Case, arrangement: Arrangement) -> bool:
    match arrangement:
        case Arrangement.INDEXED:
            return not {*MODULATIONS, "weight"} & set(case.tensors)
        case Arrangement.COLUMNS_APART:
            return arrangement.holds(case.tensors.values())
    rows = (*ACTIVATIONS, *ANGLES, *MODULATIONS)
    return arrangement.holds(spec for name, spec in case.tensors.items() if name in rows)
