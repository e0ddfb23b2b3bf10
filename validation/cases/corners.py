"""The declared corners: what a sweep must have reached before it may call an op checked.

A corner has a name, the choices that force it, and a test on the finished case. The test looks at shapes
and strides, not at the choices: a corner that a strategy stopped reaching turns the run red.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from validation.cases.case import FLOAT_DTYPES, Case, TensorSpec
from validation.cases.strategies import (
    AS_Q,
    EPS,
    FAR,
    FORMS,
    ONE_ROW,
    RARE_HEADS,
    RARE_SIZES,
    SHARED,
    WIDTHS,
    Signature,
    width_class,
)
from validation.cases.values import ACTIVATIONS, MODULATIONS, WEIGHTS

# Modulation with as many distinct float16 values as there are.
HALF = {"dtype": "float16", "form": "[B,L,D]"}

# Forms that models hand over for shift and scale alike. A kernel may be compiled for both at once, with or without
# weight and bias: each such meeting is a corner. Of the other forms, one of the meetings.
TOGETHER = frozenset({"[B,1,D]", "[B,L,D]", "[B,F,1,D]", "indexed"})
# Of them, those of which a tile of tokens may share a row (a frame longer than the tile) or may not (an index a token),
# at one of these meetings with tiles.
BY_TILE = frozenset({"[B,F,1,D]", "indexed"})

# One row a token, in shift and in scale alike.
WHOLE_ROWS = {"form": "[B,L,D]", "dtype": "float32"}

# Helios full width and head, Hunyuan3D-2 full width and head (5120, 40 x 128; 1024, 16 x 64), FLUX full width.
MODEL_WIDTHS = frozenset({5120, 1024, 128, 64, 3072})


# Forms of no columns, and of one row for all.
ONE_NUMBER, SAME_ROW = frozenset({"scalar", "[1]"}), frozenset({"[D]", "[1,1,D]"})

ANGLES = frozenset({"cos", "sin"})


class Arrangement(enum.Enum):
    """How tensors lie in memory, as the names of corners say it."""

    ANY = ""
    COLUMNS_APART = "columns apart"  # of all tensors
    ROWS_APART = "rows apart"  # of activations, modulation and angles: further than they are long
    INDEXED = "indexed"  # all modulation, without a weight

    def of_modulation(self, name: str, form: str) -> dict[str, str]:
        """The choices by which an argument of that form lies like that."""
        match self:
            case Arrangement.COLUMNS_APART if form.startswith("indexed"):
                return {f"{name}.table.layout": "strided_last", f"{name}.index.layout": "strided_last"}
            case Arrangement.ROWS_APART if form.startswith("indexed"):
                return {f"{name}.table.layout": "gapped"}
            case Arrangement.COLUMNS_APART:
                return {f"{name}.layout": "strided_last"}
            case Arrangement.ROWS_APART:
                return {f"{name}.layout": "chunked"}
        return {}

    def holds(self, specs: Iterable[TensorSpec]) -> bool:
        """Whether columns or rows are apart in each of the tensors; True where neither is asked for."""
        match self:
            case Arrangement.COLUMNS_APART:
                return all(spec.shape and spec.strides[-1] > 1 for spec in specs)
            case Arrangement.ROWS_APART:
                return all(len(spec.shape) > 1 and spec.strides[-2] > spec.shape[-1] for spec in specs)
        return True


@dataclasses.dataclass(frozen=True)
class Corner:
    """One corner.

    Attributes:
        name: as reports print it, ``scale=[B,F,1,D]``.
        forced: choices of `strategies` that lead there.
        reached: whether a case is in it.
        sparse: a meeting of two conditions, each with a corner of its own: half as many cases.
    """

    name: str
    forced: Mapping[str, Any]
    reached: Callable[[Case], bool]
    sparse: bool = False


def declared_corners(signature: Signature, *, bfloat16: bool = True, gpu: bool = False) -> tuple[Corner, ...]:
    """All corners of an op; with gpu, also those that take more memory than the interpreter's machine has to spare."""
    corners = [*_type_corners(signature, bfloat16), *_size_corners(signature), *_width_corners(signature)]
    for name in signature.modulations:
        corners += _modulation_corners(name, bfloat16)
    if signature.modulations:
        corners += _same_form_corners(signature)
    if signature.family in ("norm", "modulated"):
        corners += _path_corners(signature)
    if "weight" in signature:
        corners += _affine_corners(signature)
    corners += _layout_corners(signature)
    if signature.family == "qk":
        corners += _qk_corners(signature)
    if "cos" in signature:
        corners += _rotary_corners(signature)
    if signature.family in ("qk", "rotary", "split_rotary"):
        corners += _head_path_corners(signature)
    corners += _shared_corners(signature)
    if gpu:
        corners.append(_far_corner(signature))
    return tuple(corners)


