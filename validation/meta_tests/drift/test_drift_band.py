import itertools
import math

import numpy as np
import pytest
import torch

from validation.drift import band


def test_a_distance_is_the_rms_of_the_difference_over_the_spread_of_the_truth() -> None:
    truth = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 4)
    spread = math.sqrt(4 / 3)
    assert band.distance(truth + 0.5, truth) == pytest.approx(0.5 / spread)
    assert band.distance(truth, truth) == 0.0
    assert band.distances([truth, truth + 1], [truth, truth]) == pytest.approx([0.0, 1 / spread])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(value: float) -> None:
    truth = torch.tensor([1.0, -1.0])
    assert band.distance(torch.tensor([1.0, value]), truth) == math.inf
    far = np.array([math.inf])
    assert band.ranks(far, np.array([[1.0, 2.0]])).tolist() == [2]


def test_latents_of_other_steps_or_shapes_are_no_distance() -> None:
    truth = [torch.zeros(2, 2), torch.ones(2, 2)]
    for latents in (truth[:1], [torch.zeros(2, 3), torch.ones(2, 3)]):
        with pytest.raises(ValueError, match="expected 2 and"):
            band.distances(latents, truth)


def test_the_rank_sum_is_exact() -> None:
    replays, prompts = 3, 4
    sums = [sum(ranks) for ranks in itertools.product(range(replays + 1), repeat=prompts)]
    for total in range(replays * prompts + 1):
        ranks = np.array([min(max(total - replays * n, 0), replays) for n in range(prompts)])
        assert ranks.sum() == total
        assert band.rank_sum_p(ranks, replays) == pytest.approx(sum(s >= total for s in sums) / len(sums))


def test_what_is_exchangeable_with_the_replays_is_rejected_as_often_as_alpha_says() -> None:
    generator = np.random.default_rng(0)
    count, rejected = 4000, 0
    for _ in range(count):
        # Distances of any distribution, with heavy tails and another scale for each prompt.
        distances = generator.standard_cauchy((6, 9)) * generator.uniform(0.1, 10, (6, 1))
        rejected += band.rank_sum_p(band.ranks(distances[:, 0], distances[:, 1:]), 8) < 0.05
    assert 0.03 < rejected / count < 0.05


def test_ties_count_for_the_candidate() -> None:
    assert band.ranks(np.array([0.0, 1.0]), np.array([[0.0, 0.0], [1.0, 0.5]])).tolist() == [0, 1]


def test_six_prompts_with_eight_replays_can_reject_and_few_prompts_get_more_replays() -> None:
    assert band.replays_needed(6, 8) == 8
    for prompts in range(2, 8):
        replays = band.replays_needed(prompts, 4)
        furthest = np.full(prompts, replays)
        tests = len(band.tested_steps(1))
        assert band.holm([band.rank_sum_p(furthest, replays)] * tests)[0] < band.ALPHA
        if replays > 4:
            fewer = np.full(prompts, replays - 1)
            assert band.holm([band.rank_sum_p(fewer, replays - 1)] * tests)[0] >= band.ALPHA
    assert band.replays_needed(2, 8) == 63
    assert band.replays_needed(1, 8) == 0
    assert band.replays_needed(1, 5000) == 5000


def test_one_prompt_does_not_stand_for_all() -> None:
    assert band.over_prompts(np.array([[1.0, 0.0], [2.0, 0.1], [100.0, math.inf]])).tolist() == [2.0, 0.1]


def test_tested_steps() -> None:
    assert band.tested_steps(8) == {"first": 0, "second": 1, "half": 3, "last": 7}
    assert set(band.tested_steps(1).values()) == {0}


def test_holm() -> None:
    assert band.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert band.holm([0.5, 0.9]) == [1.0, 1.0]


def test_two_modes_are_told_from_one() -> None:
    generator = np.random.default_rng(1)
    one = [band.two_modes_p(generator.normal(5, 0.3, 8)) for _ in range(300)]
    assert 0.3 < np.mean(one) < 0.7
    assert min(one) > 1e-4
    for split in (2, 4, 6):
        two = np.concatenate([generator.normal(1, 0.02, split), generator.normal(3, 0.02, 8 - split)])
        assert band.two_modes_p(two) < 1e-5
    assert band.two_modes_p(np.array([0.0] * 4 + [1.0] * 4)) < 1e-5
    assert band.two_modes_p(np.zeros(8)) == 1.0
    assert band.two_modes_p(np.array([1.0] * 7 + [2.0])) == 1.0  # a single outlier is not a mode
    with pytest.raises(ValueError, match="3 values, expected at least 4"):
        band.two_modes_p(np.zeros(3))
