"""Corners of dtypes, value regimes and flags."""

from collections.abc import Callable
from typing import Any

from validation.cases.case import FLOAT_DTYPES, Case
from validation.cases.corners.corner import Corner, main
from validation.cases.roles import MODULATIONS
from validation.cases.signature import Signature
from validation.cases.sizes import width_class
from validation.cases.strategies import EPS
from validation.cases.values import EXACT

# float16 modulation with a value of its own for each element.
HALF = {"dtype": "float16", "form": "[B,L,D]"}


def type_corners(signature: Signature, bfloat16: bool) -> list[Corner]:
    """Each dtype, value regime and flag, and regimes in the dtype where they expose most."""
    dtypes = [name for name in FLOAT_DTYPES if bfloat16 or name != "bfloat16"]
    corners = [Corner(f"dtype={d}", {"dtype": d}, lambda case, d=d: case.dtype == d) for d in dtypes]  # type: ignore[misc]
    # Non-finite values expose most in many rows of many channels, where an inf meets each kind of parameter.
    rows: dict[str, Any] = {"size": "ragged", "width": "model", "width.class": width_class(64), "rank": 3, "heads": 2}
    rows |= {f"{name}.form": "[B,L,D]" for name in signature.modulations}
    corners += [
        Corner(
            f"values={r}",
            {"values": r, **(rows if r == "nonfinite" else {})},
            lambda case, r=r: case.values == r,  # type: ignore[misc]
        )
        for r in signature.regimes
        if r != EXACT
    ]
    corners += _exact_corners(signature, dtypes)
    # An overflow that float16 makes or hides shows only in float16, where the casting mode matters, with all arguments
    # in float16 and enough elements: in a gated sum, one in 70 overflows in between and comes back.
    half = {f"{name}.{key}": value for name in signature.modulations for key, value in HALF.items()}
    for mode in ("float32", "input") if "casting_mode" in signature else ("float32",):
        corners.append(
            Corner(
                f"values=near_max float16, {mode}",
                {
                    "values": "near_max",
                    "dtype": "float16",
                    "casting_mode": mode,
                    "size": "frames",
                    "width": "model",
                    **half,
                },
                lambda case, mode=mode: (  # type: ignore[misc]
                    case.values == "near_max" and _dtypes(case) == {"float16"} and case.casting_mode == mode
                ),
            )
        )
    # What converts to float16 on the way overflows where the others have room.
    for wide in [name for name in dtypes if name != "float16"]:
        corners.append(
            Corner(
                f"values=beyond_float16 {wide}",
                {"values": "beyond_float16", "dtype": wide, "casting_mode": "float32", "size": "frames", "heads": 2},
                lambda case, wide=wide: case.values == "beyond_float16" and case.dtype == wide,  # type: ignore[misc]
                sparse=True,
            )
        )
    if "eps" in signature and signature.family in ("norm", "modulated"):
        corners += _row_mean_corners()
    if "scale" in signature:
        # 1 + scale must be computed in float32: float16 does not have that number.
        large: dict[str, Any] = {
            "scale_constant": 1.0,
            "values": "large_modulation",
            "dtype": "float16",
            "casting_mode": "float32",
            "size": "frames",
        }
        large |= {"scale.dtype": "float16", "scale.form": "[B,L,D]"}
        large |= {"width": "pow2", "width.class": width_class(256)}
        corners.append(
            Corner(
                "values=large_modulation float16, float32",
                large,
                lambda case: (
                    case.values == "large_modulation"
                    and case.casting_mode == "float32"
                    and case.dtype == "float16" == case.tensors["scale" if "scale" in case.tensors else "x"].dtype
                ),
                sparse=True,
            )
        )
    if "ties" in signature.regimes:
        # Some hundred half-way sums are needed to distinguish rounding half up from rounding half to even.
        narrow = "bfloat16" if bfloat16 else "float16"
        ties: dict[str, Any] = {"values": "ties", "dtype": narrow, "casting_mode": "float32"}
        ties |= {"size": "sixteens", "width": "pow2"}
        ties |= {f"{name}.{key}": value for name in signature.modulations for key, value in HALF.items()}
        ties |= {f"{name}.dtype": narrow for name in signature.modulations} | {"width.class": width_class(256)}
        corners.append(
            Corner(
                f"values=ties {narrow}, many",
                ties,
                lambda case: case.values == "ties" and case.dtype == narrow and main(case).numel > 4000,
                sparse=True,
            )
        )
    if "eps" in signature:
        # Regimes in which eps is as large as the variance, and in which it is all there is.
        corners += [
            Corner(
                f"eps=0, values={regime}",
                {"eps": 0.0, "values": regime, "size": "frames", "width": "pow2", "rank": 3, "heads": 2},
                lambda case, regime=regime: case.flags["eps"] == 0.0 and case.values == regime,  # type: ignore[misc]
                sparse=True,
            )
            for regime in ("variance_eps", "zeros")
        ]
    small = {"size": "one_token", "width": "pow2", "width.class": width_class(4), "heads": 2}
    corners.append(
        Corner("values written out", {"literals": True, "values": "normal", **small}, lambda case: bool(case.literals))
    )
    for flag, options in {
        "casting_mode": ("float32", "input"),
        "eps": EPS,
        "interleaved": (True, False),
        "inplace": (True, False),
        "scale_constant": (1.0, 0.0, 0.5),
    }.items():
        if flag in signature:
            corners += [Corner(f"{flag}={o}", {flag: o}, _equals(flag, o)) for o in options]
    return corners


