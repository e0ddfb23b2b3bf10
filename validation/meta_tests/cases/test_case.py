"""Cases: to JSON and back, their tensors in memory, and refused values."""

import itertools
import json
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.cases.corners import corners_of, declared_corners
from validation.cases.layouts import gap_after
from validation.cases.pool import MOST_BYTES, draw_cases
from validation.cases.signature import Signature
from validation.cases.sizes import HEAD_DIMS, ODD_HEAD_DIMS, WIDTHS, width_class
from validation.cases.strategies import WITHOUT_EPS, cases
from validation.cases.tensors import as_bits, materialise, poison
from validation.cases.values import EXACT, REGIMES, draw
from validation.errors import UsageError
from validation.judge.signature import signature_of
from validation.parity.plan import shares
from validation.parity.profiles import PROFILES

OPS = reference_ops.OP_NAMES


def a_case(**changes: Any) -> dict[str, Any]:
    x = {"shape": [2, 3, 4], "dtype": "bfloat16", "strides": [24, 8, 2], "offset": 1, "storage": "x"}
    row = {"shape": [4], "dtype": "float32", "strides": [1], "offset": 0, "storage": "shift"}
    data = {
        "op": "layer_norm_scale_shift",
        "tensors": {"x": x, "shift": row, "scale": {**row, "storage": "scale"}},
        "flags": {"eps": 1e-6, "casting_mode": "float32"},
        "values": "normal",
        "seed": 7,
    }
    return data | changes


@pytest.mark.parametrize("op", OPS)
def test_a_case_survives_json(op: str) -> None:
    @settings(max_examples=100, deadline=None, database=None)
    @given(cases(signature_of(op)))
    def check(case: Case) -> None:
        assert Case.from_json(case.to_json()) == case

    check()


@pytest.mark.parametrize("op", OPS)
def test_every_declared_corner_is_reached_when_it_is_forced(op: str) -> None:
    corners = declared_corners(signature_of(op))
    assert len({corner.name for corner in corners}) == len(corners)
    for corner in corners:
        drawn = draw_cases(cases(signature_of(op), corner.forced), seed=0, count=3)
        for case in drawn:
            assert (corner.name in corners_of(case, corners)) == corner.reached(case)
        assert any(corner.reached(case) for case in drawn), corner.name


def test_the_same_case_gives_the_same_bits_twice() -> None:
    case = Case.from_dict(a_case())
    first, second = materialise(case), materialise(case)
    for name, storage in first.storages.items():
        assert torch.equal(as_bits(storage.memory), as_bits(second.storages[name].memory))


def test_tensors_lie_where_the_case_says_and_holes_hold_poison() -> None:
    case = Case.from_dict(a_case())
    made = materialise(case)
    x, storage = made.kwargs["x"], made.storages["x"]
    assert x.shape == (2, 3, 4)
    assert x.stride() == (24, 8, 2)
    assert x.storage_offset() == storage.start + 1
    assert bool(x.isfinite().all())
    elements = torch.zeros(storage.memory.shape, dtype=torch.bool)
    elements.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    expected = torch.empty_like(storage.memory)
    poison(expected)
    assert torch.equal(as_bits(storage.memory)[~elements], as_bits(expected)[~elements])
    assert (storage.memory.data_ptr() + storage.start * 2) % 64 == 0


def test_packed_q_and_k_share_memory() -> None:
    spec = TensorSpec((1, 2, 2, 4), "float32", (48, 24, 4, 1), 0, "qkv")
    k = TensorSpec((1, 2, 2, 4), "float32", (48, 24, 4, 1), 8, "qkv")
    made = materialise(Case("qk_norm", {"q": spec, "k": k}, {}, "normal", 0))
    assert made.tensors["q"].untyped_storage().data_ptr() == made.tensors["k"].untyped_storage().data_ptr()
    assert bool(made.tensors["k"].isfinite().all())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_value_regimes_are_what_they_say(regime: str, dtype: str) -> None:
    spec = TensorSpec((4, 64, 256), dtype, (64 * 256, 256, 1), 0, "x")
    x = materialise(Case("layer_norm", {"x": spec}, {"eps": 1e-6}, regime, 3)).tensors["x"]
    rows = x.double().reshape(-1, 256)
    info = torch.finfo(x.dtype)
    match regime:
        case "normal" | "dit":
            assert 0.5 < rows.std() < 50
        case "mean_offset":
            assert (rows.mean(1).abs() - (100 if dtype == "float32" else 30)).abs().max() < 1
        case "row_mean":
            sigmas = (rows.mean(1) / rows.std(1)).abs()
            assert 0.0 < sigmas.min() < 0.3 < 0.8 < sigmas.max() < 1.3
        case "beyond_float16":
            least, most = (65504, 65504) if dtype == "float16" else (0.99e5, 1.01e6)
            assert bool(((rows.abs() >= least) & (rows.abs() <= most)).all())
        case "variance_eps":
            assert 0.5e-6 < rows.var() < 2e-6
        case "constant_rows":
            assert bool((rows == rows[:, :1]).all())
        case "outlier_channels":
            assert rows.abs().amax(0).max() > 100 * rows.abs().amax(0).median()
        case "tiny":
            assert 0 < rows.abs().max() < info.tiny
        case "near_max":
            assert rows.abs().min() > 3e4
            assert rows.isfinite().all()
        case "zeros":
            assert bool((rows == 0).all())
        case "nonfinite":
            broken = (~rows.isfinite()).any(1).double().mean()
            assert 0.1 < broken < 0.6
        case "exact":  # eighths, whose sum is that of 256 equal integers
            assert bool((8 * rows == (8 * rows).round()).all())
            assert bool((8 * rows.mean(1) == (8 * rows.mean(1)).round()).all())
        case "ties":
            assert bool((rows == rows.round()).all())
            # Most have as many bits as the dtype; about an eighth of the sums of two are half-way between its numbers.
            assert rows.abs().max() > 1.9 / info.eps > rows.abs().max() / 1.1
            sums = rows[:, 0::2] + 2 * rows[:, 1::2]
            apart = 2 * info.eps * sums.abs().log2().floor().exp2() / 2
            assert ((sums % apart).abs() == apart / 2).double().mean() > 0.1


