"""The whole measurement on a model of two small layers, sampled in a few milliseconds."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference_ops
from validation import controls
from validation.chains.replay import KINDS
from validation.drift import band, measure, verdicts
from validation.drift.teacher import CallErrors, _own, can_reject, first_further, forwards_to_watch, places
from validation.meta_tests.model_op_sets import reference
from validation.models.helios import faults
from validation.models.mount import Mount, Site, SiteCall, SiteError, running_call
from validation.ops import Op, OpSet
from validation.samples.model import Sampler
from validation.samples.request import Progress, silent
from validation.samples.rung import Sample
from validation.verdict import TIERS, Status, Verdict

LAYERS, WIDTH, TOKENS, STEPS = 2, 128, 200, 6
SITES = (Site("norm", "layer_norm_scale_shift", LAYERS), Site("gate", "residual_gate_add", LAYERS))


@dataclasses.dataclass(frozen=True)
class Start:
    """What is sampled: noise from a seed."""

    name: str
    seed: int


STARTS = [Start("noise", seed) for seed in range(6)]

Change = Callable[[int, Tensor], Tensor]


class Small(nn.Module):
    """Norm, linear layer, gated residual, twice, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.rows = torch.randn(LAYERS, 3, WIDTH, generator=generator) * 0.3
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        for parameter in self.layers.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=generator) / WIDTH**0.5).bfloat16()
        self.mounted: Mount | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[1, TOKENS, WIDTH]`` -> the same."""
        assert self.mounted is not None
        for (shift, scale, gate), layer in zip(self.rows, self.layers, strict=True):
            h = layer(self.mounted.call("norm", x, shift, scale))
            x = self.mounted.call("gate", x, h, gate)
        return x


pytestmark = pytest.mark.usefixtures("one_thread")


class SmallSampler(Sampler[Start]):
    """Adapts the model to the drift's sampling, with a change after each step."""

    name, sites = "small", SITES

    def __init__(self, change: Change, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model, self.change, self.dtype = Small().to(dtype), change, dtype

    def mount(self, ops: OpSet) -> Mount:
        self.model.mounted = Mount(self.model, ops, SITES)
        return self.model.mounted

    def latents(self, prompt: Start, _mounted: Mount, _progress: Progress = silent) -> Sample:
        latents = []
        x = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(prompt.seed))
        with torch.no_grad():
            for step in range(STEPS):
                x = self.change(step, x + 0.3 * (self.model(x.to(self.dtype)).float() - x))
                latents.append(x)
        return Sample(latents)

    def steps(self, _prompt: Start) -> int:
        return STEPS

    def place_of(self, call: SiteCall) -> str:
        return f"layer {call.index}"


def unchanged(_step: int, x: Tensor) -> Tensor:
    return x


def sample(ops: OpSet, start: Start, change: Change = unchanged) -> list[Tensor]:
    return SmallSampler(change).sample(ops, start).latents


@functools.cache
def sampled_by_reference(start: Start) -> list[Tensor]:
    return sample(reference(), start)


def unmeasured(
    ops: OpSet,
    cache: Path,
    *,
    starts: Sequence[Start] = STARTS,
    change: Change = unchanged,
    progress: Progress = silent,
) -> measure.Drift[Start]:
    identity = {"change": change.__name__}
    return measure.Drift(SmallSampler(change), ops, starts, identity=identity, cache=cache, progress=progress)


def drift_of(
    ops: OpSet,
    cache: Path,
    *,
    starts: Sequence[Start] = STARTS,
    change: Change = unchanged,
    told: list[str] | None = None,
) -> measure.Drift[Start]:
    progress = (lambda _text: None) if told is None else told.append
    drift = unmeasured(ops, cache, starts=starts, change=change, progress=progress)
    for start in starts:
        of_reference = sampled_by_reference(start) if change is unchanged else sample(reference(), start, change)
        drift.add(start, of_reference, sample(ops, start, change))
    return drift


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def faulty_norm(wrong: Callable[[SiteCall], bool], error: float) -> OpSet:
    """The reference ops, with the norm's result times ``1 + error`` in the calls that ``wrong`` selects."""

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = reference_ops.layer_norm_scale_shift(x.float(), shift, scale)
        return (y * (1 + error * wrong(running_call()))).to(x.dtype)

    return reference(layer_norm_scale_shift=layer_norm_scale_shift)


# Verdicts


