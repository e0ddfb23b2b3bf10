"""How far apart two videos are: PSNR, SSIM, and where it is worst.

Frames are ``[T, H, W, C]`` arrays of one floating dtype or of uint8; ``data_range`` is the distance
between black and white (1.0, or 255). All sums are taken in float64. PSNR is the dB of the pooled mean
squared error, ``10 log10(data_range^2 / MSE)``; identical frames have infinite PSNR, which is never
averaged. A NaN or an infinity makes the numbers of the frames it touches NaN, which is below every floor.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

TILE = 32

# scikit-image cuts the Gaussian of sigma 1.5 at 3.5 sigma: a window of 11 pixels.
SSIM_WINDOW = 11

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
    return _decibels(float(np.mean(_squared_error(reference, candidate))), data_range)


def compare(reference: Frames, candidate: Frames, data_range: float) -> Comparison:
    """Compare two videos frame by frame.

    Raises:
        FramesDifferError: count or size of the frames differ; nothing is trimmed.
        ValueError: no frames, or frames smaller than SSIM's window of 11 pixels.
    """
    _require_same_shape(reference, candidate)
    if reference.ndim != 4 or min(reference.shape) < 1 or min(reference.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"frames have shape {list(reference.shape)}, expected [T, H, W, C] with T >= 1 and H, W >= {SSIM_WINDOW}"
        )
    error = _squared_error(reference, candidate)
    per_frame = [_decibels(float(frame.mean()), data_range) for frame in error]
    worst = _lowest(per_frame)
    tiles = _tile_means(error)
    # argmax takes a NaN for the greatest.
    frame, row, column = (int(i) for i in np.unravel_index(np.argmax(tiles), tiles.shape))
    similarity = [_ssim(a, b, data_range) for a, b in zip(reference, candidate, strict=True)]
    worst_similarity = _lowest(similarity)
    temporal = math.nan
    if len(reference) > 1:
        temporal = _decibels(float(np.mean(_squared_error(_steps(reference), _steps(candidate)))), data_range)
    return Comparison(
        psnr=_decibels(float(error.mean()), data_range),
        psnr_per_frame=per_frame,
        psnr_worst_frame=per_frame[worst],
        worst_frame=worst,
        psnr_worst_tile=_decibels(float(tiles[frame, row, column]), data_range),
        worst_tile=(frame, row * TILE, column * TILE),
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


def _squared_error(reference: Frames, candidate: Frames) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        error: npt.NDArray[np.float64] = np.square(candidate.astype(np.float64) - reference.astype(np.float64))
    # An infinity in one of them is as little a colour as a NaN is.
    error[~np.isfinite(error)] = np.nan
    return error


def _steps(frames: Frames) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.diff(frames.astype(np.float64), axis=0)


def _decibels(mean_squared_error: float, data_range: float) -> float:
    if mean_squared_error == 0.0:
        return math.inf
    return 10.0 * math.log10(data_range**2 / mean_squared_error)


def _lowest(values: list[float]) -> int:
    return min(range(len(values)), key=lambda i: (not math.isnan(values[i]), values[i]))


def _tile_means(error: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean squared error of each tile, ``[T, rows, columns]``."""
    pixels = error.mean(axis=3)
    starts = [np.arange(0, size, TILE) for size in pixels.shape[1:]]
    sums = np.add.reduceat(np.add.reduceat(pixels, starts[0], axis=1), starts[1], axis=2)
    heights, widths = (np.diff([*start, size]) for start, size in zip(starts, pixels.shape[1:], strict=True))
    means: npt.NDArray[np.float64] = sums / (heights[:, None] * widths[None, :])
    return means


def _ssim(reference: Frames, candidate: Frames, data_range: float) -> float:
    """SSIM as Wang et al. 2004 have it: Gaussian weights of sigma 1.5, biased covariance, mean over channels."""
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return math.nan
    return float(
        structural_similarity(
            reference,
            candidate,
            data_range=data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