@pytest.mark.parametrize("name", ["weight", "shift", "scale", "gate"])
@pytest.mark.parametrize("shape", [(64,), (2, 1, 64), (2, 12, 64)])
def test_parameters_follow_the_regimes_that_are_about_them(name: str, shape: tuple[int, ...]) -> None:
    def drawn(regime: str, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return draw(regime, name, shape, torch.float16, 1e-6, generator).reshape(-1, 64)

    # NaN and both infinities, but not in a gate that all rows share; some rows have none; zeros can meet an inf.
    spoiled = drawn("nonfinite")
    clean = spoiled.isfinite().all(1)
    assert bool(clean.all()) == (name == "gate" and len(spoiled) == 1)
    assert bool(clean.any()) == (len(spoiled) > 1 or name == "gate")
    if not bool(clean.all()):
        assert all(bool(hit.any()) for hit in (spoiled.isnan(), spoiled == torch.inf, spoiled == -torch.inf))
    assert ((spoiled == 0).double().mean() > 0.3) == (name != "weight")
    # Scale always, weight and shift at random, the gate never.
    large = {float(drawn("large_modulation", seed).abs().max()) for seed in range(20)}
    assert (max(large) == 65504.0) == (name != "gate")
    assert (min(large) == 65504.0) == (name == "scale")
    if name in ("scale", "gate"):
        assert set(drawn("ties").flatten().tolist()) == {1.0, 2.0, -2.0, -3.0}


@pytest.mark.parametrize("shape", [(3, 8), (3, 1, 8), (1, 5, 8), (3, 5, 8), (3, 5, 1, 8), (3, 1, 1, 8)])
@pytest.mark.parametrize("regime", ["some_zero", "some_equal"])
def test_modulation_that_is_zero_or_equal_for_some_is_not_for_all(regime: str, shape: tuple[int, ...]) -> None:
    made = draw(regime, "scale", shape, torch.float32, 1e-6, torch.Generator().manual_seed(0))
    rows = made.reshape(shape[0], -1, 8)
    rows = rows if 1 not in rows.shape[:2] else rows.reshape(1, -1, 8)
    alike = rows == (0.0 if regime == "some_zero" else rows[:, :1])
    looks, items = alike.all(-1), len(rows)
    assert bool(looks[:, : 1 if regime == "some_zero" else 2].all())  # the first rows of each item
    assert bool(looks[0].all()) == (items > 1)  # all of the first item, if there is another
    assert not bool(looks[-1, -1])
    if items > 1:
        assert not bool((rows[0] == rows[1]).all())


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (1, 1, 8), (8,), ()])
def test_modulation_of_one_row_or_none_has_no_rows_that_differ(shape: tuple[int, ...]) -> None:
    for regime in ("some_zero", "some_equal"):
        made = draw(regime, "gate", shape, torch.float32, 1e-6, torch.Generator().manual_seed(0))
        assert made.shape == shape
        assert not bool((made == 0).any())


def test_rows_with_and_without_what_is_not_finite_are_in_every_tensor_of_two_rows() -> None:
    for seed in range(50):
        x = draw("nonfinite", "x", (2, 1, 4), torch.float32, 1e-6, torch.Generator().manual_seed(seed))
        assert x.isfinite().all(-1).sum() == 1


