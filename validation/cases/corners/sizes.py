"""Corners of batches, tokens, heads, ranks and widths."""

from collections.abc import Callable
from typing import Any

from validation.cases.case import Case
from validation.cases.corners.corner import Corner, all_rows, heads, main, rows
from validation.cases.layouts import FAR, FAR_LAYOUTS
from validation.cases.signature import Signature
from validation.cases.sizes import MANY_HEADS, RARE_HEADS, RARE_SIZES, WIDTHS, width_class

# Helios full width and head, Hunyuan3D-2 full width and head (5120, 40 x 128; 1024, 16 x 64), FLUX full width, and
# widths of other models.
MODEL_WIDTHS = frozenset(WIDTHS["model"])

# Widths that only a forced case is sure to have, with few rows: the counts of blocks of 1024, 2048 and 4096 columns
# that no other width has. Before these corners a sum that lost the sixth or seventh of its blocks passed every sweep.
COUNTED = (3584, 4608, 5376, 6144, 7168, 10240, 12288, 14336, 18432, 24576)


def size_corners(signature: Signature) -> list[Corner]:
    """Batches, tokens, frames, rows, heads and ranks."""
    rank = {"norm": {"rank": 3}, "qk": {"qk.rank": 4}}.get(signature.family, {})
    of_heads = {"heads": 2} if signature.family in ("qk", "rotary", "split_rotary") else {}

    # A q longer than k does not have the tokens that its size asks for: one sweep of 20 had no B == L.
    same = {"k.shape": "same"} if signature.family == "qk" else {}

    def corner(name: str, size: str, reached: Callable[[Case], bool], **more: Any) -> Corner:
        return Corner(name, {"size": size, **same, **rank, **of_heads, **more}, reached)

    def shape(case: Case) -> tuple[int, ...]:
        return main(case).shape

    corners = [
        corner("B=0", "no_batch", lambda case: len(shape(case)) > 2 and shape(case)[0] == 0),
        corner("L=0", "no_tokens", lambda case: len(shape(case)) > 2 and shape(case)[1] == 0 < shape(case)[0]),
        corner("B=1", "one_batch", lambda case: len(shape(case)) > 2 and shape(case)[0] == 1),
        corner("B>1", "frames", lambda case: len(shape(case)) > 2 and shape(case)[0] > 1),
        corner("L=1", "one_token", lambda case: len(shape(case)) > 2 and shape(case)[1] == 1),
        corner("L%16==0", "sixteens", lambda case: len(shape(case)) > 2 and shape(case)[1] % 16 == 0 < shape(case)[1]),
        corner("B==L>1", "square", lambda case: len(shape(case)) > 2 and shape(case)[0] == shape(case)[1] > 1),
        corner("rows>32, ragged", "ragged", lambda case: rows(case) > 32 and rows(case) % 32 != 0, width="pow2"),
        corner("rows>65535", "many_rows", lambda case: rows(case) > 65535, width="pow2"),
    ]
    # With a different row for each item and each token, where the op takes rows.
    each = {f"{name}.form": "[B,L,D]" for name in signature.modulations} | {"cos.form": "[B,S,Dr/2]"}
    each |= {"sin.form": "[B,S,Dr/2]", "width": "pow2", "k.shape": "same"}
    many = {"B>8": ("items", 0, 8), "L>99": ("long_frames", 1, 99), "L>65536": ("many_tokens", 1, 65536)}
    if signature.family not in ("norm", "qk") or "cos" in signature:
        # Ops in which items are not just rows: a video's pixels are the items of attention over time.
        many["B>65535"] = ("many_items", 0, 65535)
    for name, (size, axis, least) in many.items():
        wide = {"width": "model", "width.class": width_class(64)} if size == "long_frames" else {}

        def beyond(case: Case, axis: int = axis, least: int = least) -> bool:
            return len(shape(case)) > 2 and shape(case)[axis] > least

        more = Corner(name, {"size": size, **rank, **of_heads, **each, **wide}, beyond, sparse=size in RARE_SIZES)
        corners.append(more)
    if signature.modulations:
        frames = {f"{name}.form": "[B,F,1,D]" for name in signature.modulations}

        wide = {"width": "model", "width.class": width_class(64)}
        for least, size in {8: "many_frames", 64: "more_frames"}.items():

            def many_frames(case: Case, least: int = least) -> bool:
                shapes = [case.tensors[name].shape for name in signature.modulations if name in case.tensors]
                return len(shapes) == len(frames) and all(len(s) == 4 and s[0] > 1 and s[1] > least for s in shapes)

            forced = {"size": size, **wide, **frames}
            corners.append(Corner(f"F>{least}", forced, many_frames, sparse=least > 8))
    if of_heads:
        corners.append(Corner("H=1", {"heads": 1, **rank}, lambda case: shape(case)[2:3] == (1,)))
        if signature.family != "split_rotary":
            corners.append(
                Corner("H=0", {"heads": 0, "k.shape": "same", **rank}, lambda case: shape(case)[2:3] == (0,))
            )
        else:
            corners[-1] = Corner("H=1", {"heads": 1}, lambda case: case.tensors["cos"].shape[1] == 1)
        # With grouped queries too, if there is a k.
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
        corners.append(_many_heads_corner(signature))
    if signature.family == "norm":
        corners += [
            Corner(f"rank={n}", {"rank": n, "size": "frames"}, lambda case, n=n: len(shape(case)) == n)  # type: ignore[misc]
            for n in (1, 2, 3, 4)
        ]
    return corners


