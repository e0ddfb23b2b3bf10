"""The harness of ``validate bench denoise`` on the CPU, at tiny sizes: order, statistics, arms, bytes and drift.

No test looks at how long anything took.
"""

import functools
import json
import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from torch import Tensor
from torch.nn import functional

import reference_ops
from validation import cli
from validation.adapters import torch_native
from validation.bench import denoise, denoise_report, forward_bytes
from validation.bench.arm_drift import ArmVerdict, DriftOfArms
from validation.bench.arms import Running, arms_of
from validation.bench.denoise_results import Activity, Interval, Result, TimedArm, sign_interval
from validation.bench.selection import compact
from validation.bench.traffic import traffic
from validation.cases.workloads import Workload
from validation.errors import UsageError
from validation.meta_tests.model_op_sets import dropped_gate, reference, swapped_scale_shift
from validation.models.helios import denoiser as helios_denoiser
from validation.models.helios import sites
from validation.models.hunyuan3d.denoiser import Hunyuan3DDenoiser
from validation.ops import OpSet, op_set_from
from validation.parity.workloads import workloads
from validation.samples.denoiser import Arm, Denoiser, Forward
from validation.verdict import Status, Tier, Verdict

RIGHT = op_set_from(torch_native, "torch_native", "torch_native")
FIXTURES = Path(cli.__file__).parents[1] / "fixtures"
MODELS = ("helios", "hunyuan3d")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@functools.cache
def tiny(model: str) -> Denoiser:
    return denoise.denoiser_of(model)("tiny", "cpu")


def arm_of(model: str, name: str, ops: OpSet = RIGHT) -> Arm:
    return next(arm for arm in arms_of(tiny(model), ops) if arm.name == name)


def latents(running: Running, steps: int = 2) -> list[Tensor]:
    with torch.no_grad(), running.entered():
        return list(running.denoiser.sample(running.forward, 0, steps))


# Order and statistics


def test_arms_take_turns_there_and_back() -> None:
    assert list(denoise.order(["a", "b"], 2)) == ["a", "b", "b", "a"] * 2
    assert list(denoise.order(["a", "b", "c"], 1)) == ["a", "b", "c", "c", "b", "a"]


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [(1, 0, 0, 0.0), (5, 0, 4, 1 - 2 / 32), (6, 0, 5, 1 - 2 / 64), (9, 1, 7, 1 - 20 / 512), (12, 2, 9, 1 - 158 / 4096)],
)
def test_the_interval_is_that_of_the_sign_test(count: int, low: int, high: int, coverage: float) -> None:
    values = [float(n) for n in range(count)]
    random.Random(0).shuffle(values)
    found = sign_interval(values)
    assert (found.low, found.high) == (low, high)
    assert found.median == (count - 1) / 2
    assert found.coverage == pytest.approx(coverage)


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        sign_interval([])


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """For a skewed distribution; 3000 samples put a share of 96.1 % within 1.4 points at four sigma."""
    draw = random.Random(1)
    found = [sign_interval([draw.expovariate(1) for _ in range(9)]) for _ in range(3000)]
    share = sum(interval.low <= 0.6931 <= interval.high for interval in found) / len(found)
    assert abs(share - found[0].coverage) < 0.014


def result_of(times: dict[str, list[float]], model: str = "hunyuan3d", **settings: Any) -> Result:
    """A result with these seconds per visit, each visit of three equal steps."""
    arms = [TimedArm(Arm(name, "", None if name == "before" else RIGHT)) for name in times]
    for timed, visits in zip(arms, times.values(), strict=True):
        timed.visits = [[seconds] * 3 for seconds in visits]
    about: dict[str, Any] = {"full": True, "gpu": True, "steps": 3, "rounds": 6, "decode": [6.0, 6.0]}
    return Result(model, "random", "size", tiny(model).goal, arms=arms, **(about | settings))