def _far_corner(signature: Signature) -> Corner:
    """Rows beyond 2^31 elements from the first: 9 GB of float16, of which 9 rows are used."""
    name = "q" if "q" in signature else "x"
    forced = {"dtype": "float16", f"{name}.layout": "far", "size": "far", "width": "pow2", "rank": 3, "heads": 2}
    if signature.family == "qk":
        forced |= {"qk.layout": "own", "k.shape": "same"}
    return Corner(f"{name}: offsets past 2^31", forced, lambda case: case.tensors[name].extent > 2 * FAR)


def corners_of(case: Case, corners: tuple[Corner, ...]) -> list[str]:
    """Names of the corners that a case is in."""
    return [corner.name for corner in corners if corner.reached(case)]


def _main(case: Case) -> TensorSpec:
    return case.tensors["x" if "x" in case.tensors else "q"]


def _dtypes(case: Case) -> set[str]:
    """Of x (or q) and what modulates it."""
    modulation = {spec.dtype for name, spec in case.tensors.items() if name.partition(".")[0] in MODULATIONS}
    return {case.dtype, *(modulation & set(FLOAT_DTYPES))}


def _equals(flag: str, value: Any) -> Callable[[Case], bool]:
    return lambda case: bool(case.flags[flag] == value)


def _type_corners(signature: Signature, bfloat16: bool) -> list[Corner]:
    dtypes = [name for name in FLOAT_DTYPES if bfloat16 or name != "bfloat16"]
    corners = [Corner(f"dtype={d}", {"dtype": d}, lambda case, d=d: case.dtype == d) for d in dtypes]  # type: ignore[misc]
    # What is not finite tells most in many rows of many channels, where an inf meets each kind of parameter.
    rows: dict[str, Any] = {"size": "ragged", "width": "model", "width.class": width_class(64), "rank": 3, "heads": 2}
    rows |= {f"{name}.form": "[B,L,D]" for name in signature.modulations}
    corners += [
        Corner(
            f"values={r}",
            {"values": r, **(rows if r == "nonfinite" else {})},
            lambda case, r=r: case.values == r,  # type: ignore[misc]
        )
        for r in signature.regimes
    ]
    # An overflow that float16 makes or hides shows in float16 alone, where the casting mode differs, with all
    # arguments in float16 and elements enough: of a gated sum, one in 70 overflows on the way and comes back.
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
    if "scale" in signature:
        # 1 + scale is taken in float32, where float16 has no such number.
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
        # To tell a half rounded up from a half rounded to even takes some hundred sums that lie half-way.
        narrow = "bfloat16" if bfloat16 else "float16"
        ties: dict[str, Any] = {"values": "ties", "dtype": narrow, "casting_mode": "float32"}
        ties |= {"size": "sixteens", "width": "pow2"}
        ties |= {f"{name}.{key}": value for name in signature.modulations for key, value in HALF.items()}
        ties |= {f"{name}.dtype": narrow for name in signature.modulations} | {"width.class": width_class(256)}
        corners.append(
            Corner(
                f"values=ties {narrow}, many",
                ties,
                lambda case: case.values == "ties" and case.dtype == narrow and _main(case).numel > 4000,
                sparse=True,
            )
        )
    if "eps" in signature:
        # Where nothing but eps keeps the root from 0, and where it is all there is.
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


def _rows(case: Case) -> int:
    spec = _main(case)
    return spec.numel // spec.shape[-1]