@pytest.mark.parametrize(
    "name", ["torch_native", "chunked", "pairwise", "welford", "division", "fma", "float64_inside"]
)
def test_right_op_sets_are_lossless(cache: Path, name: str) -> None:
    drift = drift_of(controls.op_set(name), cache)
    teacher, banded = verdicts.verdicts(drift, "lossless")
    assert (teacher.status, teacher.tier) == (Status.PASSED, "lossless"), teacher.reason
    assert (banded.status, banded.tier) == (Status.PASSED, "lossless"), banded.reason
    assert max(place.factor for place in places(drift.teacher.errors)) < 1.0001
    assert "no site is further from the truth" in teacher.reason
    assert "inside the lossless band" in banded.reason


def around_twelve(_step: int, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) + 12 * x.std()


def as_torch_normalises() -> OpSet:
    """The mean is subtracted last, as in PyTorch's own kernels: the usual form of a right norm."""

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
        rstd = (variance + 1e-6).rsqrt()
        return ((wide * rstd - mean * rstd) * (1 + scale) + shift).to(x.dtype)

    return reference(layer_norm_scale_shift=layer_norm_scale_shift)


def verdicts_in_float32(ops: OpSet, cache: Path, change: Change = unchanged) -> tuple[Verdict, Verdict]:
    """In a float32 model errors add up, and each rounding shows."""
    sampler = SmallSampler(change, torch.float32)
    drift = measure.Drift(sampler, ops, STARTS, identity={"change": change.__name__, "dtype": "float32"}, cache=cache)
    for start in STARTS:
        drift.add(start, sampler.sample(reference(), start).latents, sampler.sample(ops, start).latents)
    return verdicts.verdicts(drift, "lossless")


@pytest.mark.parametrize("name", ["pairwise", "division", "reversed"])
def test_right_op_sets_are_lossless_in_a_float32_model(cache: Path, name: str) -> None:
    for verdict in verdicts_in_float32(controls.op_set(name), cache):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "lossless"), verdict.reason


def test_a_right_norm_is_lossless_around_a_mean_of_12_sigma(cache: Path) -> None:
    for verdict in verdicts_in_float32(as_torch_normalises(), cache, around_twelve):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "lossless"), verdict.reason


# With replays whose errors were 1.4 times those of right kernels it was lossless.
def test_a_norm_one_float32_ulp_off_is_not_lossless_in_a_float32_model(cache: Path) -> None:
    _, banded = verdicts_in_float32(faulty_norm(lambda _: True, 2.0**-23), cache)
    assert banded.status is not Status.PASSED, banded.reason


def test_the_reference_is_bit_exact(cache: Path) -> None:
    drift = drift_of(reference(), cache)
    assert drift.bit_exact
    for verdict in verdicts.verdicts(drift, "bit-exact"):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "bit-exact")
    assert drift.rows("reference").tolist() == drift.rows("candidate").tolist()


def test_a_lossless_set_is_below_bit_exact(cache: Path) -> None:
    for verdict in verdicts.verdicts(drift_of(controls.op_set("division"), cache), "bit-exact"):
        assert (verdict.status, verdict.tier) == (Status.BELOW_REQUIRED_TIER, None)


@pytest.mark.parametrize("name", ["n_minus_1_variance", "bf16_statistics", "undeclared_rounding", "truncating_store"])
def test_what_no_floor_sees_is_below_lossless(cache: Path, name: str) -> None:
    teacher, banded = verdicts.verdicts(drift_of(faults.op_set(name), cache), "lossless")
    assert teacher.status is Status.BELOW_REQUIRED_TIER
    assert teacher.numbers["first_site"] == ("gate" if name == "truncating_store" else "norm")
    assert banded.status.failed


def test_an_undeclared_rounding_is_close_and_not_lossless(cache: Path) -> None:
    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normalised: Tensor = reference_ops.layer_norm(x)
        return (normalised.float() * (1 + scale) + shift).to(x.dtype)

    drift = drift_of(reference(layer_norm_scale_shift=layer_norm_scale_shift), cache)
    teacher, banded = verdicts.verdicts(drift, "lossless")
    assert (teacher.status, banded.status) == (Status.BELOW_REQUIRED_TIER, Status.BELOW_REQUIRED_TIER)
    assert teacher.reason.startswith("norm in layer 0 is the first to be further from the truth")
    assert 1.2 < float(teacher.numbers["first_factor"] or 0) < 1.6
    assert float(teacher.numbers["factor_gate"] or 0) == pytest.approx(1, abs=1e-4)
    assert "outside the lossless band" in banded.reason
    assert "inside the close band" in banded.reason
    for verdict in verdicts.verdicts(drift, "close"):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "close")