def _exact_corners(signature: Signature, dtypes: list[str]) -> list[Corner]:
    """Inputs that leave one right result, in each dtype; of norms also in rows wider than any other case has."""
    forced: dict[str, Any] = {"values": EXACT, "casting_mode": "float32", "size": "frames", "heads": 2}
    forced |= {"width": "model", "rank": 3, **{f"{name}.form": "[B,L,D]" for name in signature.modulations}}
    corners = [
        Corner(
            f"values=exact {dtype}",
            {**forced, "dtype": dtype},
            lambda case, dtype=dtype: case.values == EXACT and case.dtype == dtype,  # type: ignore[misc]
            sparse=dtype != "float32",
        )
        for dtype in dtypes
    ]
    if "eps" in signature and signature.family in ("norm", "modulated"):
        wide = {"width": "beyond", "width.class": width_class(65536), "dtype": "float32", "size": "general"}
        corners.append(
            Corner(
                "D=65536, values=exact float32",
                {**forced, **wide},
                lambda case: case.values == EXACT and case.dtype == "float32" and main(case).shape[-1] == 65536,
                sparse=True,
            )
        )
    return corners


def _row_mean_corners() -> list[Corner]:
    """Means of 0.1 to 1 sigma at wide rows with padding: its columns have a deviation too, minus the mean.

    By chance a mean is 1 / sqrt(D) sigma, and as much padding as columns adds 1 / D to the variance. At 30 sigma, in
    `mean_offset`, a kernel may have chosen to subtract the mean first.
    """
    corners = []
    # With the dtype left to chance, one sweep of eight did not show the planted fault.
    for width, kind, dtype in (5120, "model", "float16"), (4097, "pow2+1", "float32"):

        def reached(case: Case, width: int = width, dtype: str = dtype) -> bool:
            return case.values == "row_mean" and main(case).shape[-1] == width and case.dtype == dtype

        forced = {"width": kind, "width.class": width_class(width), "width.member": width, "dtype": dtype}
        forced |= {"values": "row_mean", "size": "frames", "casting_mode": "float32"}
        corners.append(Corner(f"D={width}, values=row_mean {dtype}", forced, reached, sparse=True))
    return corners


def _dtypes(case: Case) -> set[str]:
    """The dtypes of x (or q) and of its modulation."""
    modulation = {spec.dtype for name, spec in case.tensors.items() if name.partition(".")[0] in MODULATIONS}
    return {case.dtype, *(modulation & set(FLOAT_DTYPES))}


def _equals(flag: str, value: Any) -> Callable[[Case], bool]:
    return lambda case: bool(case.flags[flag] == value)