def _size_corners(signature: Signature) -> list[Corner]:
    rank = {"norm": {"rank": 3}, "qk": {"qk.rank": 4}}.get(signature.family, {})
    heads = {"heads": 2} if signature.family in ("qk", "rotary", "split_rotary") else {}

    # A q that is longer than k has not the tokens of its size: one sweep of 20 had no B == L.
    same = {"k.shape": "same"} if signature.family == "qk" else {}

    def corner(name: str, size: str, reached: Callable[[Case], bool], **more: Any) -> Corner:
        return Corner(name, {"size": size, **same, **rank, **heads, **more}, reached)

    def shape(case: Case) -> tuple[int, ...]:
        return _main(case).shape

    corners = [
        corner("B=0", "no_batch", lambda case: len(shape(case)) > 2 and shape(case)[0] == 0),
        corner("L=0", "no_tokens", lambda case: len(shape(case)) > 2 and shape(case)[1] == 0 < shape(case)[0]),
        corner("B=1", "one_batch", lambda case: len(shape(case)) > 2 and shape(case)[0] == 1),
        corner("B>1", "frames", lambda case: len(shape(case)) > 2 and shape(case)[0] > 1),
        corner("L=1", "one_token", lambda case: len(shape(case)) > 2 and shape(case)[1] == 1),
        corner("L%16==0", "sixteens", lambda case: len(shape(case)) > 2 and shape(case)[1] % 16 == 0 < shape(case)[1]),
        corner("B==L>1", "square", lambda case: len(shape(case)) > 2 and shape(case)[0] == shape(case)[1] > 1),
        corner("rows>32, ragged", "ragged", lambda case: _rows(case) > 32 and _rows(case) % 32 != 0, width="pow2"),
        corner("rows>65535", "many_rows", lambda case: _rows(case) > 65535, width="pow2"),
    ]
    # With another row for each item, and for each token, where one is due.
    each = {f"{name}.form": "[B,L,D]" for name in signature.modulations} | {"cos.form": "[B,S,Dr/2]"}
    each |= {"sin.form": "[B,S,Dr/2]", "width": "pow2", "k.shape": "same"}
    many = {"B>8": ("items", 0, 8), "L>99": ("long_frames", 1, 99), "L>65536": ("many_tokens", 1, 65536)}
    if signature.family not in ("norm", "qk") or "cos" in signature:
        # Where items are more than rows: a video's pixels are the items of attention over time.
        many["B>65535"] = ("many_items", 0, 65535)
    for name, (size, axis, least) in many.items():
        wide = {"width": "model", "width.class": width_class(64)} if size == "long_frames" else {}

        def beyond(case: Case, axis: int = axis, least: int = least) -> bool:
            return len(shape(case)) > 2 and shape(case)[axis] > least

        more = Corner(name, {"size": size, **rank, **heads, **each, **wide}, beyond, sparse=size in RARE_SIZES)
        corners.append(more)
    if signature.modulations:
        frames = {f"{name}.form": "[B,F,1,D]" for name in signature.modulations}

        def many_frames(case: Case) -> bool:
            shapes = [case.tensors[name].shape for name in signature.modulations if name in case.tensors]
            return len(shapes) == len(frames) and all(len(s) == 4 and s[0] > 1 and s[1] > 8 for s in shapes)

        wide = {"width": "model", "width.class": width_class(64)}
        corners.append(Corner("F>8", {"size": "many_frames", **wide, **frames}, many_frames))
    if heads:
        corners.append(Corner("H=1", {"heads": 1, **rank}, lambda case: shape(case)[2:3] == (1,)))
        if signature.family != "split_rotary":
            corners.append(
                Corner("H=0", {"heads": 0, "k.shape": "same", **rank}, lambda case: shape(case)[2:3] == (0,))
            )
        else:
            corners[-1] = Corner("H=1", {"heads": 1}, lambda case: case.tensors["cos"].shape[1] == 1)
        # Grouped queries besides, where there is a k.
        (most,) = RARE_HEADS
        corners.append(
            Corner(
                f"H={most}",
                {"heads": most, "size": "frames", "width": "model", "k.shape": "fewer heads", **rank},
                lambda case: (
                    (case.tensors["cos"].shape[1] if signature.family == "split_rotary" else shape(case)[-2]) == most
                    and len(shape(case)) > 2
                ),
            )
        )
    if signature.family == "norm":
        corners += [
            Corner(f"rank={n}", {"rank": n, "size": "frames"}, lambda case, n=n: len(shape(case)) == n)  # type: ignore[misc]
            for n in (1, 2, 3, 4)
        ]
    return corners