def test_an_eps_of_0_is_drawn_where_no_row_divides_by_its_own_rounding() -> None:
    drawn = draw_cases(cases(signature_of("layer_norm")), seed=0, count=300)
    regimes = {case.values for case in drawn if case.flags["eps"] == 0.0}
    assert regimes == {*WITHOUT_EPS, EXACT}


def test_the_seed_alone_decides_what_is_drawn() -> None:
    strategy = cases(signature_of("scale_residual_layer_norm_scale_shift"))
    drawn = draw_cases(strategy, seed=5, count=200)
    assert draw_cases(strategy, seed=6, count=1) != drawn[:1]
    assert draw_cases(strategy, seed=5, count=3) == drawn[:3]
    # 200 and 200, of the engine 200 and 192.
    assert len({tuple(spec.shape for spec in case.tensors.values()) for case in drawn}) > 190
    assert len({case.seed for case in drawn}) == 200


def test_what_bytes_make_no_value_of_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=f"{MOST_BYTES} bytes"):
        draw_cases(st.binary(min_size=MOST_BYTES + 1, max_size=MOST_BYTES + 1), seed=0, count=1)
    with pytest.raises(RuntimeError, match="drew nothing"):
        draw_cases(st.integers(0, 9).filter(lambda _: False), seed=0, count=1)
    assert draw_cases(st.integers(0, 9), seed=0, count=2) == draw_cases(st.integers(0, 9), seed=0, count=2)


def test_a_corner_that_is_a_meeting_of_two_has_half_the_cases() -> None:
    signature = signature_of("layer_norm")
    sparse = {corner.sparse: corner for corner in declared_corners(signature)}
    counts = {
        name: [sum(count for _, count in shares(sparse[half], profile, signature)) for half in (False, True)]
        for name, profile in PROFILES.items()
    }
    assert counts == {"quick": [1, 1], "default": [2, 1], "nightly": [10, 5]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"op": 3}, "op"),
        ({"values": "odd"}, "values"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"tensors": []}, "tensors"),
        ({"tensors": {}}, "x, or q and k"),
        ({"tensors": {"x": 3}}, "tensors.x"),
        ({"flags": 3}, "flags"),
        ({"extra": 1}, "extra"),
        ({"literals": {"y": [1.0]}}, "literals.y"),
        ({"literals": {"shift": [1.0]}}, "a list of 4 numbers"),
        ({"literals": {"shift": [1.0, 2.0, 3.0, "x"]}}, "literals.shift"),
    ],
)
def test_a_bad_case_is_refused_by_name(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(UsageError, match=names):
        Case.from_dict(a_case(**changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [2, -3, 4]), ("strides", [1, 1]), ("dtype", "float8"), ("offset", -1), ("storage", 1), ("shape", "2")],
)
def test_a_bad_tensor_is_refused_by_name(field: str, value: object) -> None:
    data = a_case()
    data["tensors"]["x"][field] = value
    with pytest.raises(UsageError, match=r"tensors\.x"):
        Case.from_dict(data)


def test_two_dtypes_in_one_storage_are_refused() -> None:
    data = a_case()
    data["tensors"]["shift"]["storage"] = "x"
    with pytest.raises(UsageError, match=r"tensors\.shift\.dtype"):
        Case.from_dict(data)


@pytest.mark.parametrize("text", ["", "nothing", "[1]", '{"op": "layer_norm"}', json.dumps({"op": 1})])
def test_text_that_is_no_case_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="case"):
        Case.from_json(text)


def test_an_op_with_an_unknown_argument_is_refused() -> None:
    def strange(x: torch.Tensor, momentum: float) -> torch.Tensor:
        return x * momentum

    with pytest.raises(UsageError, match="momentum"):
        Signature.of("strange", strange)


@pytest.mark.parametrize("widths", [WIDTHS, HEAD_DIMS | ODD_HEAD_DIMS])
def test_a_gap_leads_from_a_class_of_widths_to_one_class_of_strides(widths: dict[str, tuple[int, ...]]) -> None:
    """Otherwise the sizes of a key would have no class for some of its widths: 4 after 12 gives 16, after 20 24."""
    kinds = [{w: width_class(w) for w in kind} for kind in widths.values()]
    # Each set of widths once, however many of its widths are asked for: 16 s for each of them.
    classes = {
        tuple(w for kind in kinds if row in kind for w in kind if kind[w] == kind[row])
        for row in itertools.chain(*kinds)
    }
    assert set(itertools.chain(*classes)) == set(itertools.chain(*widths.values()))
    for of_class, gap, part in itertools.product(classes, (8, 1, 3, 16, 4), (1, 2, 4)):
        strides = {w // part + gap_after(w // part, gap) for w in of_class}
        assert len({math.gcd(stride, 16) for stride in strides}) == 1, (of_class[0], gap, part)