def _many_heads_corner(signature: Signature) -> Corner:
    """More heads than 16 bits count, and more rows than Helios has at 540p; rotated in halves, and not all channels."""
    forced: dict[str, Any] = {"size": "many_heads", "heads": MANY_HEADS[0], "width": "pow2"}
    forced |= {"width.class": width_class(4), "k.shape": "fewer heads", "qk.rank": 4}
    label = f"H={MANY_HEADS[0]}, rows>441600"
    if "interleaved" in signature:
        forced |= {"interleaved": False, "rotary_dim": "partial"}
        label += ", interleaved=False, rotary dims below head_dim"

    def reached(case: Case) -> bool:
        if heads(case) != MANY_HEADS[0] or all_rows(case) <= 441_600:
            return False
        if "interleaved" not in signature:
            return True
        return not case.flags["interleaved"] and 2 * case.tensors["cos"].shape[-1] < main(case).shape[-1]

    return Corner(label, forced, reached, sparse=True)


def width_corners(signature: Signature) -> list[Corner]:
    """Widths: the last dimension by its divisors, and beyond a block of columns."""

    def width(case: Case) -> int:
        if signature.family == "split_rotary":
            return 2 * case.tensors["cos"].shape[-1]
        return main(case).shape[-1]

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
            # One column beyond a block exposes a lost tail; far beyond exposes a lost block, which one column may hide.
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
    corners = [
        Corner(
            name,
            {"width": forced[name], "size": "frames", **values.get(name, {})},
            lambda case, test=test: test(width(case)),  # type: ignore[misc]
        )
        for name, test in kinds.items()
    ]
    for n in COUNTED if signature.family in ("norm", "modulated") else ():
        kind = "model" if n in WIDTHS["model"] else "beyond"
        few = {"width": kind, "width.class": width_class(n), "width.member": n, "size": "general"}
        corners.append(Corner(f"D={n}", few, lambda case, n=n: width(case) == n, sparse=True))  # type: ignore[misc]
    return corners


def _of_four(signature: Signature) -> dict[str, Any]:
    """Choices of small rows, one tensor apart from the others."""
    own = {"qk.layout": "own", "k.shape": "same", "qk.rank": 4} if signature.family == "qk" else {}
    return {"dtype": "float16", "width": "pow2", "width.class": width_class(4), "rank": 3, **own}


def far_corners(signature: Signature) -> list[Corner]:
    """Items, rows, heads and columns of which the last is more than 2^31 elements from the first.

    They span 9 GB of float16, of which some hundred elements are used: on the CPU the rest gets no memory.
    """
    name = "q" if "q" in signature else "x"
    forced = _of_four(signature)
    corners = []
    # Nine of what is far apart; of columns four, a whole row.
    counts = {"item": ("nine_items", 2), "row": ("nine_rows", 2), "head": ("one_token", 9), "column": ("one_token", 1)}
    for what, (size, of_heads) in counts.items():
        if what == "head" and signature.family not in ("qk", "rotary"):
            continue
        layout = f"far {what}"
        axis = FAR_LAYOUTS[layout]

        def reached(case: Case, axis: int = axis) -> bool:
            spec = case.tensors[name]
            far = len(spec.shape) > axis and (spec.shape[axis] - 1) * spec.strides[axis] > FAR
            return spec.numel > 0 and far

        far = {**forced, f"{name}.layout": layout, "size": size, "heads": of_heads}
        corners.append(Corner(f"{name}: {what}s past 2^31", far, reached, sparse=True))
    return corners


def most_rows_corner(signature: Signature) -> Corner:
    """More than 2^23 rows, which the CPU has not the time for."""
    forms = {f"{name}.form": "[B,L,D]" for name in signature.modulations}
    forced = {**_of_four(signature), "size": "most_rows", "heads": 2, **forms}
    return Corner("rows>2^23", forced, lambda case: rows(case) > 2**23, sparse=True)
