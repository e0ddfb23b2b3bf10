"""The report's section on sampled videos: both arms, their difference, the numbers over the frames."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from validation.record import Record
from validation.report import page, sampled, shape_section, summary
from validation.report.curve import figure
from validation.report.drift_section import STEPS, distance_figure
from validation.report.player import Frames, player, read_arms

RATE = 16.0  # frames a second, where the case names no ``fps``

_PER_FRAME = "_per_frame"
_TO_TRUTH = re.compile("_distance_per_step$|_band_|_to_truth_")  # drawn together
_TITLES = {
    "psnr_per_frame": "PSNR per frame, candidate to reference, dB",
    "ssim_per_frame": "SSIM per frame, candidate to reference",
    "latents_per_step": "Distance of the candidate's latents to the reference's, in shares of their spread, per step",
}
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
    return sampled.section(
        folder,
        records,
        title="Samples",
        template="samples.html",
        prefix="s",
        mine=lambda record: not shape_section.is_shape(record),
        make=_sample,
    )


def _sample(folder: Path, record: Record, name: str) -> sampled.Made:
    arms, problems = read_arms(folder, record, "frames")
    shown, style = _player(record, arms, name) if arms else (None, [])
    if shown is not None and shown["left_out"]:
        problems.append(shown["left_out"])
    return {"problems": problems, "player": shown, "curves": _curves(record), "numbers": _numbers(record)}, style


def _player(record: Record, arms: dict[str, Frames], name: str) -> tuple[dict[str, Any], list[str]]:
    total = max(len(frames) for frames in arms.values())
    found = record.numbers.get("worst_frame")
    worst = found if isinstance(found, int) and 0 <= found < total else None
    return player(
        arms,
        name,
        label=f"{record.subject}, {record.op_set}",
        note=lambda frame: _note(record, frame, frame == worst),
        worst=worst,
        rate=_rate(record),
    )


def _rate(record: Record) -> float:
    rate = record.case.get("fps")
    usable = isinstance(rate, (int, float)) and math.isfinite(rate) and 0 < rate <= 120
    return float(rate) if usable and rate is not None else RATE


def _note(record: Record, frame: int, worst: bool) -> str:
    parts = [f"frame {frame}{', the worst' if worst else ''}"]
    for series, values in record.series.items():
        if series.endswith(_PER_FRAME) and not _TO_TRUTH.search(series) and frame < len(values):
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


def _curves(record: Record) -> list[Markup]:
    """Figures of the series: distances to the truth beside their bands, each other one by itself."""
    series = record.series
    found = [_curve(record, name, values) for name, values in series.items() if values and not _TO_TRUTH.search(name)]
    frames = {arm: series.get(f"{arm}_psnr_to_truth_per_frame", []) for arm in ("reference", "candidate")}
    if any(frames.values()):
        edges = (series.get(f"lossless_band_psnr_to_truth_{end}_per_frame", []) for end in ("least", "greatest"))
        note = _series_note([*frames["reference"], *frames["candidate"]], "frame")
        title = "PSNR per frame, to the truth's frames, dB"
        found.insert(0, figure(title, frames, note=note, bands={"lossless band": (next(edges), next(edges))}))
    if (steps := distance_figure(series, "")) is not None:
        found.append(steps)
    return found


def _curve(record: Record, series: str, values: list[float]) -> Markup:
    """A series over frames or, where its name ends in ``_per_step``, over steps."""
    name, _, axis = series.rpartition("_per_")
    unit = _UNITS.get(name, "")
    plain = f"{_quantity(name)} per {axis}{f', {unit}' if unit else ''}" if name else series
    title = _TITLES.get(series, plain)
    worst = record.numbers.get("worst_ssim_frame" if name == "ssim" else "worst_frame")
    marked = [worst] if axis == "frame" and isinstance(worst, int) and 0 <= worst < len(values) else []
    return figure(
        title,
        {"candidate": values},
        note=_series_note(values, axis),
        floors=_floors(record, series),
        marked=marked,
        axis=axis or series,
        at=range(1, len(values) + 1) if axis == "step" else None,
        log=axis == "step",
    )


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
    numbers, found = record.numbers, []
    for name, value in numbers.items():
        bounds = name.startswith("floor_") and name.removeprefix("floor_") in numbers
        if not bounds and not name.startswith("calls_"):
            floor = f" (floor {_shown(name, numbers[f'floor_{name}'])})" if f"floor_{name}" in numbers else ""
            found.append((_label(name), _shown(name, value) + floor))
    return [*found, *sampled.calls(record)]


def _label(name: str) -> str:
    rank = re.fullmatch(r"(lossless|close)_rank_(\w+)", name)
    if rank and rank[2] in STEPS:
        return f"{rank[1]} replays nearer to the truth, {STEPS[rank[2]]}"
    return _LABELS.get(name, name.removesuffix("_mib").replace("_", " "))