def test_a_clock_that_drifts_evenly_leaves_the_ratio_alone() -> None:
    """Visits in order before, all, all, before; each slower than the one before it by the same amount."""
    clock = [1 + 0.05 * n for n in range(24)]
    before = [clock[n] for n in range(24) if n % 4 in (0, 3)]
    after = [0.7 * clock[n] for n in range(24) if n % 4 in (1, 2)]
    result = result_of({"before": before, "all sites": after})
    ratio = result.ratio(result.arms[1])
    assert [ratio.low, ratio.high] == pytest.approx([0.7, 0.7])
    assert result.ratio(result.before) == Interval(1, 1, 1, 1 - 2 / 64)
    assert result.seconds_saved(result.arms[1]) == pytest.approx(0.3 * sum(clock[10:14]) / 4, rel=0.05)


def test_one_visit_that_is_disturbed_is_outvoted() -> None:
    result = result_of({"before": [1.0] * 24, "all sites": [0.7] * 23 + [5.0]}, rounds=12)
    ratio = result.ratio(result.arms[1])
    assert [ratio.median, ratio.high] == pytest.approx([0.7, 0.7])
    assert result.arms[1].quantiles[2] == 0.7
    assert result.arms[1].quantiles[4] == pytest.approx(0.7, abs=0.01)


def test_end_to_end_is_steps_and_decode() -> None:
    result = result_of({"before": [2.0] * 12, "all sites": [1.0] * 12})
    after, ratio = result.arms[1], result.end_to_end_ratio(result.arms[1])
    assert ratio is not None
    assert (result.end_to_end(after), ratio.median) == (3 * 1.0 + 6.0, 9 / 12)
    result.decode = []
    assert (result.end_to_end(after), result.end_to_end_ratio(after)) == (None, None)


# Goals


def met(result: Result) -> list[bool | None]:
    return [judged.met for judged in result.judge_goals()]


def with_verdict(result: Result, status: Status = Status.PASSED, peaks: Sequence[int] = (9, 8)) -> Result:
    for timed, peak in zip(result.arms, peaks, strict=True):
        timed.peak_bytes = peak
    result.arms[1].drift = ArmVerdict((Verdict(status, "band", "", Tier.LOSSLESS),), "")
    return result


@pytest.mark.parametrize(("share", "expected"), [(0.69, [True, True]), (0.74, [True, False]), (0.76, [False, False])])
def test_goals_are_met_or_not(share: float, expected: list[bool]) -> None:
    result = with_verdict(result_of({"before": [1.0] * 12, "all sites": [share] * 12}))
    assert met(result) == [*expected, True]
    assert ("NOT met" in denoise_report.table(result)) == (not all(expected))


def test_a_goal_needs_the_whole_interval() -> None:
    result = with_verdict(result_of({"before": [1.0] * 12, "all sites": [0.6] * 11 + [1.2]}))
    assert met(result) == [False, False, True]
    few = with_verdict(result_of({"before": [1.0] * 4, "all sites": [0.6] * 4}, rounds=2))
    assert met(few) == [None, None, True]


def test_memory_and_drift_are_goals_too() -> None:
    times = {"before": [1.0] * 12, "compact": [0.8] * 12}
    assert met(with_verdict(result_of(times, "helios"))) == [True, True, True, True]
    assert met(with_verdict(result_of(times, "helios"), peaks=(9, 9))) == [True, True, True, False]
    assert met(with_verdict(result_of(times, "helios"), Status.OUTSIDE_BAND)) == [True, True, False, True]
    assert met(with_verdict(result_of(times, "helios"), Status.INCONCLUSIVE))[2] is False


def test_only_full_size_on_a_gpu_counts() -> None:
    times = {"before": [1.0] * 12, "all sites": [0.1] * 12}
    assert set(met(with_verdict(result_of(times, full=False)))) == {None}
    assert set(met(with_verdict(result_of(times, gpu=False)))) == {None}
    assert set(met(result_of({"before": [1.0] * 12}))) == {None}


# Denoisers