def test_a_wrong_op_is_outside_both_bands_whatever_is_required(cache: Path) -> None:
    drift = drift_of(faulty_norm(lambda _call: True, 0.05), cache)
    for require in TIERS:
        teacher, banded = verdicts.verdicts(drift, require)
        assert (teacher.status, teacher.tier) == (Status.BELOW_REQUIRED_TIER, None)
        assert (banded.status, banded.tier) == (Status.OUTSIDE_BAND, None)
    assert banded.numbers["lossless_rank_first"] == 8.0
    assert float(banded.numbers["close_p_first"] or 0) < 1e-4
    assert banded.series["candidate_distance_per_step"][0] > banded.series["close_band_greatest_per_step"][0]


def test_a_prompt_that_was_not_measured_leaves_it_open(cache: Path) -> None:
    drift = unmeasured(reference(), cache)
    drift.add(STARTS[0], sample(reference(), STARTS[0]), sample(reference(), STARTS[0]))
    for verdict in verdicts.verdicts(drift, "lossless"):
        assert verdict.status is Status.INCONCLUSIVE
        assert verdict.reason == "5 of 6 prompts could not be sampled with the candidate"


def test_one_prompt_is_too_few(cache: Path) -> None:
    drift = drift_of(controls.op_set("division"), cache, starts=STARTS[:1])
    assert drift.replays == 0
    teacher, banded = verdicts.verdicts(drift, "lossless")
    assert (teacher.status, banded.status) == (Status.INCONCLUSIVE, Status.INCONCLUSIVE)
    assert "are too few for the test" in teacher.reason
    assert "1 prompt with 64 replays each cannot reach p < 0.001" in banded.reason
    # An error beyond rounding needs no statistical test.
    gross = drift_of(faulty_norm(lambda _call: True, 0.05), cache, starts=STARTS[:1])
    assert verdicts.judge_teacher(gross, "lossless").status is Status.BELOW_REQUIRED_TIER


def two_ways(step: int, x: Tensor) -> Tensor:
    """At the last step, one of two ways, chosen by the bits of the latents."""
    coin = int(x.view(torch.int32).sum()) % 2
    return x + 3 * coin * torch.ones_like(x).cumsum(-1) / WIDTH if step == STEPS - 1 else x


def test_a_band_with_two_modes_is_inconclusive(tmp_path: Path) -> None:
    drift = drift_of(controls.op_set("division"), tmp_path, change=two_ways)
    banded = verdicts.judge_band(drift, "lossless")
    assert banded.status is Status.INCONCLUSIVE
    assert "has two modes" in banded.reason


@pytest.mark.parametrize(("other_way", "status"), [(1.9e-4, Status.OUTSIDE_BAND), (0.3, Status.INCONCLUSIVE)])
def test_few_roundings_are_no_second_way(tmp_path: Path, other_way: float, status: Status) -> None:
    """Measured: two of four lossless replays were the truth to the bit, and two differed in the same few elements."""
    drift = with_distances(tmp_path, 0.15, 2.5e-3)
    for found in drift.measured.values():
        found.replays["lossless"][:, -1] = np.resize([other_way, 0.0], drift.replays)
    assert verdicts.judge_band(drift, "lossless").status is status


def with_distances(cache: Path, candidate: float, replays: float) -> measure.Drift[Start]:
    """A drift in which, at every step, the replays and the candidate lie about as far from the truth as given."""
    drift = unmeasured(controls.op_set("division"), cache)
    generator = np.random.default_rng(0)
    for n in range(len(STARTS)):
        rows = {kind: replays * generator.uniform(0.99, 1.01, (drift.replays, STEPS)) for kind in KINDS}
        drift.measured[n] = measure.PromptDrift([replays] * STEPS, [candidate] * STEPS, rows, False, {})
    return drift


def test_a_band_as_wide_as_the_latents_is_inconclusive(tmp_path: Path) -> None:
    banded = verdicts.judge_band(with_distances(tmp_path, 1.4, 1.4), "lossless")
    assert banded.status is Status.INCONCLUSIVE
    assert "rounding alone decides what is sampled" in banded.reason
    assert verdicts.judge_band(with_distances(tmp_path, 0.4, 0.4), "lossless").status is Status.PASSED


