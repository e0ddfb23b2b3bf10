"""The distance between two videos: PSNR, SSIM, and the worst places.

Frames are ``[T, H, W, C]`` arrays of one floating dtype or of integers; ``data_range`` is the distance
between black and white (1.0, or 255). All arithmetic is float64. PSNR is the dB of the pooled mean
squared error, ``10 log10(data_range^2 / MSE)``; identical frames have infinite PSNR, which is never
averaged. A NaN or an infinity makes the numbers of the frames it touches NaN, which is below every floor.

SSIM is defined by Wang et al., "Image quality assessment: from error visibility to structural similarity"
(2004): Gaussian weights of sigma 1.5 cut at 3.5 sigma, biased covariances, the mean over all windows that
lie inside the frame, then over channels; scikit-image computes the same in float64 with
``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. (For float32 frames scikit-image computes in
float32, which is up to 6e-6 from its own float64 on flat frames and on small ones.)

Runs of frames are read in bands of rows, so that memory does not depend on the number of frames, and hardly on
their size. With ``s = x + y`` and ``d = x - y`` four filtered planes suffice; x, y, x^2, y^2 and xy would be five.
The weighted variances of s and d add up to ``2 (var x + var y)`` and differ by ``4 cov(x, y)``, and likewise their
squared means, so that SSIM is ``(1 - 2 a) (1 - 2 b)`` with the shares of d in the sums of the squared means
(with C1) and of the variances (with C2): exactly 1 where d is 0.

float32 would take 0.6 of the time but is not accurate enough: it was off by 6e-6 on a noisy clip and by up to 1e-4 on
flat frames. The variance of a flat part is the difference of two numbers up to data_range^2, whose roundings of 6e-8
compare with C2 = 9e-4 data_range^2, and subtracting one colour first does not suit a frame of several flat parts.
"""

import dataclasses
import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from validation.device.threads import one_thread

TILE = 32

SIGMA = 1.5
RADIUS = int(3.5 * SIGMA + 0.5)
SSIM_WINDOW = 2 * RADIUS + 1
K1, K2 = 0.01, 0.03

# Rows of windows in a band. On a shared core with 1 MB of second-level cache, a frame of 832 x 480 took 20.5 ms with
# 96, 22.8 ms with 64 and 27.5 ms with 32; 160 took 7 % and 240 took 11 % more than 96. On a GPU, launches would cost
# more than memory does.
BAND_ROWS = {"cpu": 96, "cuda": 512}
# Rows and columns of windows per small matrix product. Down, 8 took 5.1 ms a frame, 4 and 12 took 5.3 ms, 16 and 24
# took 5.7 and 6.8 ms; across, 12 took 5.3 ms and 24 took 6.7 ms.
DOWN, ACROSS = 8, 12
# Consecutive frames per thread: for all but the first, the previous frame's difference is already computed.
RUN = 16

Frames = npt.NDArray[Any]


