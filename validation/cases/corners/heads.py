"""Corners of queries, keys and rotation."""

from validation.cases.case import Case, TensorSpec
from validation.cases.corners.corner import Corner, main, rows
from validation.cases.families import AS_Q
from validation.cases.signature import Signature
from validation.cases.sizes import ONE_ROW


def qk_corners(signature: Signature) -> list[Corner]:
    """Q and k in one buffer, as one tensor, with different heads, lengths and dtypes; their weights."""
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
        # .contiguous() of a packed view with L == 1 may return the view itself: an in-place bug upstream, and out of
        # place a write into the input. Left to chance, 3 of 20 sweeps had no such case.
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
                # In place, an element that a kernel leaves out keeps its value: left to chance, one sweep of 20 had
                # only in-place cases.
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
                lambda case: len(case.tensors["q"].shape) == 3 and rows(case) > case.tensors["k"].shape[0] * 2 > 0,
            ),
            Corner(
                "k: other rank",
                {"k.shape": "rank", "size": "frames"},
                lambda case: len(case.tensors["k"].shape) == 2,
            ),
        ]
    return corners


def rotary_corners(signature: Signature) -> list[Corner]:
    """Cos and sin: forms, dtypes, layouts; how many channels are rotated."""

    def cos(case: Case) -> TensorSpec:
        return case.tensors["cos"]

    frames = {"size": "frames", "heads": 2, "width": "model"}
    corners = [
        Corner(
            "cos: another dtype",
            {**frames, "dtype": "float16", "cos.dtype": "float32"},
            lambda case: cos(case).dtype != case.dtype and main(case).numel > 0,
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
    # Exposes reading one of the two like the other: cos narrower than sin, then wider; rows by token, then by item.
    forms = {"[S,Dr/2]": 2, "[B,S,Dr/2]": 3}
    other = {"[S,Dr/2]": "[B,S,Dr/2]", "[B,S,Dr/2]": "[S,Dr/2]"}
    for form, dtypes in zip(forms, (("float16", "float32"), ("float32", "float16")), strict=True):

        def differ(case: Case, form: str = form, dtypes: tuple[str, str] = dtypes) -> bool:
            sin = case.tensors["sin"]
            split = signature.family == "split_rotary"
            apart = split or (len(cos(case).shape) == forms[form] != len(sin.shape) and main(case).shape[0] > 1)
            return apart and (cos(case).dtype, sin.dtype) == dtypes and cos(case).numel > 0

        name = f"cos {dtypes[0]}, sin {dtypes[1]}"
        mixed = {"cos.form": form, "sin.form": other[form], "dtype": "float32"}
        mixed |= {"cos.dtype": dtypes[0], "sin.dtype": dtypes[1]}
        corners.append(Corner(name, {**frames, **mixed}, differ))
    if signature.family == "split_rotary":
        # As diffusers' LTX-2 passes them.
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
                lambda case, rank=rank: len(cos(case).shape) == rank and main(case).shape[0] > 1,  # type: ignore[misc]
            )
        )
    corners.append(
        Corner(
            "rotary dims below head_dim/4",
            {**frames, "rotary_dim": "few"},
            lambda case: 8 * cos(case).shape[-1] < main(case).shape[-1],
        )
    )
    corners += [
        Corner(
            f"Dr=head_dim-2, interleaved={interleaved}",
            {**frames, "rotary_dim": "all but two", "interleaved": interleaved},
            lambda case, want=interleaved: (  # type: ignore[misc]
                case.flags["interleaved"] == want
                and 2 * cos(case).shape[-1] == main(case).shape[-1] - 2
                and main(case).shape[2] > 1
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
                and 2 * cos(case).shape[-1] < main(case).shape[-1]
                and main(case).shape[2] > 1
            ),
        )
        for interleaved in (True, False)
    ]
    return corners