def test_random_helios_is_what_from_pretrained_would_leave() -> None:
    config = helios_denoiser.CONFIGS["tiny"]
    plain = HeliosTransformer3DModel(**config)
    sites.cast_parameters(plain, torch.bfloat16)
    made, again = (denoise.denoiser_of("helios")("tiny", "cpu", seed=3).model for _ in range(2))
    assert {n: (p.shape, p.dtype) for n, p in made.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in plain.named_parameters()
    }
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), plain.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert all(p.isfinite().all() and p.float().std() > 0 for p in made.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_tiny_models_stay_finite_and_change_with_the_seed(model: str) -> None:
    denoiser = tiny(model)
    with torch.no_grad(), denoiser.path_before():
        first, other = ([*denoiser.sample(denoiser.model, seed, 3)] for seed in (0, 1))
    assert len(first) == 3
    assert all(x.isfinite().all() and 0.1 < x.float().std() < 30 for x in first)
    assert not torch.equal(first[-1], other[-1])


def test_the_full_sizes_are_those_of_the_workloads() -> None:
    with forward_bytes.fake_tensors():
        video, shape = (denoise.denoiser_of(model)("full", "cpu", weights=False) for model in MODELS)
    assert video.size == "40 layers of width 5120, 11040 tokens, 2400 of them history; bfloat16"
    assert "16 double and 32 single blocks of width 1024, batch 2 of 3072 latents and 1370 context" in shape.size
    assert 28e9 < sum(p.numel() * p.element_size() for p in video.model.parameters()) < 29e9


def test_the_path_before_of_hunyuan3d_has_the_bits_of_the_reference_and_leaves_no_trace() -> None:
    denoiser = tiny("hunyuan3d")
    known = denoiser.model.sites.ops["qk_norm"], denoiser.model.sites.packed_qk_norm
    with torch.no_grad():
        plain = [*denoiser.sample(denoiser.model, 0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(plain, latents(Running(denoiser, Arm("before", ""))), strict=True))
    assert (denoiser.model.sites.ops["qk_norm"], denoiser.model.sites.packed_qk_norm) == known


# Arms


def counting(calls: Counter[str]) -> OpSet:
    """The reference, counting its calls; calls with q and k as views of the projection count as ``packed``."""

    def make(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            if name == "qk_norm" and not arguments[0].is_contiguous():
                calls["packed"] += 1
            if any(hasattr(argument, "table") for argument in arguments):
                calls["compact"] += 1
            return function(*arguments, **options)

        return call

    functions = {name: make(name, function) for name, function in reference().functions.items()}
    return OpSet("counting", functions, "counting")


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        ("helios", "before", {}),
        ("helios", "#24059", {"layer_norm_scale_shift": 3, "layer_norm": 1}),
        (
            "helios",
            "all sites",
            {
                "layer_norm_scale_shift": 3,
                "layer_norm": 1,
                "residual_gate_add": 2,
                "rms_norm": 4,
                "rotary_embedding": 2,
            },
        ),
        (
            "helios",
            "compact",
            {
                "layer_norm_scale_shift": 3,
                "layer_norm": 1,
                "residual_gate_add": 2,
                "rms_norm": 4,
                "rotary_embedding": 2,
                "compact": 5,
            },
        ),
        ("hunyuan3d", "before", {}),
        (
            "hunyuan3d",
            "#24287",
            {"layer_norm_scale_shift": 4, "scale_residual_layer_norm_scale_shift": 2, "qk_norm": 3},
        ),
        (
            "hunyuan3d",
            "all sites",
            {
                "layer_norm_scale_shift": 4,
                "scale_residual_layer_norm_scale_shift": 2,
                "qk_norm": 3,
                "packed": 3,
                "residual_gate_add": 3,
            },
        ),
    ],
)
def test_each_arm_calls_the_ops_of_its_sites(model: str, name: str, expected: dict[str, int]) -> None:
    """Two steps of the tiny models: one Helios block; one double and one single block of Hunyuan3D-2."""
    calls: Counter[str] = Counter()
    denoiser = tiny(model)
    found = latents(Running(denoiser, arm_of(model, name, counting(calls))))
    assert calls == {op: 2 * count for op, count in expected.items()}
    before = latents(Running(denoiser, Arm("before", "")))
    if name != "#24287":  # its addcmul rounds once less
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))
    assert all((a - b).abs().max() < 0.1 for a, b in zip(found, before, strict=True))


