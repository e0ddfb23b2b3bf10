"""The report's section on sampled videos: both arms, their difference, the numbers over the frames."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from validation.record import Level, Record
from validation.report import page, shape_section, summary
from validation.report.player import Frames, player, read_arms

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
    rows = [
        row for row in summary.rows(records) if row.level is Level.SAMPLE and not shape_section.is_shape(row.records[0])
    ]
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
    arms, problems = read_arms(folder, record, "frames")
    shown, style = _player(record, arms, name) if arms else (None, [])
    if shown is not None and shown["left_out"]:
        problems.append(shown["left_out"])
    files = [
        (role, file if (folder / file).is_file() else f"{file} (missing)") for role, file in record.artifacts.items()
    ]
    return {
        "record": record,
        "verdict": summary.verdict_of([record]),
        "problems": problems,
        "player": shown,
        "title": _title(record),
        "curves": [_curve(record, name, values) for name, values in record.series.items() if values],
        "numbers": _numbers(record),
        "case": json.dumps(record.case, indent=2),
        "files": files,
        "seconds": summary.seconds([record]),
    }, style


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
