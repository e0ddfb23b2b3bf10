"""How far apart two videos are: PSNR, SSIM, and where it is worst.

Frames are ``[T, H, W, C]`` arrays of one floating dtype or of integers; ``data_range`` is the distance
between black and white (1.0, or 255). All arithmetic is float64. PSNR is the dB of the pooled mean
squared error, ``10 log10(data_range^2 / MSE)``; identical frames have infinite PSNR, which is never
averaged. A NaN or an infinity makes the numbers of the frames it touches NaN, which is below every floor.

SSIM is that of Wang et al., "Image quality assessment: from error visibility to structural similarity"
(2004): Gaussian weights of sigma 1.5 cut at 3.5 sigma, biased covariances, the mean over all windows that
lie inside the frame, then over channels; what scikit-image computes in float64 with
``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. (Of float32 frames scikit-image computes in
float32, which lies up to 6e-6 from its own float64 on flat frames and on small ones.)

A frame is read in bands of rows whose intermediate values fit a core's second-level cache, so that the
memory taken does not depend on the count of frames, and hardly on their size. With ``s = x + y`` and
``d = x - y`` four filtered planes do where x, y, x^2, y^2 and xy would be five: the weighted variances of s
and d add up to ``2 (var x + var y)`` and differ by ``4 cov(x, y)``, as their squared means do likewise.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TILE = 32

SIGMA = 1.5
RADIUS = int(3.5 * SIGMA + 0.5)
SSIM_WINDOW = 2 * RADIUS + 1
K1, K2 = 0.01, 0.03

# Rows of a band. On a core with 1 MB of second-level cache 12, 16 and 24 took 29.5 ms for a frame of 832 x 480,
# 32 took 33 ms. On a GPU launches would cost more than memory does.
BAND_ROWS = {"cpu": 16, "cuda": 128}

Frames = npt.NDArray[Any]


class FramesDifferError(ValueError):
    """Two videos differ in count or size of their frames, so that there is nothing to compare."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The distance of a candidate's frames from a reference's.

    Attributes:
        psnr: dB over all frames.
        psnr_per_frame: dB of each.
        psnr_worst_frame, worst_frame: the lowest of them (NaN before any number), and its index.
        psnr_worst_tile: dB of the worst tile of 32 x 32 pixels (smaller at the right and lower edge).
        worst_tile: its frame, and the row and column of its upper left pixel.
        psnr_temporal: dB between the differences of successive frames; NaN for a single frame.
        ssim_per_frame, ssim_mean, ssim_worst_frame: structural similarity.
        worst_ssim_frame: index of the lowest.
    """

    psnr: float
    psnr_per_frame: list[float]
    psnr_worst_frame: float
    worst_frame: int
    psnr_worst_tile: float
    worst_tile: tuple[int, int, int]
    psnr_temporal: float
    ssim_per_frame: list[float]
    ssim_mean: float
    ssim_worst_frame: float
    worst_ssim_frame: int


def psnr(reference: Frames, candidate: Frames, data_range: float) -> float:
    """PSNR in dB of the pooled mean squared error; inf if identical, NaN if something is not finite.

    Raises:
        FramesDifferError: the shapes differ.
    """
    _require_same_shape(reference, candidate)
    with np.errstate(invalid="ignore", over="ignore"):
        frames = zip(reference, candidate, strict=True)
        sums = [float(np.square(x.astype(np.float64) - y.astype(np.float64)).sum()) for x, y in frames]
    return _decibels(_mean(sums, reference.size), data_range)


def compare(reference: Frames, candidate: Frames, data_range: float, device: torch.device | str = "cpu") -> Comparison:
    """Compare two videos frame by frame.

    Args:
        reference, candidate: ``[T, H, W, C]``; memory-mapped files will do, one band of rows is read at a time.
        data_range: the distance between black and white.
        device: where to compute. On the CPU, as many frames at a time as this process may use cores, each on
            one thread: the same bits on any number of cores.

    Raises:
        FramesDifferError: count or size of the frames differ; nothing is trimmed.
        ValueError: no frames, or frames smaller than SSIM's window of 11 pixels.
    """
    _require_same_shape(reference, candidate)
    if reference.ndim != 4 or min(reference.shape) < 1 or min(reference.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"frames have shape {list(reference.shape)}, expected [T, H, W, C] with T >= 1 and H, W >= {SSIM_WINDOW}"
        )
    frames = _measure_all(reference, candidate, data_range, torch.device(device))
    size = reference[0].size
    per_frame = [_decibels(frame.squared_error / size, data_range) for frame in frames]
    worst = _lowest(per_frame)
    # A NaN for the greatest, as numpy's argmax takes it.
    at_tile = max(range(len(frames)), key=lambda t: (math.isnan(frames[t].worst_tile), frames[t].worst_tile, -t))
    similarity = [frame.ssim for frame in frames]
    worst_similarity = _lowest(similarity)
    temporal = math.nan
    if len(frames) > 1:
        temporal = _decibels(_mean([frame.step_error for frame in frames[1:]], size * (len(frames) - 1)), data_range)
    return Comparison(
        psnr=_decibels(_mean([frame.squared_error for frame in frames], size * len(frames)), data_range),
        psnr_per_frame=per_frame,
        psnr_worst_frame=per_frame[worst],
        worst_frame=worst,
        psnr_worst_tile=_decibels(frames[at_tile].worst_tile, data_range),
        worst_tile=(at_tile, *frames[at_tile].worst_tile_at),
        psnr_temporal=temporal,
        ssim_per_frame=similarity,
        ssim_mean=float(np.mean(similarity)),
        ssim_worst_frame=similarity[worst_similarity],
        worst_ssim_frame=worst_similarity,
    )


def _require_same_shape(reference: Frames, candidate: Frames) -> None:
    if reference.shape == candidate.shape:
        return
    if reference.ndim == candidate.ndim and reference.shape[1:] == candidate.shape[1:]:
        raise FramesDifferError(f"candidate has {len(candidate)} frames, expected {len(reference)}")
    raise FramesDifferError(f"candidate frames have shape {list(candidate.shape)}, expected {list(reference.shape)}")


def _decibels(mean_squared_error: float, data_range: float) -> float:
    if mean_squared_error == 0.0:
        return math.inf
    return 10.0 * math.log10(data_range**2 / mean_squared_error)


def _lowest(values: list[float]) -> int:
    return min(range(len(values)), key=lambda i: (not math.isnan(values[i]), values[i]))


def _mean(sums: list[float], count: int) -> float:
    return _finite(float(np.sum(sums))) / count


def _finite(value: float) -> float:
    """NaN for an infinity, which is as little a colour as NaN is."""
    return value if math.isfinite(value) else math.nan


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One frame's sums: squared error over all its values, mean squared error of its worst tile, SSIM.

    step_error is the squared error of the step from the frame before; 0 for the first.
    """

    squared_error: float
    step_error: float
    worst_tile: float
    worst_tile_at: tuple[int, int]
    ssim: float