def test_what_a_device_cannot_run_is_said() -> None:
    for model, left_out in (("helios", {"CUDA graph"}), ("hunyuan3d", {"CUDA graph", "compact"})):
        arms = arms_of(tiny(model), RIGHT)
        assert len(arms) == 6
        assert {arm.name for arm in arms if arm.left_out} == left_out
        assert arms[0].ops is None
    assert arm_of("helios", "CUDA graph").left_out == "a graph needs a GPU"


def raising(*_: Any, **__: Any) -> None:
    raise ValueError("planted\nsecond line")


def test_an_arm_that_raises_is_listed_and_fails_the_benchmark() -> None:
    arms = [arm_of("helios", name, reference(layer_norm=raising)) for name in ("before", "#24059")]
    result = denoise.run(tiny("helios"), arms, full=False, steps=1, rounds=1)
    assert [timed.arm.name for timed in result.timed] == ["before"]
    assert result.failed
    assert "planted" in result.arms[1].left_out
    assert "(FAILED)" in denoise_report.table(result)
    lacking = OpSet("lacking", {"rms_norm": reference_ops.rms_norm}, "lacking")
    result = denoise.run(tiny("helios"), [arms[0], arm_of("helios", "#24059", lacking)], full=False, steps=1, rounds=1)
    assert not result.failed
    assert "does not provide" in result.arms[1].left_out


@pytest.mark.parametrize("visits", [1, 3])
def test_an_arm_that_runs_out_of_memory_later_is_left_out_and_the_others_go_on(visits: int) -> None:
    """While it warms up, and in the first round; the path before must run."""
    left = [visits * sum(site.calls for site in tiny("helios").sites if site.name == "norm2") * 2]

    def full(*arguments: Any, **options: Any) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("3 GB\nsecond line")
        y: Tensor = reference_ops.layer_norm(*arguments, **options)
        return y

    arms = [
        arm_of("helios", "before"),
        arm_of("helios", "#24059", reference(layer_norm=full)),
        arm_of("helios", "compact"),
    ]
    kept: list[list[str]] = []
    result = denoise.run(
        tiny("helios"),
        arms,
        full=False,
        steps=1,
        rounds=2,
        keep=lambda result: kept.append([timed.arm.name for timed in result.timed]),
    )
    assert left[0] < 0
    assert kept == [["before", "compact"]]
    assert [len(timed.visits) for timed in result.arms] == [4, 0, 4]
    assert "3 GB" in result.arms[1].left_out
    assert not result.failed
    assert "3 GB" in denoise_report.table(result)


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_benchmark_at_a_tiny_size(model: str, cache: Path, tmp_path: Path) -> None:
    names = [arm.name for arm in arms_of(tiny(model), RIGHT) if not arm.compiled]
    result = denoise.benchmark(model, RIGHT, "cpu", tiny=True, names=names, steps=2, rounds=2, replays=4, cache=cache)
    assert not result.failed, denoise_report.table(result)
    for timed in result.timed:
        assert [len(visit) for visit in timed.visits] == [2] * 4
        assert timed.drift is not None
        assert (timed.kernels, timed.launches) == (None, None)
        assert timed.peak_bytes > 0
        assert timed.drift.word in (["-"] if timed is result.before else ["lossless", "bit-exact"])
    text = denoise_report.table(result)
    assert "a test of the harness, no measurement" in text
    assert "not counted" in text
    assert "a graph needs a GPU" in text
    assert set(met(result)) == {None}
    path, picture = denoise_report.write(result, "<a device & its name>", tmp_path / "made", "now")
    data = json.loads(path.read_text())
    assert set(data["arms"]) == set(names)
    for timed in result.timed:
        kept = data["arms"][timed.arm.name]
        assert kept["step_seconds"] == timed.visits
        assert kept["ratio"]["median"] == result.ratio(timed).median
        assert sum(kept["model_bytes"].values()) == result.before.step_bytes.total - kept["model_bytes_saved"]  # type: ignore[union-attr]
        assert kept["drift"]["word"] in text
    assert "no measurement" in data["measures"]
    root = ET.fromstring(picture.read_text())
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(result.timed) + 1
    assert "&lt;a device &amp; its name&gt;" in picture.read_text()


