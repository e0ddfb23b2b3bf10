from validation.progress import Estimate


def test_an_estimate_goes_by_the_time_of_each_kind() -> None:
    estimate = Estimate({"reference": 4, "candidate": 2})
    estimate.plan({"replay": 10})
    assert str(estimate) == "0 %"
    estimate.done("reference", 1.0)
    estimate.done("reference", 3.0)
    # Kinds not yet sampled are estimated at the reference's cost: 2 s for each of the 14 left.
    assert str(estimate) == "12 %, about 28 s left"
    estimate.done("candidate", 96.0)
    assert str(estimate) == "45 %, about 2 min left"
    estimate.done("replay", 0.0, 10)  # cached
    estimate.done("candidate", 100.0)
    estimate.done("reference", 2.0, 2)
    assert str(estimate) == "100 %, about 0 s left"


def test_a_kind_of_which_there_is_none_is_no_division_by_zero() -> None:
    estimate = Estimate({"reference": 2})
    estimate.done("reference", 10.0)
    estimate.done("replay", 0.0, 0)  # no band, so none came from the cache
    assert str(estimate) == "50 %, about 10 s left"