def _width_corners(signature: Signature) -> list[Corner]:
    def width(case: Case) -> int:
        if signature.family == "split_rotary":
            return 2 * case.tensors["cos"].shape[-1]
        return _main(case).shape[-1]

    def power_of_two(n: int) -> bool:
        return n & (n - 1) == 0

    kinds: dict[str, Callable[[int], bool]] = {
        "D=2^k": lambda n: n > 2 and power_of_two(n),
        "D even, not 16k": lambda n: n % 2 == 0 and n % 16 != 0 and not power_of_two(n),
        "D of a model": lambda n: n in MODEL_WIDTHS,
    }
    forced = {"D=2^k": "pow2", "D even, not 16k": "even", "D of a model": "model"}
    if signature.family in ("norm", "modulated"):
        kinds |= {
            "D=1": lambda n: n == 1,
            "D prime": lambda n: n in WIDTHS["prime"],
            "D=2^k-1": lambda n: n > 3 and power_of_two(n + 1),
            "D=2^k+1": lambda n: n > 5 and power_of_two(n - 1),
            "D=16k": lambda n: n % 16 == 0 and not power_of_two(n),
            "D>8192": lambda n: n > 8192 + 512,
            "D=8192": lambda n: n == 8192,
            # One column beyond a block: a lost tail. Far beyond: a lost block, which one column may hide.
            "D=8193": lambda n: n == 8193,
        }
        forced |= {
            "D=1": "one",
            "D prime": "prime",
            "D=2^k-1": "pow2-1",
            "D=2^k+1": "pow2+1",
            "D=16k": "16k",
            "D=8192": "beyond",
            "D>8192": "beyond",
            "D=8193": "beyond",
        }
    if signature.family in ("qk", "rotary"):
        kinds["D odd"] = lambda n: n % 2 == 1 < n
        forced["D odd"] = "prime"
    values: dict[str, dict[str, Any]] = {"D odd": {"heads": 2}}
    if signature.family not in ("norm", "modulated"):
        kinds["128<D<256"] = lambda n: 128 < n < 256
        forced["128<D<256"] = "even"
        values["128<D<256"] = {"heads": 2, "width.class": width_class(192)}
    values |= {"D=8192": {"width.class": width_class(8192)}}
    values |= {"D>8192": {"width.class": width_class(9000)}, "D=8193": {"width.class": width_class(8193)}}
    return [
        Corner(
            name,
            {"width": forced[name], "size": "frames", **values.get(name, {})},
            lambda case, test=test: test(width(case)),  # type: ignore[misc]
        )
        for name, test in kinds.items()
    ]


def _path_corners(signature: Signature) -> list[Corner]:
    """Where another kernel or another path of it may run, with the values that tell a slip of the arithmetic.

    Left to chance, D>8192 met a mean offset in one sweep of `layer_norm` in five, near_max and variance_eps in none.
    In the same cases the path meets tensors whose strides are not their shape's: bugs that need both (`faults.wide`)
    were left to chance as well.
    """
    rank = {"rank": 3} if signature.family == "norm" else {}

    def of_rows(test: Callable[[tuple[int, ...]], bool]) -> Callable[[Case], bool]:
        return lambda case: len(_main(case).shape) == 3 and test(_main(case).shape)

    # Each arrangement at a width above any block's, and two of them at each width of a model.
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
            {"width": "model", "width.class": width_class(3072), "size": "frames"},
            lambda shape: shape[-1] == 3072,
            (Arrangement.ROWS_APART, Arrangement.INDEXED),
        ),
        "D=5120": (
            {"width": "model", "width.class": width_class(5120), "size": "frames"},
            lambda shape: shape[-1] == 5120,
            (Arrangement.COLUMNS_APART, Arrangement.ROWS_APART),
        ),
        # Of few rows the sums that cancel may round well: of one to eight, one sweep in five showed nothing.
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
    corners = []
    for path, (forced, test, arrangements) in paths.items():
        corners += _in_regimes(signature, path, {**forced, **rank}, of_rows(test), regimes, arrangements)
    return corners


def _arranged(signature: Signature, arrangement: Arrangement) -> dict[str, Any]:
    """The choices that lead to an arrangement, of what an op has."""
    rows = [name for name in signature.names if name in ACTIVATIONS | ANGLES]
    affine = list(_affine_choices(signature))
    form = "indexed" if arrangement is Arrangement.INDEXED else "[B,L,D]"
    forced: dict[str, Any] = {}
    for name in signature.modulations if arrangement is not Arrangement.ANY else ():
        forced |= {f"{name}.form": form, **arrangement.of_modulation(name, form)}
    match arrangement:
        case Arrangement.COLUMNS_APART:
            weights = [name for name in signature.names if name in WEIGHTS | {"bias"}]
            forced |= {f"{name}.layout": "strided_last" for name in (*rows, *weights)}
            forced |= {"affine": affine[-1]} if affine else {}
            forced |= {"qk.layout": "own"} if "k" in signature else {}
        case Arrangement.ROWS_APART:
            forced |= {f"{name}.layout": "gapped" for name in rows}
            if "k" in signature:
                forced |= {"qk.layout": "own", "q.gap": 8, "k.gap": 16}  # not those of one another
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
    rows = ACTIVATIONS | ANGLES | set(MODULATIONS)
    return arrangement.holds(spec for name, spec in case.tensors.items() if name in rows)