# Drift


@pytest.mark.parametrize(
    ("model", "name", "planted"), [("helios", "compact", swapped_scale_shift), ("hunyuan3d", "all sites", dropped_gate)]
)
def test_a_wrong_arm_shows_its_failed_verdict_beside_its_time(
    model: str, name: str, planted: Callable[[], OpSet], cache: Path
) -> None:
    ops = planted()
    if model == "hunyuan3d":
        gate = ops["residual_gate_add"]
        ops = reference(residual_gate_add=lambda residual, x, factor, **_: gate(residual, x, factor))
    arms = [arm_of(model, "before", ops), arm_of(model, name, ops)]
    result = denoise.run(
        tiny(model),
        arms,
        full=False,
        steps=1,
        rounds=1,
        drift=lambda: DriftOfArms(tiny(model), cache=cache, replays=4),
    )
    assert result.failed
    verdict = result.arms[1].drift
    assert verdict is not None
    assert verdict.failed
    assert [found.check for found in verdict.verdicts] == ["teacher-forced", "band"]
    line = next(line for line in denoise_report.table(result).splitlines() if line.split()[:1] == name.split()[:1])
    assert line.endswith(f"  {verdict.word}")
    assert [found.status for found in verdict.verdicts if found.check == "band"] == [Status.OUTSIDE_BAND]


def test_a_drift_that_cannot_be_measured_fails_and_costs_no_times() -> None:
    kept: list[list[int]] = []

    def no_drift() -> DriftOfArms:
        raise UsageError("no checkpoint\nsecond line")

    result = denoise.run(
        tiny("helios"),
        [arm_of("helios", name) for name in ("before", "compact")],
        full=False,
        steps=1,
        rounds=1,
        drift=no_drift,
        keep=lambda result: kept.append([len(timed.visits) for timed in result.arms]),
    )
    assert kept == [[2, 2]]
    assert result.failed
    assert result.drift_on == "not measured"
    assert [timed.drift.word for timed in result.timed if timed.drift] == ["RUNTIME_ERROR"] * 2
    assert "UsageError: no checkpoint" in denoise_report.table(result)


def test_an_op_that_raises_fails_the_drift_verdict(cache: Path) -> None:
    arm = arm_of("hunyuan3d", "all sites", reference(residual_gate_add=raising))
    verdict = DriftOfArms(tiny("hunyuan3d"), cache=cache, replays=4)(arm)
    assert (verdict.word, verdict.failed) == ("RUNTIME_ERROR", True)
    assert "planted" in verdict.reason


def test_a_failure_outweighs_what_is_not_concluded() -> None:
    def word(*statuses: Status) -> str:
        return ArmVerdict(tuple(Verdict(status, "", "", Tier.CLOSE) for status in statuses), "").word

    assert word() == "-"
    assert word(Status.PASSED, Status.PASSED) == "close"
    assert word(Status.PASSED, Status.INCONCLUSIVE) == "INCONCLUSIVE"
    assert word(Status.INCONCLUSIVE, Status.OUTSIDE_BAND) == "OUTSIDE_BAND"


class Restless(Hunyuan3DDenoiser):
    """A model that does not repeat itself."""

    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        for x in super().sample(forward, seed, steps):
            yield x + 1e-2 * torch.rand(())


