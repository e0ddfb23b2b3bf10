"""What a run shows of a ratio: an op at its margin fails as often as the text says, and fewer cases help nobody."""

import math
import random
import statistics

import pytest

from validation.equivalence import CONFIDENCE, shown, student

pytestmark = pytest.mark.unit

MARGIN = 1.015


def ratios(mean: float, cases: int, source: random.Random, spread: float = 0.02) -> list[float]:
    return [mean * math.exp(source.gauss(0.0, spread)) for _ in range(cases)]


@pytest.mark.parametrize("cases", [5, 20, 100])
def test_an_op_at_its_margin_fails_with_the_stated_chance(cases: int) -> None:
    source = random.Random(0)
    failed = sum(not shown(ratios(2.0, cases, source), 2.0).within for _ in range(4000)) / 4000
    assert failed == pytest.approx(CONFIDENCE, abs=0.012)  # 3.5 standard errors


def test_fewer_cases_make_it_harder() -> None:
    source = random.Random(1)
    passed = [
        sum(shown(ratios(1.005, cases, source), MARGIN).within for _ in range(400)) for cases in (1, 2, 5, 20, 100)
    ]
    assert passed == sorted(passed)
    assert passed[0] == 0
    assert passed[-1] >= 390


def test_a_nearer_case_counts_as_twice_as_near_at_most() -> None:
    worse = [1.03] * 50
    assert not shown(worse, MARGIN).within
    assert not shown([*worse, 1e-6], MARGIN).within  # 1.03 ** 50 is 4.4: more than a factor of two makes up for
    assert shown([*worse, *[1e-6] * 2], MARGIN).mean == shown([*worse, *[0.5] * 2], MARGIN).mean


def test_ratios_that_spread_to_either_side_are_no_loss() -> None:
    source = random.Random(2)
    assert sum(shown(ratios(1.0, 100, source, 0.06), MARGIN).within for _ in range(200)) > 150


def test_a_nearer_case_makes_nobody_less_sure() -> None:
    assert shown([1.0] * 50 + [1e-9], MARGIN).within


def test_words() -> None:
    end = "with 95 %, margin 1.5x (at it 95 % fail)"
    assert str(shown([1.0, 1.02], 1.5)) == f"1.010x the reference path's, at most 1.075x {end}"
    assert str(shown([1.0], 1.5)) == f"1.000x the reference path's, without a bound {end}"


# From tables of the t distribution.
@pytest.mark.parametrize(("freedom", "quantile", "within"), [(3, 2.353, 0.01), (10, 1.812, 0.001), (30, 1.697, 0.001)])
def test_the_quantile(freedom: int, quantile: float, within: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=within)
    assert student(10**9) == pytest.approx(statistics.NormalDist().inv_cdf(CONFIDENCE))