def _head_path_corners(signature: Signature) -> list[Corner]:
    """`_path_corners` of the ops that work on heads. Left to chance, a sweep of 400 cases met few of these pairs."""
    (most,) = RARE_HEADS
    paths: dict[str, tuple[dict[str, Any], Callable[[Case], bool]]] = {
        "L=1": (
            {"width": "model", "width.class": width_class(64), "size": "single_tokens", "heads": 2},
            lambda case: _main(case).shape[1] == 1 and _main(case).shape[0] > 8,
        ),
        "rows>65535": ({"width": "pow2", "size": "many_rows", "heads": 2}, lambda case: _rows(case) > 65535),
        f"H={most}": ({"width": "model", "size": "frames", "heads": most}, lambda case: _heads(case) == most),
    }
    if signature.family != "split_rotary":
        paths["D odd"] = (
            {"width": "prime", "width.class": width_class(31), "size": "frames", "heads": 2},
            lambda case: _main(case).shape[-1] % 2 == 1 < _main(case).shape[-1],
        )
    rank: dict[str, Any] = {"k.shape": "same"}
    if signature.family == "qk":
        rank |= {"qk.rank": 4, "qk.weights": "both"}
    # A mean is nothing to an RMS norm.
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
    """A path in each of the regimes, by regime the dtype in which a slip shows, and in two more.

    Args:
        signature: the op's.
        path: what reports call it.
        forced: the choices that lead to it.
        test: whether a case is on it.
        regimes: by name, the dtype.
        arrangements: how the tensors lie, of float16 and of the others.
    """
    corners = []
    # In float16 a bug overflows, in float32 it shows in the last bits.
    for regime, dtype in {"near_max": "float16", "nonfinite": "", **regimes}.items():
        arrangement = arrangements[dtype != "float16"]

        def reached(
            case: Case, regime: str = regime, dtype: str = dtype, arrangement: Arrangement = arrangement
        ) -> bool:
            on_path = len(_main(case).shape) > 2 and test(case) and _is_arranged(case, arrangement)
            return on_path and case.values == regime and dtype in ("", case.dtype)

        of_dtype = {"dtype": dtype} if dtype else {}
        if dtype == "float32" and "casting_mode" in signature:
            of_dtype["casting_mode"] = "float32"  # no rounding on the way to hide the slip
        label = ", ".join(filter(None, (path, arrangement.value, f"values={regime}{' ' if dtype else ''}{dtype}")))
        choices = {**forced, **_arranged(signature, arrangement), **of_dtype, "values": regime}
        corners.append(Corner(label, choices, reached, sparse=True))
    return corners


def _heads(case: Case) -> int:
    """How many heads x or q has; where its rank does not tell, cos's."""
    x = _main(case)
    return x.shape[-2] if len(x.shape) > 3 or "q" in case.tensors else case.tensors["cos"].shape[1]


def _shared_corners(signature: Signature) -> list[Corner]:
    """Two arguments that are one tensor: nothing forbids it of what is read alone."""
    corners = []
    for first, second in SHARED:
        if first in signature and second in signature:

            def reached(case: Case, first: str = first, second: str = second) -> bool:
                one, other = case.tensors.get(first), case.tensors.get(second)
                return one is not None and one == other and one.numel > 1 and _main(case).numel > 0

            forced: dict[str, Any] = {f"{first} is {second}": True, "size": "frames", "width": "pow2"}
            if signature.family in ("qk", "rotary", "split_rotary"):
                forced["heads"] = 2  # of none, as one in ten has, nothing shows
            if first in MODULATIONS:
                forced |= {f"{name}.{key}": v for name in (first, second) for key, v in WHOLE_ROWS.items()}
            if first == "residual":
                forced["gate.form"] = "[B,L,D]"
            if first == "q_weight":
                forced |= {"qk.weights": "both"}
            corners.append(Corner(f"{first} is {second}", forced, reached))
    return corners