def test_where_the_path_before_does_not_repeat_itself_nothing_is_concluded(cache: Path) -> None:
    drift = DriftOfArms(Restless("tiny", "cpu"), cache=cache, replays=4)
    assert "does NOT repeat" in drift(Arm("before", "")).reason
    verdict = drift(arm_of("hunyuan3d", "all sites"))
    assert (verdict.word, verdict.failed, verdict.passed) == ("INCONCLUSIVE", False, False)


def test_a_compiled_arm_has_the_band_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by the backend that runs Dynamo's trace unchanged."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    verdict = DriftOfArms(tiny("hunyuan3d"), cache=cache, replays=4)(arm_of("hunyuan3d", "torch.compile"))
    assert [(found.check, found.tier) for found in verdict.verdicts] == [("band", "bit-exact")]
    assert verdict.word == "bit-exact"


# Bytes


def test_kernels_are_counted_and_views_are_not() -> None:
    def step() -> None:
        x = torch.empty(3, 8, dtype=torch.bfloat16)  # 48 bytes
        wide = x.float()  # 48 read, 96 written
        wide.view(4, 6).t()[1:].transpose(0, 1)  # nothing
        wide * torch.empty(1, 8).expand(3, 8)  # 96 and 32 read, 96 written
        x.copy_(wide)  # 96 read, 48 written
        functional.linear(x, torch.empty(5, 8, dtype=torch.bfloat16))  # 48 and 80 read, 30 written

    with forward_bytes.fake_tensors():
        found = forward_bytes.count(step)
    assert found.by_operator == {"_to_copy": 144, "mul": 224, "copy_": 144}
    assert found.by_place == {forward_bytes.REST: 512, forward_bytes.PRODUCTS: 158}
    assert found.total == 670


def test_attention_and_rms_norm_are_one_kernel_each() -> None:
    def step() -> None:
        q, k = torch.empty(1, 2, 7, 16, dtype=torch.float16), torch.empty(1, 2, 9, 16, dtype=torch.float16)
        functional.scaled_dot_product_attention(q, k, k)
        functional.rms_norm(q, (16,), torch.empty(16, dtype=torch.float16), 1e-6)

    with forward_bytes.fake_tensors():
        found = forward_bytes.count(step)
    assert found.by_place[forward_bytes.ATTENTION] == 2 * (448 + 576)
    assert found.by_operator == {"rms_norm": 448 + 32 + 448}


def workload_bytes(op: str, site: str, *, two_rows: bool = False) -> int:
    (found,) = (workload for workload in workloads(op) if workload.name == site)
    chosen: Workload | None = compact(found) if two_rows else found
    assert chosen is not None
    return traffic(chosen.make(True)).total


