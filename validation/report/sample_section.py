"""The report's section on sampled videos: both arms, their difference, the numbers over the frames."""

import base64
import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from validation.record import Level, Record
from validation.report import page, summary

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]

MAX_PIXELS = 2**20  # embedded per arm, at least one frame; a file of all frames of a large video would not open
SHEET_HEIGHT = 8192  # further frames go into a further column: few graphics processors draw more than 16384 a side
MAX_GAIN = 128  # one grey level becomes 128: half of white
ZOOMS = (0.25, 0.5, 1, 2, 3, 4, 6, 8)
RATE = 16.0  # frames a second, where the case names no ``fps``

_PER_FRAME = "_per_frame"
_UNITS = {"psnr": "dB", "ssim": ""}
_LABELS = {
    "psnr": "PSNR, all frames pooled",
    "psnr_worst_frame": "PSNR, worst frame",
    "psnr_worst_tile": "PSNR, worst tile",
    "psnr_temporal": "PSNR, temporal difference",
    "ssim": "SSIM",
    "ssim_mean": "SSIM, mean",
    "ssim_worst_frame": "SSIM, worst frame",
    "worst_ssim_frame": "worst frame by SSIM",
    "difference_factor": "factor in the difference's mp4",
    "reference_peak_mib": "peak memory, reference",
    "candidate_peak_mib": "peak memory, candidate",
}


def section(folder: Path, records: Sequence[Record]) -> page.Section | None:
    """The section, or None where nothing was sampled."""
    rows = [row for row in summary.rows(records) if row.level is Level.SAMPLE]
    if not rows:
        return None
    samples: list[dict[str, Any]] = []
    style: list[str] = []
    for row in rows:
        # Failures first here as well.
        for n, record in enumerate(sorted(row.records, key=lambda r: not r.status.failed)):
            sample, css = _sample(folder, record, f"s{len(samples)}")
            samples.append(sample | {"anchor": row.anchor if n == 0 else ""})
            style += css
    body = page.render("samples.html", samples=samples)
    return page.Section("Samples", body, frozenset(row.anchor for row in rows), "\n".join(style))


def _sample(folder: Path, record: Record, name: str) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []
    arms: dict[str, Frames] = {}
    for arm in ("reference", "candidate"):
        try:
            arms[arm] = _read_frames(folder, record.artifacts.get(f"{arm}_frames"))
        except _NoFramesError as error:
            problems.append(f"No frames of the {arm}: {error}.")
    if len(arms) == 2 and arms["reference"].shape != arms["candidate"].shape:
        shapes = " and ".join(f"{list(frames.shape[:3])}" for frames in arms.values())
        problems.append(f"No difference is drawn: the arms are {shapes} (frames, height, width).")
    player, style = _player(record, arms, name) if arms else (None, [])
    if player is not None and player["left_out"]:
        problems.append(player["left_out"])
    files = [
        (role, file if (folder / file).is_file() else f"{file} (missing)") for role, file in record.artifacts.items()
    ]
    return {
        "record": record,
        "verdict": summary.verdict_of([record]),
        "problems": problems,
        "player": player,
        "title": _title(record),
        "curves": [_curve(record, name, values) for name, values in record.series.items() if values],
        "numbers": _numbers(record),
        "case": json.dumps(record.case, indent=2),
        "files": files,
        "seconds": summary.seconds([record]),
    }, style


class _NoFramesError(Exception):
    pass


def _read_frames(folder: Path, name: str | None) -> Frames:
    if name is None:
        raise _NoFramesError("the record names no file")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _NoFramesError(f"{name} lies outside the run folder")
    if not path.is_file():
        raise _NoFramesError(f"{name} is missing")
    try:
        # numpy takes whatever is no zip file for a pickle, and says so.
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