def _same_form_corners(signature: Signature) -> list[Corner]:
    """Shift, scale and gate of one form; of those `TOGETHER` with each choice of weight and bias, `BY_TILE` with tiles.

    Columns are apart in one of these corners, and rows, where there are several, in another: the rows of a
    `chunk` of ``[B, 6 D]``, for one, are 6 D apart. Contiguous are those of other corners (`parity.telling`).
    """
    corners, names = [], signature.modulations
    for form in FORMS:
        # The gate too, where there is one: one of them may be read as the other two are.
        forced: dict[str, Any] = {f"{name}.form": form for name in names} | {"size": "frames", "width": "pow2"}
        if form.startswith("indexed"):
            forced |= {f"{name}.table.rows": 3 for name in names}
        arrangements = [Arrangement.ANY] if form in ONE_NUMBER else [Arrangement.COLUMNS_APART, Arrangement.ROWS_APART]
        if form in SAME_ROW:
            arrangements.pop()
        every = _affine_choices(signature) if form in TOGETHER else {}
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
                if not all(_form_reached(name, form)(case) for name in names) or _main(case).shape[1] <= least:
                    return False
                rows = [case.tensors.get(name) or case.tensors[f"{name}.table"] for name in names]
                return arrangement.holds(rows) and want in (None, ("weight" in case.tensors, "bias" in case.tensors))

            parts = (f"{' and '.join(names)}={form}", affine and f"affine={affine}", "L>199" * tiles, arrangement.value)
            label = ", ".join(filter(None, parts))
            corners.append(Corner(label, {**forced, **more}, reached, sparse=not tiles))
    return corners


def _form_reached(name: str, form: str) -> Callable[[Case], bool]:
    """The form, with B, F and L > 1, so that no two forms look alike."""

    def reached(case: Case) -> bool:
        batch, length, width = _main(case).shape
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


def _modulation_corners(name: str, bfloat16: bool) -> list[Corner]:
    def spec_of(case: Case) -> TensorSpec | None:
        return case.tensors.get(name)

    frames = {"size": "frames", "width": "pow2"}
    forms = (*FORMS, "none") if name == "gate" else FORMS
    # PyTorch's promotion takes a tensor of one element for a tensor, unlike a 0-d one: float32, it rounds less.
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
    # One row a batch item, where it could be taken for one row a token.
    corners.append(
        Corner(
            f"{name}=[B,D], B==L>1",
            {f"{name}.form": "[B,D]", "size": "square", "width": "pow2"},
            lambda case: (
                (spec := spec_of(case)) is not None
                and len(spec.shape) == 2
                and _main(case).shape[0] == _main(case).shape[1] > 1
            ),
        )
    )
    return corners


def _affine_choices(signature: Signature) -> dict[str, tuple[bool, bool]]:
    """Whether there is a weight and a bias, by the name of the choice; empty for an op that takes none."""
    if "weight" not in signature:
        return {}
    choices = {"none": (False, False), "weight": (True, False)}
    return choices | ({"bias": (False, True), "both": (True, True)} if "bias" in signature else {})


