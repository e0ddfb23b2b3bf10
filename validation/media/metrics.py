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

A frame is read in bands of rows, so that the memory taken does not depend on the count of frames, and hardly on
their size. With ``s = x + y`` and ``d = x - y`` four filtered planes do where x, y, x^2, y^2 and xy would be five:
the weighted variances of s and d add up to ``2 (var x + var y)`` and differ by ``4 cov(x, y)``, as their squared
means do likewise, so that SSIM is ``(1 - 2 a) (1 - 2 b)`` with the shares of d in the sums of the squared means
(with C1) and of the variances (with C2): exactly 1 where d is 0.

float32 would take 0.6 of the time, and is not enough: it was off by 6e-6 on a noisy clip and by up to 1e-4 on flat
frames. The variance of a flat part is the difference of two numbers up to data_range^2, whose roundings of 6e-8 stand
against C2 = 9e-4 data_range^2, and no colour that is subtracted first suits a frame of several flat parts.
"""

import dataclasses
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from validation.threads import one_thread

TILE = 32

SIGMA = 1.5
RADIUS = int(3.5 * SIGMA + 0.5)
SSIM_WINDOW = 2 * RADIUS + 1
K1, K2 = 0.01, 0.03

# Rows of a band. On a core with 1 MB of second-level cache 12 took 22.7 ms for a frame of 832 x 480, 16 and 24 took
# 21.9 ms, 32 took 22.7 ms. On a GPU launches would cost more than memory does.
BAND_ROWS = {"cpu": 16, "cuda": 128}
# Columns that one small matrix product makes. 24 took 6.8 ms a frame; 16 and 32, 10.8 and 12.1 ms, as many shifted
# additions as there are taps 10.6 ms.
BLOCK = 24

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
    with one_thread(), ThreadPoolExecutor(min(len(times), len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(measure, times))


class _Bands:
    """The memory in which one thread measures frames of one size, band by band."""

    def __init__(self, shape: tuple[int, ...], data_range: float, device: torch.device) -> None:
        _, self.height, self.width, self.channels = shape
        self.constants = 2 * (K1 * data_range) ** 2, 2 * (K2 * data_range) ** 2
        rows = min(BAND_ROWS.get(device.type, BAND_ROWS["cuda"]) + 2 * RADIUS, self.height)
        outputs, windows = rows - 2 * RADIUS, self.width - 2 * RADIUS
        self.blocks = -(-windows // BLOCK)
        self.last = windows - (self.blocks - 1) * BLOCK
        # Columns beyond the frame stay 0: the last tile and the last block are as wide as the others.
        self.padded = -(-max(self.width, self.blocks * BLOCK + 2 * RADIUS) // TILE) * TILE

        def new(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        self.x, self.y = new(rows, self.channels, self.padded), new(rows, self.channels, self.padded)
        # s, d, s^2 + d^2 and d^2; of a row, one channel after the other.
        self.planes = new(4, rows, self.channels * self.padded)
        self.down = new(4 * outputs * self.channels * self.padded)
        self.both = new(self.blocks * 4 * outputs * self.channels * BLOCK)
        self.totals = new(2)
        distance = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 / SIGMA**2 * distance**2)
        # The filter as products with banded matrices: down from the left, across from the right.
        self.from_left, self.from_right = new(outputs, rows), new(BLOCK + 2 * RADIUS, BLOCK)
        for offset, weight in enumerate((weights / weights.sum()).tolist()):
            self.from_left.diagonal(offset).fill_(weight)
            self.from_right.diagonal(-offset).fill_(weight)

    def measure(self, reference: Frames, candidate: Frames) -> _Frame:
        """Measure the last of one or two successive frames."""
        tiles = []
        self.totals.zero_()
        start = kept = 0
        while start < self.height:
            end = min(self.height, start + self.planes.shape[1] - kept)
            rows, new = kept + end - start, slice(start, end)
            planes = self.planes[:, kept:rows]
            self._load(planes, reference[-1, new], candidate[-1, new])
            tiles.append(planes[3].view(end - start, self.channels, -1, TILE).sum(3).sum(1))
            if len(reference) > 1:
                self._add_step_error(planes[1], reference[0, new], candidate[0, new])
            self._add_similarity(rows)
            # The windows of the next band begin in the last rows of this one.
            kept, start = 2 * RADIUS, end
            if start < self.height:
                self.planes[:, :kept].copy_(self.planes[:, rows - kept : rows])
        distance, step_error = self.totals.tolist()
        windows = (self.height - 2 * RADIUS) * (self.width - 2 * RADIUS) * self.channels
        tile_errors = torch.cat(tiles)[:, : -(-self.width // TILE)]
        return _frame(tile_errors.cpu().numpy(), (self.width, self.channels), step_error, 1 - distance / windows)

    def _to(self, target: Tensor, rows: Frames) -> Tensor:
        target = target[: len(rows)]
        inside = target[:, :, : self.width]
        if target.device.type == "cpu":
            np.copyto(inside.numpy(), rows.transpose(0, 2, 1))
        else:
            # As they are to the device, float64 there: a quarter of the bytes, or an eighth.
            inside.copy_(torch.from_numpy(np.array(rows)).to(target.device).transpose(1, 2))
        return target.flatten(1)

    def _load(self, planes: Tensor, reference: Frames, candidate: Frames) -> None:
        x, y = self._to(self.x, reference), self._to(self.y, candidate)
        s, d, squares, square = planes
        torch.add(x, y, out=s)
        torch.sub(x, y, out=d)
        torch.mul(d, d, out=square)
        torch.addcmul(square, s, s, out=squares)

    def _add_step_error(self, difference: Tensor, reference: Frames, candidate: Frames) -> None:
        # (x1 - x0) - (y1 - y0) is (x1 - y1) - (x0 - y0).
        step = self._to(self.x, reference).sub_(self._to(self.y, candidate)).sub_(difference).flatten()
        self.totals[1] += step.dot(step)

    def _add_similarity(self, rows: int) -> None:
        """Add up 1 - SSIM over the windows of so many rows of `planes`."""
        outputs = rows - 2 * RADIUS
        lines = outputs * self.channels
        down = self.down[: 4 * lines * self.padded].view(4, outputs, -1)
        for plane, filtered in zip(self.planes[:, :rows], down, strict=True):
            torch.mm(self.from_left[:outputs, :rows], plane, out=filtered)
        # Each block reads the first columns of the next one too.
        blocks = down.as_strided((self.blocks, 4 * lines, len(self.from_right)), (BLOCK, self.padded, 1))
        both = self.both[: self.blocks * 4 * lines * BLOCK].view(self.blocks, 4 * lines, BLOCK)
        torch.bmm(blocks, self.from_right.expand(self.blocks, -1, -1), out=both)
        # Means become squared means, of both and of d; then mean squares become variances.
        means, mean, variances, variance = both.view(self.blocks, 4, lines, BLOCK).unbind(1)
        torch.mul(mean, mean, out=mean)
        torch.addcmul(mean, means, means, out=means)
        variances.sub_(means)
        variance.sub_(mean)
        for part, whole, constant in zip((mean, variance), (means, variances), self.constants, strict=True):
            part.div_(whole.add_(constant))
            part[-1, :, self.last :] = 0
        # 1 - (1 - 2 a) (1 - 2 b)
        variance.addcmul_(mean, variance, value=-2)
        self.totals[0] += 2 * (mean.sum() + variance.sum())


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