def _player(record: Record, arms: dict[str, Frames], name: str) -> tuple[dict[str, Any], list[str]]:
    total = max(len(frames) for frames in arms.values())
    height = max(frames.shape[1] for frames in arms.values())
    width = max(frames.shape[2] for frames in arms.values())
    worst = record.numbers.get("worst_frame")
    known = isinstance(worst, int) and 0 <= worst < total
    first = worst if known and isinstance(worst, int) else 0
    kept = _kept(total, max(1, MAX_PIXELS // (height * width)), first)
    rows = max(1, SHEET_HEIGHT // height)
    at = kept.index(first)
    shown, style = [], []
    for arm, frames in arms.items():
        # Kept frames that this arm has: a shorter arm ends earlier.
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
    notes = [_note(record, frame, known and frame == worst) for frame in kept]
    return {
        "arms": shown,
        "frames": json.dumps(kept),
        "notes": json.dumps(notes),
        "now": notes[at],
        "rows": rows,
        "at": at,
        "worst": at if known else "",
        "x": at // rows,
        "y": at % rows,
        "last": len(kept) - 1,
        "zoom": max((zoom for zoom in ZOOMS if zoom * width <= 384), default=ZOOMS[0]),
        "zooms": ZOOMS,
        "rate": _rate(record),
        "difference": difference,
        "gain": gain,
        "gains": [2**n for n in range(MAX_GAIN.bit_length())],
        "left_out": (
            f"{len(kept)} of {total} frames are embedded{', the worst among them' if known else ''}; "
            "all are in the run folder."
            if len(kept) < total
            else ""
        ),
    }, style


def _kept(total: int, most: int, first: int) -> list[int]:
    """Indices of the frames to embed: all, or else ``first`` and others evenly apart."""
    if total <= most:
        return list(range(total))
    even = {round(n * (total - 1) / max(most - 2, 1)) for n in range(most - 1)}
    return sorted({first, *even})


def _sheet(frames: Frames, rows: int) -> bytes:
    """A PNG of the frames one below the other, in as many columns as ``rows`` a column ask for.

    Below, not beside: what a pixel repeats from the frame before then lies within the 32 KiB that deflate
    looks back, for frames of up to about 10,000 pixels.
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


def _rate(record: Record) -> float:
    rate = record.case.get("fps")
    usable = isinstance(rate, (int, float)) and math.isfinite(rate) and 0 < rate <= 120
    return float(rate) if usable and rate is not None else RATE


def _note(record: Record, frame: int, worst: bool) -> str:
    parts = [f"frame {frame}{', the worst' if worst else ''}"]
    for series, values in record.series.items():
        if series.endswith(_PER_FRAME) and frame < len(values):
            parts.append(f"{_quantity(series.removesuffix(_PER_FRAME))} {_shown(series, values[frame])}")
    return " · ".join(parts)


def _quantity(name: str) -> str:
    return name.upper() if name in _UNITS else name.replace("_", " ")


def _shown(name: str, value: float | str | None) -> str:
    """A number with its unit; an SSIM close to 1 is not rounded to it."""
    if name.startswith("ssim") and isinstance(value, float) and math.isfinite(value):
        return f"1 - {summary.number(1 - value, 2)}" if 0 < 1 - value < 5e-5 else f"{value:.4f}"
    unit = " dB" if name.startswith("psnr") else " MiB" if name.endswith("_mib") else ""
    return summary.number(value, 4) + (unit if value is not None else "")


def _title(record: Record) -> str:
    """What was sampled, such as the prompt and the seed, as far as the case says."""
    prompt, seed = (record.case.get(key) for key in ("prompt", "seed"))
    return ", ".join([*([str(prompt)] if prompt else []), *([] if seed is None else [f"seed {seed}"])])


def _curve(record: Record, series: str, values: list[float]) -> tuple[str, Markup]:
    """Caption and chart of a series: over frames or, where its name ends in ``_per_step``, over steps."""
    name, _, axis = series.rpartition("_per_")
    unit = _UNITS.get(name, "")
    title = f"{_quantity(name)} per {axis}{f', {unit}' if unit else ''}" if name else series
    worst = record.numbers.get("worst_ssim_frame" if name == "ssim" else "worst_frame")
    marked = worst if axis == "frame" and isinstance(worst, int) and 0 <= worst < len(values) else None
    chart = page.curve(values, label=title, floors=_floors(record, series), marked=marked, axis=axis or series)
    return f"{title}. {_series_note(values, axis)}".strip(), chart


def _series_note(values: list[float], axis: str) -> str:
    notes = []
    if infinite := sum(value == math.inf for value in values):
        notes.append(
            f"Infinite, which for PSNR is equal to the bit, in {infinite:,} of {summary.counted(len(values), axis)}."
        )
    if without := sum(math.isnan(value) or value == -math.inf for value in values):
        notes.append(f"No number in {without:,} of {summary.counted(len(values), axis)} (crosses).")
    return " ".join(notes)


def _floors(record: Record, series: str) -> dict[str, float]:
    """The floor of the worst frame, where there is one: the other floors are not of single frames."""
    floor = record.numbers.get(f"floor_{series.removesuffix(_PER_FRAME)}_worst_frame")
    return {"floor": float(floor)} if isinstance(floor, (int, float)) and math.isfinite(floor) else {}


def _numbers(record: Record) -> list[tuple[str, str]]:
    """Labels and values: each floor beside what it bounds, the calls of all sites in one."""
    numbers, calls, found = record.numbers, [], []
    for name, value in numbers.items():
        if name.startswith("calls_"):
            calls.append(f"{name.removeprefix('calls_')} {summary.number(value)}")
        elif not (name.startswith("floor_") and name.removeprefix("floor_") in numbers):
            floor = f" (floor {_shown(name, numbers[f'floor_{name}'])})" if f"floor_{name}" in numbers else ""
            found.append((_label(name), _shown(name, value) + floor))
    return [*found, ("calls of the sites", ", ".join(calls))] if calls else found


def _label(name: str) -> str:
    return _LABELS.get(name, name.removesuffix("_mib").replace("_", " "))