def test_a_candidate_nearer_than_all_replays_is_right(tmp_path: Path) -> None:
    banded = verdicts.judge_band(with_distances(tmp_path, 0.01, 0.1), "lossless")
    assert (banded.status, banded.tier) == (Status.PASSED, "lossless")
    assert banded.numbers["lossless_rank_last"] == 0.0
    assert verdicts.judge_band(with_distances(tmp_path, 0.102, 0.1), "close").status is Status.OUTSIDE_BAND


# Teacher-forced


def test_the_first_place_is_named(cache: Path) -> None:
    drift = drift_of(faulty_norm(lambda call: call.index == 1, 0.01), cache)
    first = first_further(places(drift.teacher.errors))
    assert first is not None
    assert (first.site, first.place) == ("norm", "layer 1")
    assert first.further == first.calls


def test_the_error_does_not_travel(cache: Path) -> None:
    drift = drift_of(faulty_norm(lambda call: call.index == 0, 0.01), cache)
    found = {(place.site, place.place): place for place in places(drift.teacher.errors)}
    assert found["norm", "layer 0"].rejected
    for place in (("gate", "layer 0"), ("norm", "layer 1"), ("gate", "layer 1")):
        assert not found[place].rejected
        assert found[place].factor == 1.0


def test_a_single_call_that_is_wrong_beyond_rounding_is_seen(cache: Path) -> None:
    drift = drift_of(
        faulty_norm(lambda call: call.forward == STEPS - 1 and call.index == 1, 0.02), cache, starts=STARTS[:2]
    )
    first = first_further(places(drift.teacher.errors))
    assert first is not None
    assert (first.gross, first.place, first.steps) == (True, "layer 1", (STEPS - 1,))
    assert first.further < first.calls
    assert "more than roundings explain" in verdicts.judge_teacher(drift, "lossless").reason


def test_nan_is_infinitely_far(cache: Path) -> None:
    drift = drift_of(faulty_norm(lambda call: call.forward == 3, math.nan), cache)
    teacher, banded = verdicts.verdicts(drift, "lossless")
    assert teacher.status is Status.BELOW_REQUIRED_TIER
    assert banded.status is Status.OUTSIDE_BAND
    assert banded.series["candidate_distance_per_step"][-1] == math.inf


def test_the_truth_is_sampled_whatever_the_candidate_does(cache: Path) -> None:
    told: list[str] = []
    drift_of(faulty_norm(lambda _call: True, 0.5), cache, told=told)
    # Earlier tests cached everything, as distances to the same truth.
    assert told == ["truth, teacher-forced"] * len(STARTS) or any("replay 1 of" in text for text in told)
    told.clear()
    drift_of(faulty_norm(lambda _call: True, 0.7), cache, told=told)
    assert told == ["truth, teacher-forced"] * len(STARTS)


def test_a_candidate_that_writes_to_its_inputs_leaves_the_truth_alone(cache: Path) -> None:
    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y: Tensor = reference_ops.residual_gate_add(residual, x, gate)
        residual.zero_()
        return y

    told: list[str] = []
    drift = drift_of(reference(residual_gate_add=residual_gate_add), cache, told=told)
    assert not any("another truth" in text for text in told)
    assert drift.rows("reference").tolist() == drift_of(reference(), cache).rows("reference").tolist()


def test_a_candidate_s_own_copies_keep_views_dtypes_and_neighbours() -> None:
    packed = torch.arange(48, dtype=torch.float16)
    q, k = packed.as_strided((4, 6), (12, 1)), packed.as_strided((4, 6), (12, 1), 6)
    weight = packed.view(torch.float32)[2:5]  # a second dtype in the same buffer
    empty = [torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.float16)]  # both begin at 0
    (own_q, own_k, own_weight, *own_empty), named = _own([q, k, weight, *empty], {"weight": weight, "eps": 1e-6})
    for own, given in zip((own_q, own_k, own_weight, *own_empty), (q, k, weight, *empty), strict=True):
        assert (own.dtype, own.stride(), own.storage_offset()) == (given.dtype, given.stride(), given.storage_offset())
        assert torch.equal(own, given)
    assert named["eps"] == 1e-6
    own_q.zero_()
    assert torch.equal(named["weight"], own_weight)
    assert own_weight[0] == 0  # its two halves end q's first row
    assert own_k[0, 0] == packed[6] == 6
    assert torch.equal(packed, torch.arange(48, dtype=torch.float16))


