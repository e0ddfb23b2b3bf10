"""A player of two arms' frames and their amplified difference; the images are in the page's CSS, not in files."""

import base64
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt

from validation.record import Record
from validation.report import summary

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]

MAX_PIXELS = 2**20  # embedded per arm, at least one frame; a page with all frames of a large video would not open
SHEET_HEIGHT = 8192  # further frames go into a new column: few graphics processors draw more than 16384 a side
MAX_GAIN = 128  # one grey level becomes 128: half of white
ZOOMS = (0.25, 0.5, 1, 2, 3, 4, 6, 8)
WIDTH = 384  # of a pane in pixels, at most, before the reader zooms


class _NoFramesError(Exception):
    pass


def read_arms(folder: Path, record: Record, role: str) -> tuple[dict[str, Frames], list[str]]:
    """The frames of both arms of a record, from its artifacts ``<arm>_<role>``, and problems in words."""
    problems: list[str] = []
    arms: dict[str, Frames] = {}
    for arm in ("reference", "candidate"):
        try:
            arms[arm] = _read_frames(folder, record.artifacts.get(f"{arm}_{role}"))
        except _NoFramesError as error:
            problems.append(f"No {role} of the {arm}: {error}.")
    if len(arms) == 2 and arms["reference"].shape != arms["candidate"].shape:
        shapes = " and ".join(f"{list(frames.shape[:3])}" for frames in arms.values())
        problems.append(f"No difference is drawn: the arms are {shapes} ({role}, height, width).")
    return arms, problems


def player(
    arms: Mapping[str, Frames],
    name: str,
    *,
    label: str,
    note: Callable[[int], str],
    worst: int | None = None,
    rate: float,
    unit: str = "frame",
    width: int = WIDTH,
) -> tuple[dict[str, Any], list[str]]:
    """The values of ``player.html`` and the CSS of its images.

    Args:
        arms: frames by arm, at least one.
        name: unique among the players of the page.
        label: what it shows.
        note: gives the words below a frame.
        worst: the frame to begin with.
        rate: frames per second.
        unit: what a frame is.
        width: greatest width of a pane in pixels, before the reader zooms.
    """
    total = max(len(frames) for frames in arms.values())
    height = max(frames.shape[1] for frames in arms.values())
    columns = max(frames.shape[2] for frames in arms.values())
    first = 0 if worst is None else worst
    kept = _kept(total, max(1, MAX_PIXELS // (height * columns)), first)
    rows = max(1, SHEET_HEIGHT // height)
    at = kept.index(first)
    shown, style = [], []
    for arm, frames in arms.items():
        # A shorter arm lacks the last of the kept frames.
        some = frames[[frame for frame in kept if frame < len(frames)]]
        sheet = base64.b64encode(_sheet(some, rows)).decode()
        style.append(f'.{name}-{arm}{{background-image:url("data:image/png;base64,{sheet}")}}')
        size = f"--w:{frames.shape[2]};--h:{frames.shape[1]};--columns:{math.ceil(len(some) / rows)}"
        shown.append({"name": arm, "sprite": f"{name}-{arm}", "size": size, "count": len(some)})
    difference, gain = "", 1
    if len(arms) == 2 and arms["reference"].shape == arms["candidate"].shape:
        largest = _largest_difference(arms["reference"], arms["candidate"])
        difference = (
            f"largest: {summary.counted(largest, 'grey level')} of 255" if largest else "none: equal to the bit"
        )
        gain = 2 ** int(math.log2(255 / largest)) if largest else 1
    notes = [note(frame) for frame in kept]
    return {
        "arms": shown,
        "label": label,
        "unit": unit,
        "frames": json.dumps(kept),
        "notes": json.dumps(notes),
        "now": notes[at],
        "rows": rows,
        "at": at,
        "worst": at if worst is not None else "",
        "x": at // rows,
        "y": at % rows,
        "last": len(kept) - 1,
        "zoom": max((zoom for zoom in ZOOMS if zoom * columns <= width), default=ZOOMS[0]),
        "zooms": ZOOMS,
        "rate": rate,
        "difference": difference,
        "gain": gain,
        "gains": [2**n for n in range(MAX_GAIN.bit_length())],
        "left_out": (
            f"{len(kept)} of {total} {unit}s are embedded{', the worst among them' if worst is not None else ''}; "
            "all are in the run folder."
            if len(kept) < total
            else ""
        ),
    }, style


def _read_frames(folder: Path, name: str | None) -> Frames:
    if name is None:
        raise _NoFramesError("the record names no file")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _NoFramesError(f"{name} lies outside the run folder")
    if not path.is_file():
        raise _NoFramesError(f"{name} is missing")
    try:
        # Opened as a zip file first: numpy takes any other file for a pickle, and its error says so.
        with zipfile.ZipFile(path), np.load(path) as data:
            frames: npt.NDArray[Any] = data["frames"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip("'\"").rstrip(".")
        raise _NoFramesError(f"{name} cannot be read, expected npz with an array 'frames': {reason}") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise _NoFramesError(
            f"{name} holds {frames.dtype} {list(frames.shape)}, expected uint8 [F, H, W, 3], not empty"
        )
    return frames


def _kept(total: int, most: int, first: int) -> list[int]:
    """Indices of the frames to embed: all, or else ``first`` and others at even distances."""
    if total <= most:
        return list(range(total))
    even = {round(n * (total - 1) / max(most - 2, 1)) for n in range(most - 1)}
    return sorted({first, *even})


def _sheet(frames: Frames, rows: int) -> bytes:
    """A PNG of the frames stacked in columns of ``rows`` frames.

    They are stacked because a pixel then repeats one of the previous frame within the 32 KiB that deflate looks
    back, for frames of up to about 10,000 pixels.
    """
    count, height, width, _ = frames.shape
    columns = math.ceil(count / rows)
    sheet = np.zeros((min(count, rows) * height, columns * width, 3), np.uint8)
    for n, frame in enumerate(frames):
        y, x = n % rows * height, n // rows * width
        sheet[y : y + height, x : x + width] = frame
    data: bytes = iio.imwrite("<bytes>", sheet, extension=".png")
    return data


def _largest_difference(a: Frames, b: Frames) -> int:
    # Frame by frame: int16 copies of whole videos would take four times their memory.
    return max(int(np.abs(x.astype(np.int16) - y).max()) for x, y in zip(a, b, strict=True))