def _affine_corners(signature: Signature) -> list[Corner]:
    corners = [
        Corner(
            f"affine={name}",
            {"affine": name},
            lambda case, want=want: ("weight" in case.tensors, "bias" in case.tensors) == want,  # type: ignore[misc]
        )
        for name, want in _affine_choices(signature).items()
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


def _layout_corners(signature: Signature) -> list[Corner]:
    corners = []
    names = [n for n in ("x", "residual", "q", "k") if n in signature]
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
            # Rows that begin at multiples of four elements and not of eight: 16 bytes in float32 alone.
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
        # Of two pairings the kernels may be two.
        pairings: tuple[dict[str, Any], ...] = ({},)
        if "interleaved" in signature:
            pairings = ({"interleaved": True}, {"interleaved": False})
        corners += [_one_token_corner(name, base, flags) for flags in pairings]
    return corners


def _one_token_corner(name: str, base: Mapping[str, Any], flags: Mapping[str, Any]) -> Corner:
    """``[B, 1, ...]`` in the memory of ``[1, B, ...]``: contiguous, and its stride over L is no token's size.

    A dimension of 1 may have any stride. Liger's rotary kernel takes this one for the distance between rows, and
    writes past the end (docs/third-party.md, 4).
    """

    def reached(case: Case) -> bool:
        spec = case.tensors[name]
        swapped = len(spec.shape) > 2 and spec.shape[1] == 1 < spec.shape[0] and spec.strides[1] > spec.strides[0] > 0
        return swapped and all(case.flags[flag] == value for flag, value in flags.items())

    label = "".join(f", {flag}={value}" for flag, value in flags.items())
    layout = {"size": "one_token_each", "inplace": True, f"{name}.layout": "transposed", f"{name}.swap": 0}
    return Corner(f"{name}: L=1, outer dimensions swapped{label}", {**base, **flags, **layout}, reached)


def _swapped_heads_corner(name: str, base: Mapping[str, Any], family: str) -> Corner:
    """``[B, S, H, Dh]`` in the memory of ``[B, H, S, Dh]``, where attention leaves it: each item is dense."""

    def reached(case: Case) -> bool:
        spec = case.tensors[name]
        swapped = len(spec.shape) == 4 and min(spec.shape) > 1 and spec.strides[0] > spec.strides[2] > spec.strides[1]
        return swapped and spec.strides[-1] == 1

    layout = {f"{name}.layout": "transposed", f"{name}.swap": 1, **({"rank": 4} if family == "norm" else {})}
    return Corner(f"{name}: [B,H,S,Dh] in memory", {**base, **layout}, reached, sparse=True)


def _row_gap(spec: TensorSpec) -> bool:
    return spec.strides[-1] == 1 and spec.strides[-2] > spec.shape[-1]


def _qk_corners(signature: Signature) -> list[Corner]:
    packed = {"qk.layout": "packed", "k.shape": "same", "heads": 2, "qk.rank": 4, "k.dtype": AS_Q}

    def is_packed(case: Case) -> bool:
        q, k = case.tensors["q"], case.tensors["k"]
        return q.storage == k.storage and q.numel > 0

    corners = [
        Corner(
            "q and k the same tensor",
            {"qk.layout": "same", "k.shape": "same", "heads": 2, "size": "frames", "k.dtype": AS_Q},
            lambda case: case.tensors["q"] == case.tensors["k"] and case.tensors["q"].numel > 0,
        ),
        Corner("q and k packed", {**packed, "size": "frames"}, is_packed),
        Corner(
            "q and k packed, in place",
            {**packed, "size": "frames", "inplace": True},
            lambda case: is_packed(case) and case.flags["inplace"],
        ),
        # .contiguous() of a packed view with L == 1 may give the view itself: an in-place bug upstream, and a write
        # into the input out of place. Left to chance, 3 of 20 sweeps had no such case.
        Corner(
            "q and k packed, B=L=1",
            {**packed, "size": "one_token", "sizes": ONE_ROW, "inplace": False, "values": "normal"},
            lambda case: is_packed(case) and not case.flags["inplace"] and case.tensors["q"].shape[:2] == (1, 1),
        ),
        Corner(
            "q and k packed, in place, L=1",
            {**packed, "size": "one_token", "inplace": True},
            lambda case: is_packed(case) and case.flags["inplace"] and case.tensors["q"].shape[1] == 1,
        ),
        Corner(
            "k: other head count",
            {"k.shape": "heads", "size": "frames", "heads": 2, "qk.rank": 4},
            lambda case: (
                len(case.tensors["k"].shape) == 4
                and case.tensors["k"].shape[2] != case.tensors["q"].shape[2]
                and case.tensors["q"].numel > 0
            ),
        ),
        Corner(
            "k: fewer heads, other dtype",
            {
                "k.shape": "fewer heads",
                "size": "frames",
                "heads": 5,
                "dtype": "float16",
                "k.dtype": "float32",
                "inplace": False,
            },
            lambda case: (
                case.tensors["k"].shape[-2] < case.tensors["q"].shape[-2]
                and case.tensors["k"].dtype != case.tensors["q"].dtype
                and case.tensors["k"].numel > 0
            ),
        ),
        Corner(
            "in place, last dimension strided",
            {"qk.layout": "own", "inplace": True, "q.layout": "strided_last", "size": "frames", "heads": 2},
            lambda case: case.flags["inplace"] and case.tensors["q"].strides[-1] > 1 and case.tensors["q"].numel > 0,
        ),
    ]
    corners += [
        Corner(
            f"weights={weights}",
            {"qk.weights": weights},
            lambda case, want=want: ("q_weight" in case.tensors, "k_weight" in case.tensors) == want,  # type: ignore[misc]
        )
        for weights, want in {"both": (1, 1), "none": (0, 0), "q": (1, 0), "k": (0, 1)}.items()
    ]
    if "cos" not in signature:
        corners += [
            Corner(
                "k: other length",
                # In place, what a kernel leaves out is what was there: left to chance, one sweep of 20 had no other.
                {"k.shape": "length", "size": "frames", "heads": 2, "qk.rank": 4, "inplace": False},
                lambda case: (
                    len(case.tensors["k"].shape) == 4
                    and case.tensors["k"].shape[1] != case.tensors["q"].shape[1]
                    and case.tensors["q"].numel > 0
                    and not case.flags["inplace"]
                ),
            ),
            Corner(
                "q and k of rank 3, k shorter",
                {"k.shape": "shorter", "size": "frames", "heads": 2, "qk.rank": 3},
                lambda case: len(case.tensors["q"].shape) == 3 and _rows(case) > case.tensors["k"].shape[0] * 2 > 0,
            ),
            Corner(
                "k: other rank",
                {"k.shape": "rank", "size": "frames"},
                lambda case: len(case.tensors["k"].shape) == 2,
            ),
        ]
    return corners


def _rotary_corners(signature: Signature) -> list[Corner]:
    def cos(case: Case) -> TensorSpec:
        return case.tensors["cos"]

    frames = {"size": "frames", "heads": 2, "width": "model"}
    corners = [
        Corner(
            "cos: another dtype",
            {**frames, "dtype": "float16", "cos.dtype": "float32"},
            lambda case: cos(case).dtype != case.dtype and _main(case).numel > 0,
        ),
        Corner(
            "cos: last dimension strided",
            {**frames, "cos.layout": "strided_last"},
            lambda case: cos(case).strides[-1] > 1 and cos(case).numel > 1,
        ),
        Corner(
            "cos: stride 0",
            {**frames, "cos.layout": "expanded"},
            lambda case: 0 in cos(case).strides and cos(case).numel > 1,
        ),
    ]
    # One of the two read as the other is: cos narrower than sin, then wider; of one row a token, then one an item.
    forms = {"[S,Dr/2]": 2, "[B,S,Dr/2]": 3}
    other = {"[S,Dr/2]": "[B,S,Dr/2]", "[B,S,Dr/2]": "[S,Dr/2]"}
    for form, dtypes in zip(forms, (("float16", "float32"), ("float32", "float16")), strict=True):

        def differ(case: Case, form: str = form, dtypes: tuple[str, str] = dtypes) -> bool:
            sin = case.tensors["sin"]
            split = signature.family == "split_rotary"
            apart = split or (len(cos(case).shape) == forms[form] != len(sin.shape) and _main(case).shape[0] > 1)
            return apart and (cos(case).dtype, sin.dtype) == dtypes and cos(case).numel > 0

        name = f"cos {dtypes[0]}, sin {dtypes[1]}"
        mixed = {"cos.form": form, "sin.form": other[form], "dtype": "float32"}
        mixed |= {"cos.dtype": dtypes[0], "sin.dtype": dtypes[1]}
        corners.append(Corner(name, {**frames, **mixed}, differ))
    if signature.family == "split_rotary":
        # As diffusers' LTX-2 hands them over.
        corners.append(
            Corner(
                "cos: [B,S,H,Dh/2] in memory",
                {**frames, "cos.layout": "transposed", "cos.swap": 1},
                lambda case: min(cos(case).shape) > 1 and cos(case).strides[2] > cos(case).strides[1] > 0,
                sparse=True,
            )
        )
        return corners
    for form, rank in forms.items():
        corners.append(
            Corner(
                f"cos={form}",
                {**frames, "cos.form": form},
                lambda case, rank=rank: len(cos(case).shape) == rank and _main(case).shape[0] > 1,  # type: ignore[misc]
            )
        )
    corners.append(
        Corner(
            "rotary dims below head_dim/4",
            {**frames, "rotary_dim": "few"},
            lambda case: 8 * cos(case).shape[-1] < _main(case).shape[-1],
        )
    )
    corners += [
        Corner(
            f"Dr=head_dim-2, interleaved={interleaved}",
            {**frames, "rotary_dim": "all but two", "interleaved": interleaved},
            lambda case, want=interleaved: (  # type: ignore[misc]
                case.flags["interleaved"] == want
                and 2 * cos(case).shape[-1] == _main(case).shape[-1] - 2
                and _main(case).shape[2] > 1
            ),
        )
        for interleaved in (True, False)
    ]
    corners += [
        Corner(
            f"rotary dims below head_dim, interleaved={interleaved}",
            {**frames, "rotary_dim": "partial", "interleaved": interleaved},
            lambda case, want=interleaved: (  # type: ignore[misc]
                case.flags["interleaved"] == want
                and 2 * cos(case).shape[-1] < _main(case).shape[-1]
                and _main(case).shape[2] > 1
            ),
        )
        for interleaved in (True, False)
    ]
    return corners