def _measure_all(reference: Frames, candidate: Frames, data_range: float, device: torch.device) -> list[_Frame]:
    mine = threading.local()

    def measure(t: int) -> _Frame:
        if not hasattr(mine, "bands"):
            mine.bands = _Bands(reference.shape, data_range, device)
        bands: _Bands = mine.bands
        return bands.measure(reference[max(t - 1, 0) : t + 1], candidate[max(t - 1, 0) : t + 1])

    times = range(len(reference))
    if device.type != "cpu":
        return [measure(t) for t in times]
    # Threads over frames rather than inside an operation: a frame is tens of milliseconds of work without a
    # point where one thread waits (spinning, with OpenMP) for another whose core is taken.
    with _one_thread_each(), ThreadPoolExecutor(min(len(times), len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(measure, times))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Bands:
    """The memory in which one thread measures frames of one size, band by band."""

    def __init__(self, shape: tuple[int, ...], data_range: float, device: torch.device) -> None:
        _, self.height, width, channels = shape
        self.constants = 2 * (K1 * data_range) ** 2, 2 * (K2 * data_range) ** 2
        self.row, self.channels = width * channels, channels
        inner = (width - 2 * RADIUS) * channels
        rows = min(BAND_ROWS.get(device.type, BAND_ROWS["cuda"]) + 2 * RADIUS, self.height)
        outputs = rows - 2 * RADIUS

        def new(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        self.x, self.y = new(rows, width, channels), new(rows, width, channels)
        # s, d, s^2, d^2; the columns beyond the frame stay 0, so that the last tile is as wide as the others.
        self.planes = new(rows, 4, -(-width // TILE) * TILE * channels)
        self.across, self.both, self.products = new(rows, 4, inner), new(outputs, 4, inner), new(outputs, 4, inner)
        self.totals = new(2)
        distance = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 / SIGMA**2 * distance**2)
        self.weights: list[float] = (weights / weights.sum()).tolist()
        # The filter down the columns as a product with a banded matrix, a row for each row that comes out.
        self.down = new(outputs, rows)
        for offset, weight in enumerate(self.weights):
            self.down.diagonal(offset).fill_(weight)

    def measure(self, reference: Frames, candidate: Frames) -> _Frame:
        """Measure the last of one or two successive frames."""
        tiles = []
        self.totals.zero_()
        start = kept = 0
        while start < self.height:
            end = min(self.height, start + len(self.across) - kept)
            rows, new = kept + end - start, slice(start, end)
            planes = self.planes[: end - start]
            self._load(planes, reference[-1, new], candidate[-1, new])
            tiles.append(planes[:, 3].view(len(planes), -1, TILE * self.channels).sum(2))
            if len(reference) > 1:
                self._add_step_error(planes[:, 1, : self.row], reference[0, new], candidate[0, new])
            self._filter_across(planes, self.across[kept:rows])
            self._add_similarity(rows)
            # The windows of the next band begin in the last rows of this one.
            kept, start = 2 * RADIUS, end
            if start < self.height:
                self.across[:kept].copy_(self.across[rows - kept : rows])
        similarity, step_error = self.totals.tolist()
        windows = (self.height - 2 * RADIUS) * self.across.shape[2]
        return _frame(torch.cat(tiles).cpu().numpy(), reference.shape[2:], step_error, similarity / windows)

    def _to(self, target: Tensor, rows: Frames) -> Tensor:
        target = target[: len(rows)]
        if target.device.type == "cpu":
            np.copyto(target.numpy(), rows)
        else:
            # As they are to the device, float64 there: a quarter of the bytes, or an eighth.
            target.copy_(torch.from_numpy(np.array(rows)).to(target.device))
        return target.flatten(1)

    def _load(self, planes: Tensor, reference: Frames, candidate: Frames) -> None:
        x, y = self._to(self.x, reference), self._to(self.y, candidate)
        torch.add(x, y, out=planes[:, 0, : self.row])
        torch.sub(x, y, out=planes[:, 1, : self.row])
        torch.mul(planes[:, :2], planes[:, :2], out=planes[:, 2:])

    def _add_step_error(self, difference: Tensor, reference: Frames, candidate: Frames) -> None:
        # (x1 - x0) - (y1 - y0) is (x1 - y1) - (x0 - y0).
        step = self._to(self.x, reference).sub_(self._to(self.y, candidate)).sub_(difference).flatten()
        self.totals[1] += step.dot(step)

    def _filter_across(self, planes: Tensor, filtered: Tensor) -> None:
        def shifted(offset: int) -> Tensor:
            return planes[:, :, offset * self.channels :][:, :, : filtered.shape[2]]

        torch.mul(shifted(RADIUS), self.weights[RADIUS], out=filtered)
        for offset in range(RADIUS):
            filtered.add_(shifted(offset), alpha=self.weights[offset])
            filtered.add_(shifted(2 * RADIUS - offset), alpha=self.weights[offset])

    def _add_similarity(self, rows: int) -> None:
        """Add up SSIM over the windows of so many rows of `across`."""
        outputs = rows - 2 * RADIUS
        both, products = self.both[:outputs], self.products[:outputs]
        torch.mm(self.down[:outputs, :rows], self.across[:rows].flatten(1), out=both.flatten(1))
        # Squared means of s and d, then their variances.
        squares, variances = products[:, :2], both[:, 2:]
        torch.mul(both[:, :2], both[:, :2], out=squares)
        variances.sub_(squares)
        upper, lower = products[:, 2:], both[:, :2]
        for plane, (pair, constant) in enumerate(zip((squares, variances), self.constants, strict=True)):
            pair[:, 0].add_(constant)
            torch.sub(pair[:, 0], pair[:, 1], out=upper[:, plane])
            torch.add(pair[:, 0], pair[:, 1], out=lower[:, plane])
        self.totals[0] += upper[:, 0].mul_(upper[:, 1]).div_(lower[:, 0].mul_(lower[:, 1])).sum()


def _frame(errors: npt.NDArray[np.float64], shape: tuple[int, ...], step_error: float, similarity: float) -> _Frame:
    """A frame from the squared errors of each row's tiles, ``[H, tiles]``; shape is ``(W, C)``."""
    starts = np.arange(0, len(errors), TILE)
    sums = np.add.reduceat(errors, starts, axis=0)
    heights = np.diff([*starts, len(errors)])
    widths = np.diff([*range(0, shape[0], TILE), shape[0]])
    means = sums / (heights[:, None] * widths * shape[1])
    means[~np.isfinite(means)] = np.nan
    row, column = (int(i) for i in np.unravel_index(np.argmax(means), means.shape))
    return _Frame(
        squared_error=_finite(float(sums.sum())),
        step_error=_finite(step_error),
        worst_tile=float(means[row, column]),
        worst_tile_at=(row * TILE, column * TILE),
        ssim=_finite(similarity),
    )