class FramesDifferError(ValueError):
    """Two videos cannot be compared because count or size of their frames differ."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The distance of a candidate's frames from a reference's.

    Attributes:
        psnr: dB over all frames.
        psnr_per_frame: dB of each.
        psnr_worst_frame, worst_frame: the lowest per frame (NaN counts as lowest), and its index.
        psnr_worst_tile: dB of the worst tile of 32 x 32 pixels (smaller at the right and lower edge).
        worst_tile: its frame, and the row and column of its upper left pixel.
        psnr_temporal: dB between the differences of successive frames; NaN for a single frame.
        ssim_per_frame, ssim_mean, ssim_worst_frame: structural similarity.
        worst_ssim_frame: index of the frame with the lowest.
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
        reference, candidate: ``[T, H, W, C]``; may be memory-mapped: one band of rows is read at a time.
        data_range: the distance between black and white.
        device: where to compute. On the CPU, one frame per core that this process may use, each on one thread:
            the same bits on any number of cores.

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
    # NaN counts as the greatest, as in numpy's argmax.
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
    """Replace an infinity by NaN: neither is a valid colour."""
    return value if math.isfinite(value) else math.nan


@dataclasses.dataclass(frozen=True)
class _Frame:
    """One frame's sums: squared error over all its values, mean squared error of its worst tile, SSIM.

    step_error is the squared error of the difference from the previous frame; 0 for the first.
    """

    squared_error: float
    step_error: float
    worst_tile: float
    worst_tile_at: tuple[int, int]
    ssim: float


def _measure_all(reference: Frames, candidate: Frames, data_range: float, device: torch.device) -> list[_Frame]:
    mine = threading.local()

    def measure(run: tuple[int, int]) -> list[_Frame]:
        if not hasattr(mine, "bands"):
            mine.bands = _Bands(reference.shape, data_range, device)
        bands: _Bands = mine.bands
        first, end = run
        before = max(first - 1, 0)
        return bands.measure(reference[before:end], candidate[before:end], first - before)

    frames = len(reference)
    threads = min(frames, len(os.sched_getaffinity(0))) if device.type == "cpu" else 1
    # The same number of runs for each thread, if there are enough frames.
    count = min(frames, threads * math.ceil(frames / (threads * RUN)))
    runs = itertools.pairwise(frames * i // count for i in range(count + 1))
    if device.type != "cpu":
        return [frame for run in runs for frame in measure(run)]
    # Threads over frames rather than inside an operation: a frame is tens of milliseconds of work in which no
    # thread waits (spinning, with OpenMP) for another whose core is busy.
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return [frame for run in pool.map(measure, runs) for frame in run]


class _Bands:
    """Buffers of one thread, which measures frames of one size, one channel of one band of rows at a time."""

    def __init__(self, shape: tuple[int, ...], data_range: float, device: torch.device) -> None:
        _, self.height, self.width, self.channels = shape
        self.constants = 2 * (K1 * data_range) ** 2, 2 * (K2 * data_range) ** 2
        self.windows = self.height - 2 * RADIUS, self.width - 2 * RADIUS
        self.outputs = min(BAND_ROWS.get(device.type, BAND_ROWS["cuda"]), self.windows[0])
        lines, blocks = math.ceil(self.outputs / DOWN) * DOWN, math.ceil(self.windows[1] / ACROSS)
        # Columns beyond the frame stay 0: the last tile and the last block are as wide as the others.
        padded = math.ceil(max(self.width, blocks * ACROSS + 2 * RADIUS) / TILE) * TILE

        def new(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        # x, then s, then s^2 + d^2; y, then d^2.
        self.planes = new(2, lines + 2 * RADIUS, padded)
        # d of each channel, of this frame and of the one before.
        self.differences = new(2, self.channels, lines + 2 * RADIUS, padded)
        # s, d, s^2 + d^2 and d^2: filtered down, one after the other; then across too, columns before rows.
        self.down, self.both = new(lines, padded), new(4, blocks, ACROSS, lines)
        distance = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 / SIGMA**2 * distance**2)
        # The filter as products with banded matrices.
        self.weights = new(DOWN, DOWN + 2 * RADIUS), new(ACROSS, ACROSS + 2 * RADIUS)
        for offset, weight in enumerate((weights / weights.sum()).tolist()):
            for matrix in self.weights:
                matrix.diagonal(offset).fill_(weight)

    def measure(self, reference: Frames, candidate: Frames, skip: int) -> list[_Frame]:
        """Measure successive frames after the first `skip`, 0 or 1; a skipped frame only starts the next one's step."""
        errors = self.down.new_zeros(len(reference), self.height, self.down.shape[1] // TILE)
        # 1 - SSIM summed over all windows, and the squared error of the step from the previous frame.
        totals = self.down.new_zeros(len(reference), 2)
        for start in range(0, self.windows[0], self.outputs):
            end = min(self.height, start + self.outputs + 2 * RADIUS)
            # The last rows of a band are the first of the next one and are counted there.
            counted = end - start if end == self.height else self.outputs
            # Clear what the previous band left below a shorter one: it may be NaN, and NaN times 0 is NaN.
            self.planes[:, end - start :] = 0
            for t in range(len(reference)):
                x, y = self._rows(reference[t, start:end]), self._rows(candidate[t, start:end])
                for channel in range(self.channels):
                    d, before = self.differences[t % 2, channel], self.differences[1 - t % 2, channel]
                    self._load(d, x[:, :, channel], y[:, :, channel])
                    if t > 0:
                        # (x1 - x0) - (y1 - y0) is (x1 - y1) - (x0 - y0).
                        step = torch.sub(d[:counted], before[:counted], out=self.planes[1, :counted]).view(-1)
                        totals[t, 1] += step.dot(step)
                    if t >= skip:
                        totals[t, 0] += self._dissimilarity(d, end - start - 2 * RADIUS)
                        square = self.planes[1, :counted]
                        errors[t, start : start + counted] += square.view(counted, -1, TILE).sum(2)
        count = math.prod(self.windows) * self.channels
        tile_errors = errors[:, :, : math.ceil(self.width / TILE)].cpu().numpy()
        return [
            _frame(tile_errors[t], (self.width, self.channels), step_error, 1 - distance / count)
            for t, (distance, step_error) in enumerate(totals.tolist())
            if t >= skip
        ]

    def _rows(self, rows: Frames) -> Frames | Tensor:
        if self.down.device.type == "cpu":
            return rows
        # Copied to the device unchanged and cast to float64 there: a quarter or an eighth of the bytes.
        return torch.from_numpy(np.array(rows)).to(self.down.device)

    def _load(self, d: Tensor, reference: Frames | Tensor, candidate: Frames | Tensor) -> None:
        for plane, values in zip(self.planes, (reference, candidate), strict=True):
            inside = plane[: len(values), : self.width]
            if isinstance(values, Tensor):
                inside.copy_(values)
            else:
                np.copyto(inside.numpy(), values)
        x, y = self.planes
        torch.sub(x, y, out=d)
        x.add_(y)

    def _filter(self, plane: Tensor, filtered: Tensor, outputs: int) -> None:
        """Filter `outputs` rows of windows; each block also reads the first rows, or columns, of the next one."""
        down, across = self.weights
        bands, padded = math.ceil(outputs / DOWN), plane.shape[1]
        blocks = plane.as_strided((bands, DOWN + 2 * RADIUS, padded), (DOWN * padded, padded, 1))
        torch.bmm(down.expand(bands, -1, -1), blocks, out=self.down[: bands * DOWN].view(bands, DOWN, padded))
        blocks = self.down.as_strided((len(filtered), ACROSS + 2 * RADIUS, len(self.down)), (ACROSS, 1, padded))
        torch.bmm(across.expand(len(filtered), -1, -1), blocks, out=filtered)

    def _dissimilarity(self, d: Tensor, outputs: int) -> Tensor:
        """1 - SSIM summed over `outputs` rows of windows, from the loaded s and d; leaves d^2 in planes[1]."""
        s, square = self.planes
        means, mean, variances, variance = self.both.flatten(1, 2)[:, : self.windows[1], :outputs]
        # Each plane is used while it is in the cache: means become squared means, of both and of d,
        self._filter(s, self.both[0], outputs)
        self._filter(d, self.both[1], outputs)
        torch.mul(mean, mean, out=mean)
        torch.addcmul(mean, means, means, out=means)
        # then mean squares become variances.
        torch.mul(d, d, out=square)
        self._filter(square, self.both[3], outputs)
        variance.sub_(mean)
        self._filter(torch.addcmul(square, s, s, out=s), self.both[2], outputs)
        variances.sub_(means)
        mean.div_(means.add_(self.constants[0]))
        variance.div_(variances.add_(self.constants[1]))
        # 1 - (1 - 2 a) (1 - 2 b)
        variance.addcmul_(mean, variance, value=-2)
        return torch.add(mean.sum(), variance.sum()).mul(2)


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