@pytest.mark.parametrize("result", [lambda x: x.float(), lambda x: x[:, 1:], lambda _x: None, lambda x: (x, x)])
def test_an_op_that_returns_something_else_is_an_error(tmp_path: Path, result: Callable[[Tensor], Any]) -> None:
    def residual_gate_add(residual: Tensor, _x: Tensor, _gate: Tensor) -> Any:
        return result(residual)

    drift = unmeasured(reference(residual_gate_add=residual_gate_add), tmp_path)
    latents = sample(reference(), STARTS[0])
    with pytest.raises(SiteError, match=r"residual_gate_add returned .* at site gate, expected"):
        drift.add(STARTS[0], latents, latents)


def test_an_op_that_the_set_lacks_is_not_compared(tmp_path: Path) -> None:
    only: dict[str, Op] = {"residual_gate_add": reference()["residual_gate_add"]}
    drift = unmeasured(OpSet("one", only, "one"), tmp_path)
    latents = sample(reference(), STARTS[0])
    drift.add(STARTS[0], latents, latents)
    assert {error.site for error in drift.teacher.errors} == {"gate"}
    assert drift.teacher.place_names() == ["gate in layer 0", "gate in layer 1"]


def errors(further: int, calls: int) -> list[CallErrors]:
    """Calls of one place, of which ``further`` are a little further from the truth than the baseline."""
    return [
        CallErrors(
            "norm", "layer 0", 0, n, "bfloat16", 1.0, 1.0, 1.01 if n < further else 1.0, 1.0, 1.0, 1.0, 0.0, 100.0
        )
        for n in range(calls)
    ]


def test_the_sign_test_is_a_binomial_tail_times_the_number_of_tests() -> None:
    for further in (0, 5, 12, 20):
        place, site = places(errors(further, 20))
        tail = sum(math.comb(20, n) for n in range(further, 21)) / 2**20
        assert place.p == pytest.approx(min(1.0, 2 * tail))
        assert (site.place, site.p) == ("", place.p)
        assert place.rejected == (further == 20)
    assert can_reject(places(errors(0, 11)))
    assert not can_reject(places(errors(0, 10)))
    assert not can_reject([])


def test_a_hair_is_no_fault() -> None:
    nearly = [dataclasses.replace(error, candidate=1.0019) for error in errors(0, 30)]
    assert first_further(places(nearly)) is None
    assert first_further(places([dataclasses.replace(error, candidate=1.0021) for error in errors(0, 30)])) is not None


def test_watched_forwards_are_spread_and_enough() -> None:
    watched = forwards_to_watch(16, 6, 30)
    assert (watched[0], watched[-1]) == (0, 15)
    assert {forward % 2 for forward in watched} == {0, 1}
    assert len(watched) * 6 >= math.log2(30 / band.ALPHA)
    assert forwards_to_watch(3, 1, 1000) == [0, 1, 2]
    assert forwards_to_watch(1, 6, 30) == [0]


def test_no_call_is_running_outside_of_a_mount() -> None:
    with pytest.raises(LookupError):
        running_call()


# The cache


def test_an_interrupted_band_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    told: list[str] = []

    def interrupt(text: str) -> None:
        told.append(text)
        if text.startswith("close replay 3"):
            raise StopError

    ops = controls.op_set("division")
    arms = sample(reference(), STARTS[0]), sample(ops, STARTS[0])
    drift = unmeasured(ops, tmp_path, progress=interrupt)
    with pytest.raises(StopError):
        drift.add(STARTS[0], *arms)
    again: list[str] = []
    drift = unmeasured(ops, tmp_path, progress=again.append)
    found = drift.add(STARTS[0], *arms)
    assert again == ["truth, teacher-forced", *(f"close replay {n} of 8" for n in range(3, 9))]
    fresh = unmeasured(ops, tmp_path / "other").add(STARTS[0], *arms)
    for kind, rows in fresh.replays.items():
        assert rows.tolist() == found.replays[kind].tolist()


def test_a_band_of_another_truth_is_made_again(tmp_path: Path) -> None:
    def other(_step: int, x: Tensor) -> Tensor:
        return x * 1.01

    other.__name__ = unchanged.__name__  # so that the identity does not show the change
    drift_of(reference(), tmp_path, starts=STARTS[:4])
    told: list[str] = []
    drift_of(reference(), tmp_path, starts=STARTS[:4], change=other, told=told)
    assert sum("is of another truth than this machine makes" in text for text in told) == 4
