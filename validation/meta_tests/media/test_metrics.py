"""PSNR and SSIM against scikit-image and against sums written out in NumPy, over sizes, dtypes, ranges and layouts."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from validation.media import metrics
from validation.media.metrics import Comparison, Frames, compare, psnr

LAYOUTS: dict[str, Callable[[Frames], Frames]] = {
    "contiguous": lambda frames: frames,
    "planar": lambda frames: np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
    "reversed": lambda frames: frames[:, ::-1],
    "read-only": lambda frames: np.broadcast_to(frames[:1], frames.shape),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two videos and the distance between black and white."""

    reference: Frames
    candidate: Frames
    data_range: float


@st.composite
def pairs(draw: st.DrawFn, smallest: int = metrics.SSIM_WINDOW) -> Pair:
    """Noise or one colour, and the same with noise of some size.

    Values fill the range, hardly differ, or, unless they are integers, lie far below it and above or far beyond it.
    """
    shape = draw(st.tuples(*(st.integers(low, high) for low, high in ((1, 3), (smallest, 70), (smallest, 70), (1, 4)))))
    dtype, data_range = draw(
        st.sampled_from(
            [(np.uint8, 255.0), *((kind, r) for kind in (np.float16, np.float32, np.float64) for r in RANGES)]
        )
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clean = generator.random(shape if draw(st.booleans()) else (1, 1, 1, shape[3])) * np.ones(shape)
    noise = draw(st.sampled_from([0.0, 1e-5, 1e-3, 0.05, 1.0])) * generator.standard_normal(shape)
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    lowest, highest = draw(st.sampled_from([(0, 1), (0.4, 0.4001), *([] if dtype is np.uint8 else BEYOND)]))
    reference, candidate = (
        layout(((lowest + (highest - lowest) * video.clip(0, 1)) * data_range).astype(dtype))
        for video in (clean, clean + noise)
    )
    return Pair(reference, candidate, data_range)


RANGES = (1e-3, 1.0, 2.0, 255.0, 4095.0)
BEYOND = ((-4, 5), (10, 10.001))


def scikit_image_ssim(reference: Frames, candidate: Frames, data_range: float, **changed: Any) -> float:
    """scikit-image's SSIM of one frame in float64, with the parameters of `validation.media.metrics`.

    Given float32 or float16 it computes in float32: up to 6e-6 from its own float64 on frames of 11 to 60 pixels.
    """
    parameters = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    images = (frame.astype(np.float64) for frame in (reference, candidate))
    return float(structural_similarity(*images, data_range=data_range, channel_axis=-1, **(parameters | changed)))


def written_out(reference: Frames, candidate: Frames, data_range: float) -> dict[str, Any]:
    """The error measures of `compare`, computed from whole arrays."""

    def decibels(mean: float) -> float:
        return math.inf if mean == 0 else 10 * math.log10(data_range**2 / mean)

    x, y = reference.astype(np.float64), candidate.astype(np.float64)
    error = (x - y) ** 2
    rows, columns = (range(0, size, 32) for size in error.shape[1:3])
    tiles = {
        (t, row, column): float(error[t, row : row + 32, column : column + 32].mean())
        for t in range(len(error))
        for row in rows
        for column in columns
    }
    frames = [decibels(float(frame.mean())) for frame in error]
    steps = (np.diff(x, axis=0) - np.diff(y, axis=0)) ** 2
    return {
        "psnr": decibels(float(error.mean())),
        "psnr_per_frame": frames,
        "psnr_worst_frame": min(frames),
        "psnr_worst_tile": decibels(max(tiles.values())),
        "psnr_temporal": decibels(float(steps.mean())) if len(steps) else math.nan,
    }


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(pairs())
def test_ssim_is_scikit_images(pair: Pair) -> None:
    found = compare(pair.reference, pair.candidate, pair.data_range)
    expected = [scikit_image_ssim(x, y, pair.data_range) for x, y in zip(pair.reference, pair.candidate, strict=True)]
    assert found.ssim_per_frame == pytest.approx(expected, abs=1e-6, rel=0)
    assert found.ssim_worst_frame == min(found.ssim_per_frame)
    assert found.ssim_mean == pytest.approx(np.mean(found.ssim_per_frame), abs=1e-15)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(pairs())
def test_errors_are_those_of_whole_arrays(pair: Pair) -> None:
    found = compare(pair.reference, pair.candidate, pair.data_range)
    # float64 sums in another order.
    tolerance: dict[str, Any] = {"rel": 1e-12, "abs": 1e-10, "nan_ok": True}
    expected = written_out(pair.reference, pair.candidate, pair.data_range)
    if expected["psnr_temporal"] > 250:
        # Differences of differences in another order: rounding alone decides the value.
        del expected["psnr_temporal"]
        assert found.psnr_temporal > 250
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, **tolerance), name
    assert psnr(pair.reference, pair.candidate, pair.data_range) == pytest.approx(expected["psnr"], **tolerance)
    x, y = pair.reference.astype(np.float64), pair.candidate.astype(np.float64)
    if math.isfinite(found.psnr):
        theirs = peak_signal_noise_ratio(x, y, data_range=pair.data_range)
        assert found.psnr == pytest.approx(theirs, **tolerance)
    t, row, column = found.worst_tile
    tile = (t, slice(row, row + 32), slice(column, column + 32))
    assert found.psnr_worst_tile == pytest.approx(psnr(x[tile], y[tile], pair.data_range), **tolerance)
    assert row % 32 == column % 32 == 0


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(pairs().filter(lambda pair: pair.reference.dtype == np.uint8))
def test_psnr_of_integers_is_scikit_images_to_the_bit(pair: Pair) -> None:
    """Sums of integers are exact in any order."""
    mean = mean_squared_error(pair.reference.astype(np.float64), pair.candidate.astype(np.float64))
    exact = math.inf if mean == 0 else 10 * math.log10(pair.data_range**2 / mean)
    assert compare(pair.reference, pair.candidate, pair.data_range).psnr == exact
    assert psnr(pair.reference, pair.candidate, pair.data_range) == exact


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(pairs(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.data())
def test_what_is_not_finite_makes_its_frame_nan_and_no_other(
    pair: Pair, bad: float, in_both: bool, data: st.DataObject
) -> None:
    reference, candidate = (
        np.array(frames, dtype=np.float32 if frames.dtype == np.uint8 else frames.dtype)
        for frames in (pair.reference, pair.candidate)
    )
    clean = compare(reference, candidate, pair.data_range)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in reference.shape)
    candidate[place] = bad
    if in_both:
        reference[place] = bad
    found = compare(reference, candidate, pair.data_range)
    for t in range(len(reference)):
        if t == place[0]:
            assert math.isnan(found.psnr_per_frame[t])
            assert math.isnan(found.ssim_per_frame[t])
        else:
            assert found.psnr_per_frame[t] == clean.psnr_per_frame[t]
            assert found.ssim_per_frame[t] == clean.ssim_per_frame[t]
    assert found.worst_frame == found.worst_ssim_frame == place[0]
    assert found.worst_tile == (place[0], place[1] // 32 * 32, place[2] // 32 * 32)
    for name in ("psnr", "psnr_worst_frame", "psnr_worst_tile", "psnr_temporal", "ssim_mean", "ssim_worst_frame"):
        assert math.isnan(getattr(found, name)), name
    assert math.isnan(psnr(reference, candidate, pair.data_range))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(pairs(smallest=1).filter(lambda pair: min(pair.reference.shape[1:3]) < metrics.SSIM_WINDOW))
def test_frames_below_the_window_are_refused_as_scikit_image_refuses_them(pair: Pair) -> None:
    with pytest.raises(ValueError, match="win_size exceeds image extent"):
        scikit_image_ssim(pair.reference[0], pair.candidate[0], pair.data_range)
    shape = re.escape(str(list(pair.reference.shape)))
    with pytest.raises(ValueError, match=rf"frames have shape {shape}, expected .* H, W >= 11"):
        compare(pair.reference, pair.candidate, pair.data_range)


def test_values_that_overflow_are_nan_as_in_scikit_image() -> None:
    reference = np.full((2, 16, 16, 3), 1e200)
    candidate = -reference
    with np.errstate(all="ignore"):
        assert math.isnan(scikit_image_ssim(reference[0], candidate[0], 1.0))
    found = compare(reference, candidate, 1.0)
    assert math.isnan(found.psnr)
    assert math.isnan(found.psnr_worst_tile)
    assert math.isnan(found.ssim_mean)
    assert math.isnan(psnr(reference, candidate, 1.0))


@pytest.mark.parametrize(
    "fault",
    [
        {"gaussian_weights": False},
        {"use_sample_covariance": True},
        {"sigma": 1.4},
        {"K2": 0.031},
        {"data_range": 1.01},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_another_ssim_is_further_away_than_the_tolerance(fault: dict[str, Any]) -> None:
    """At low contrast the constants weigh as much as the variances."""
    generator = np.random.default_rng(0)
    x = 0.5 + 0.02 * generator.standard_normal((1, 40, 50, 3))
    y = x + 0.02 * generator.standard_normal(x.shape)
    assert abs(compare(x, y, 1.0).ssim_mean - scikit_image_ssim(x[0], y[0], **({"data_range": 1.0} | fault))) > 1e-5


def clip(frames: int, height: int = 96, width: int = 128) -> tuple[Frames, Frames]:
    generator = np.random.default_rng(1)
    x = generator.random((frames, height, width, 3), dtype=np.float32)
    return x, (x + generator.normal(0, 0.05, x.shape)).astype(np.float32)


def test_the_bits_do_not_depend_on_cores_or_threads() -> None:
    reference, candidate = clip(7)
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    expected = compare(reference, candidate, 1.0)
    try:
        torch.set_num_threads(2)
        assert compare(reference, candidate, 1.0) == expected
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {min(cores)})
        assert compare(reference, candidate, 1.0) == expected
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [5, 16, 41, 96])
def test_bands_of_any_height_see_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of one band, of several, and with a last one that is not full."""
    for height in (11, 25, 26, 27, 42, 96, 107):
        reference, candidate = clip(2, height)
        with monkeypatch.context() as patch:
            patch.setitem(metrics.BAND_ROWS, "cpu", metrics.BAND_ROWS["cuda"])
            whole = dataclasses.asdict(compare(reference, candidate, 1.0))
            patch.setitem(metrics.BAND_ROWS, "cpu", rows)
            found = dataclasses.asdict(compare(reference, candidate, 1.0))
        for name, value in found.items():
            assert whole[name] == pytest.approx(value, rel=1e-13), (height, name)


def test_runs_of_any_length_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = clip(7, 40, 50)
    expected = compare(reference, candidate, 1.0)
    for length in (1, 2, 3):
        monkeypatch.setattr(metrics, "RUN", length)
        assert compare(reference, candidate, 1.0) == expected


def test_a_nan_stays_in_its_frame_from_band_to_band(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last band, of 2 rows of windows, reuses memory in which a longer one ended with the NaN."""
    monkeypatch.setitem(metrics.BAND_ROWS, "cpu", 16)
    reference, candidate = clip(3, 60, 40)
    clean = compare(reference, candidate, 1.0)
    for row in range(60):
        value = reference[2, row, 20, 2]
        reference[2, row, 20, 2] = math.nan
        found = compare(reference, candidate, 1.0)
        assert np.isnan(found.ssim_per_frame).tolist() == [False, False, True], row
        assert found.ssim_per_frame[:2] == clean.ssim_per_frame[:2]
        reference[2, row, 20, 2] = value


def one_window(reference: Frames, candidate: Frames, dtype: type[np.floating[Any]], centred: bool) -> Any:
    """SSIM of frames ``[T, 11, 11]`` of range 1, from means and variances written out, as sums in `dtype`.

    Centred: variances are mean squares of deviations from the mean; else mean squares minus squared means.
    """
    tap = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = (np.outer(tap, tap) / tap.sum() ** 2).astype(dtype)
    x, y = reference.astype(dtype), candidate.astype(dtype)

    def mean(values: Frames) -> Any:
        return np.sum(weights * values, axis=(1, 2), keepdims=True, dtype=dtype)

    mx, my = mean(x), mean(y)
    if centred:
        x, y = x - mx, y - my
    both, covariance = mean(x * x) + mean(y * y), mean(x * y)
    if not centred:
        both, covariance = both - mx * mx - my * my, covariance - mx * my
    c1, c2 = dtype(1e-4), dtype(9e-4)
    return ((2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (both + c2)))[:, 0, 0]


def test_each_window_is_right_where_rounding_is_worst() -> None:
    """Frames of one window: flat and bright with little noise, halves black and white, both an offset apart.

    Tests the map, not its mean: float64 keeps it to 3e-13 here. In float32 the same sums exceed the allowed error.
    """
    generator = np.random.default_rng(0)
    worst = 0.0
    for noise in (1e-5, 1e-3, 0.01, 0.03):
        for offset in (0.0, 0.01, 0.3):
            halves = np.where(np.arange(11) < np.arange(12)[:, None], 1.0, 0.0)[:, None, :] * np.ones((1, 11, 1))
            flat = np.linspace(0.05, 1.0, 88).reshape(88, 1, 1) * np.ones((1, 11, 11))
            clean = np.concatenate([flat, halves])
            x, y = (clean + noise * generator.standard_normal(clean.shape) for _ in "xy")
            y -= offset
            found = np.array(compare(x[..., None], y[..., None], 1.0).ssim_per_frame)
            exact = one_window(x, y, np.float64, centred=True)
            assert np.abs(found - exact).max() < 1e-11
            worst = max(worst, float(np.abs(one_window(x, y, np.float32, centred=False) - exact).max()))
    assert worst > 1e-5


# Prints its peak resident memory, in bytes, after a call on clips of 8 frames, and then after one on 800.
PEAK = """
import re
import sys
from pathlib import Path
import numpy as np
from validation.media.metrics import compare, psnr
call = {"compare": lambda clip: compare(clip, clip, 1.0), "psnr": lambda clip: psnr(clip, clip, 1.0),
        "whole": lambda clip: clip.astype(np.float64)}[sys.argv[1]]
frame = np.random.default_rng(0).random((96, 128, 3), dtype=np.float32)
for frames in (8, 800):
    call(np.broadcast_to(frame, (frames, *frame.shape)))
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def growth(call: str) -> int:
    """The difference of the numbers that `PEAK` prints.

    It runs in a separate process: after a thousand tests the heap holds hundreds of MB of freed memory, and the
    236 MB of a whole clip did not raise the resident memory.
    """
    run = subprocess.run([sys.executable, "-c", PEAK, call], capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    return many - few


def test_memory_does_not_depend_on_the_count_of_frames() -> None:
    whole_clip = 8 * 800 * 96 * 128 * 3
    for call in ("compare", "psnr"):
        assert growth(call) < whole_clip / 8
    assert growth("whole") > 0.9 * whole_clip


def test_a_memory_mapped_file_is_read_frame_by_frame(tmp_path: Path) -> None:
    reference, candidate = clip(3)
    np.save(tmp_path / "clip.npy", reference)
    mapped = np.load(tmp_path / "clip.npy", mmap_mode="r")
    assert compare(mapped, candidate, 1.0) == compare(reference, candidate, 1.0)


def test_identical_frames_are_exactly_one() -> None:
    reference, _ = clip(2)
    found = compare(reference, reference.copy(), 1.0)
    assert found.ssim_per_frame == [1.0, 1.0]
    assert isinstance(found, Comparison)