def test_helios_sites_move_what_their_workloads_say(tmp_path: Path) -> None:
    """One layer at full size: eleven thousand tokens; cross-attention has the current ones and the text."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"num_layers": 1}))
    with forward_bytes.fake_tensors():
        denoiser = denoise.denoiser_of("helios")("full", "cpu", checkpoint=tmp_path, weights=False)
    found = forward_bytes.of_arms(denoiser, arms_of(denoiser, RIGHT))
    assert denoiser.size.startswith("1 layers of width 5120, 11040 tokens")
    norm, gate = "layer_norm_scale_shift", "residual_gate_add"
    for name, two_rows in (("all sites", False), ("compact", True)):
        of = found[name].by_place
        layout = "384x640, modulation [B,6,L,D]" if not two_rows else "384x640, modulation [B,L,6,D]"
        assert of["norm1"] == of["norm3"] == workload_bytes(norm, f"helios norm1, norm3 {layout}", two_rows=two_rows)
        assert of["gate"] == 2 * workload_bytes(gate, f"helios gate {layout}", two_rows=two_rows)
        assert of["norm_out"] == workload_bytes(norm, "helios norm_out 384x640", two_rows=two_rows)
        assert of["norm2"] == workload_bytes("layer_norm", "helios norm2 384x640")
        assert of["rope"] == 2 * workload_bytes("rotary_embedding", "helios rope 384x640")
        row = 2 * 5120
        cross = 2 * 8640 * row + row  # queries of the current tokens, which are not a separate workload
        full, text = (workload_bytes("rms_norm", f"helios qk_norm {of}") for of in ("384x640", "text"))
        assert of["qk_norm"] == 2 * full + text + cross
    assert found["CUDA graph"] == found["compact"]
    assert found["#24059"].by_place["norm1"] == found["all sites"].by_place["norm1"]
    assert "gate" not in found["#24059"].by_place
    totals = [found[name].total for name in ("before", "#24059", "all sites", "compact")]
    assert totals == sorted(totals, reverse=True)
    assert "torch.compile" not in found


# Launches and kernels


def test_launches_and_kernels_are_told_apart() -> None:
    timed = TimedArm(
        arm_of("helios", "all sites"),
        profile=[
            Activity("cudaLaunchKernel", False, 5e-6),
            Activity("cuLaunchKernelEx", False, 4e-6),
            Activity("cudaGraphLaunch", False, 9e-6),
            Activity("cudaMemcpyAsync", False, 9e-6),
            Activity("aten::mul", False, 9e-6),
            Activity("gemm", True, 3e-3),
            Activity("_rms_norm_kernel", True, 5e-4),
            Activity("_rms_norm_kernel", True, 5e-4),
            Activity("Memcpy DtoD (Device -> Device)", True, 1e-3),
        ],
    )
    assert (timed.launches, timed.kernels) == (3, 3)
    lines = [line.split() for line in denoise_report.kernel_table(timed).splitlines()]
    assert lines[1] == ["gemm", "3.000", "60.0%", "1"]
    assert ["_rms_norm_kernel", "1.000", "20.0%", "2"] in lines
    assert not any("aten::mul" in line for line in lines)


# The command


def test_without_a_gpu_nothing_is_timed_and_that_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(FIXTURES / "checkpoints" / "helios-tiny")
    assert cli.main(["bench", "denoise", "--model", "helios", "--checkpoint", checkpoint]) == cli.PASSED
    out = capsys.readouterr().out
    assert "3 layers of width 128, 11040 tokens" in out
    assert "a step at least 15% below the path before, aiming at 19%, in less memory" in out
    assert "Nothing was timed" in out.splitlines()[-1]
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model helios --gpu", "sees no usable GPU"),
        ("--model odd", "unknown model 'odd', expected one of: helios, hunyuan3d"),
        ("--model helios --tiny --arm odd", "unknown arm 'odd', expected some of: before, #24059"),
        ("--model helios --tiny --rounds 0", "--rounds: 0, expected an integer >= 1"),
        ("--model helios --tiny --steps 0", "--steps: 0, expected an integer >= 1"),
        ("--model helios --tiny --replays 3", "--replays: 3, expected at least 4"),
        ("--model helios --tiny --profile", "--profile: kernels are seen on a GPU only"),
        ("--model helios --tiny --checkpoint nowhere", "no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments: str, says: str, refused: Callable[[list[str], str], None]) -> None:
    refused(["bench", "denoise", *arguments.split()], says)


def test_a_model_that_does_not_fit_is_one_line(
    refused: Callable[[list[str], str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nsecond line")

    monkeypatch.setattr(denoise, "denoiser_of", lambda _model: full)
    says = "--model helios: the path before the fusions does not fit: CUDA out of memory."
    refused(["bench", "denoise", "--model", "helios", "--tiny"], says)


def test_the_command_times_a_tiny_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model hunyuan3d --tiny --arm #24287 --ops validation.adapters.torch_native --rounds 1 --steps 1"
    words += " --drift none --replays 0 --decodes 0"
    assert cli.main(["bench", "denoise", *words.split()]) == cli.PASSED
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("  #24287"))
    assert line.split("  ")[-2:] == ["not measured", "not measured"]
    assert "a decode, which was not timed" in out
    assert len(list((here / "benchmarks" / "results").iterdir())) == 2
