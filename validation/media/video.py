"""Video files: lossless ones to compare later, mp4 previews to look at.

The suffix decides: ``.npz`` (raw, key ``frames``) and ``.mkv`` (FFV1 in RGB) give back every bit;
``.mp4`` (H.264, 4:2:0, for browsers) does not, and is only for viewing. Frames are uint8 RGB,
``[T, H, W, 3]``. Reading never trims: a file with an unexpected count or size is an error.
"""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt

from validation.errors import UsageError

UInt8Frames = npt.NDArray[np.uint8]

_ENCODERS: dict[str, dict[str, Any]] = {
    # quality 9 of 10; faststart puts the index first, so that a browser can play while it loads.
    ".mp4": {"codec": "libx264", "quality": 9, "output_params": ["-movflags", "+faststart"]},
    ".mkv": {"codec": "ffv1", "pixelformat": "bgr0"},
}
SUFFIXES = (".npz", *_ENCODERS)


class VideoError(Exception):
    """A video file is missing, damaged, or holds unexpected frames."""


def to_uint8(frames: npt.NDArray[np.floating[Any]]) -> UInt8Frames:
    """Round frames in [0, 1] to 8-bit values, to nearest; NaN becomes 0, so compare before converting."""
    eight_bit: UInt8Frames = np.rint(np.nan_to_num(frames.clip(0, 1)) * 255).astype(np.uint8)
    return eight_bit


def difference(
    reference: npt.NDArray[np.floating[Any]], candidate: npt.NDArray[np.floating[Any]]
) -> tuple[UInt8Frames, int]:
    """The amplified absolute difference of two videos in [0, 1], and the factor.

    The factor is the greatest power of two, at most 4096, with which at most 1 % of the values exceed
    white. A value that is not finite in either video becomes white.
    """
    with np.errstate(invalid="ignore"):
        distance = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
    distance[~np.isfinite(distance)] = 1.0
    bright = float(np.quantile(distance, 0.99)) if distance.size else 0.0
    factor = 1
    while factor < 4096 and bright * factor * 2 <= 1.0:
        factor *= 2
    return to_uint8(distance * factor), factor


def write_video(path: Path, frames: UInt8Frames, fps: int = 16) -> None:
    """Write frames to a file whose suffix is one of `SUFFIXES`; makes its folder.

    Raises:
        ValueError: an unknown suffix, or frames that are not uint8 ``[T >= 1, H, W, 3]`` (even H and W for mp4).
        UsageError: the file cannot be written.
    """
    _require_suffix(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape) < 1:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [T, H, W, 3]")
    if path.suffix == ".mp4" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"frames are {frames.shape[1]} x {frames.shape[2]}, expected even sides for mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            np.savez_compressed(path, frames=frames, fps=np.int64(fps))
        else:
            # macro_block_size 1: imageio would otherwise scale the frames to a multiple of 16.
            iio.imwrite(
                path, frames, plugin="FFMPEG", fps=fps, macro_block_size=1, ffmpeg_log_level="error",
                **_ENCODERS[path.suffix],
            )  # fmt: skip
    except OSError as error:
        reason = error.strerror or str(error).strip().splitlines()[0]
        raise UsageError(f"cannot write {path}: {reason}, expected a writable folder") from error


def read_video(path: Path, shape: tuple[int, int, int] | None = None) -> UInt8Frames:
    """Read all frames of a file written by `write_video`.

    Args:
        path: the file.
        shape: the expected count, height and width.

    Raises:
        ValueError: a suffix that is not in `SUFFIXES`.
        VideoError: the file is missing, damaged or cut short, or its frames do not have `shape`.
    """
    _require_suffix(path)
    if not path.is_file():
        raise VideoError(f"no file {path}, expected a video")
    try:
        frames = _read_npz(path) if path.suffix == ".npz" else _read_encoded(path)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise VideoError(f"{path} is damaged ({reason}), expected a video") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise VideoError(f"{path} holds {frames.dtype} {list(frames.shape)}, expected uint8 [T, H, W, 3]")
    if shape is not None and frames.shape[:3] != shape:
        count, height, width = frames.shape[:3]
        raise VideoError(
            f"{path} has {count} frames of {height} x {width}, expected {shape[0]} of {shape[1]} x {shape[2]}"
        )
    return frames


def read_rate(path: Path) -> float:
    """Frames per second of a file that `read_video` reads; raises the same errors."""
    _require_suffix(path)
    try:
        if path.suffix != ".npz":
            return float(iio.immeta(path, plugin="FFMPEG")["fps"])
        with np.load(path, allow_pickle=False) as data:
            return float(data["fps"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError) as error:
        raise VideoError(f"{path} names no rate ({error}), expected frames a second") from error


def _read_npz(path: Path) -> UInt8Frames:
    with np.load(path, allow_pickle=False) as data:
        frames: UInt8Frames = data["frames"]
    return frames


def _read_encoded(path: Path) -> UInt8Frames:
    about = iio.immeta(path, plugin="FFMPEG")
    frames: UInt8Frames = iio.imread(path, plugin="FFMPEG")
    # ffmpeg decodes as much as a truncated file has; its header still has the full duration, in hundredths of a
    # second.
    missing = about["duration"] * about["fps"] - len(frames)
    if missing > 0.5 + 0.01 * about["fps"]:
        raise ValueError(f"{len(frames)} frames of {about['duration']} s at {about['fps']} fps")
    return frames


def _require_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of: {', '.join(SUFFIXES)}")
