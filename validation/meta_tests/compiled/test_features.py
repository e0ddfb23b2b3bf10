"""Features of Triton's language, compiled and executed for each target, against torch; and what is refused."""

import json
import re
from typing import Any

import pytest

from validation.meta_tests.compiled.without_interpreter import printed_by

TARGETS = ("sm_80", "sm_90", "sm_100")
# Which lets the launch of a feature end with a violation: faults that are planted.
PLANTED = {"assertion that fails": "ASSERTION_FAILED", "last program relaxed": "RACE"}


@pytest.fixture(scope="module", params=TARGETS)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"target": request.param, **json.loads(printed_by("features", request.param)[-1])}


def test_every_feature_gives_what_torch_gives(found: dict[str, Any]) -> None:
    target = found["target"]
    features = {name: one for name, one in found.items() if isinstance(one, list)}
    assert len(features) > 195
    wrong = {name: (error, bound) for name, (error, bound, _, _) in features.items() if not error <= bound}
    # It writes nothing where it fails.
    assert wrong.pop("assertion that fails") == (1.0, 0)
    if target == "sm_80":
        # Triton's inline PTX for targets without the conversion rounds a tie away from zero.
        error, _ = wrong.pop("torch.bfloat16 to torch.float8_e5m2")
        assert error < 2.0**-3
    assert not wrong


def test_right_kernels_violate_nothing_and_planted_faults_are_named(found: dict[str, Any]) -> None:
    violations = {name: one[2] for name, one in found.items() if isinstance(one, list) and one[2]}
    assert violations.keys() == PLANTED.keys()
    for name, kind in PLANTED.items():
        assert all(text.startswith(kind) and "feature_kernels.py" in text for text in violations[name])
    assert "'out of range' does not hold" in violations["assertion that fails"][0]


def test_runs_whose_bits_depend_on_order_say_so_and_others_do_not(found: dict[str, Any]) -> None:
    unordered = {name for name, one in found.items() if isinstance(one, list) and one[3]}
    floats = ("float16", "bfloat16", "float32", "float64")
    expected = {f"{name} torch.{dtype}" for name in ("atomic add", "adjacent atomic sums") for dtype in floats}
    expected |= {f"atomic xchg torch.{dtype}" for dtype in ("int32", "int64", "float32", "float64")}
    expected |= {"lock", "compare and swap"}
    assert unordered == expected


REFUSED = {
    "dot": r"mma|tcgen05|fence\.proxy\.async",
    "tensor descriptor": r"tensormap|mbarrier|cp\.async\.bulk|cvta",
    "print": r"vprintf|cvta\.local",
    "sin float64": "with functions",
    "log float64": r"rcp\.approx\.ftz\.f64",
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_is_not_executed_is_refused_by_name(found: dict[str, Any], feature: str) -> None:
    if feature == "tensor descriptor" and found["target"] == "sm_80":
        assert f"refused {feature}" not in found  # plain loads there
        return
    message = found[f"refused {feature}"]
    assert re.search(REFUSED[feature], message)
    assert "is not executed" in message
