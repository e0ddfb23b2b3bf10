"""The report's section on samples: both arms to look at, each measure beside its bound and its distances to the truth,
and the curves. The record says what a number means and how files are shown (`validation.samples.model`)."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from validation.drift.band import tested_steps
from validation.record import Level, Record
from validation.report import page, summary
from validation.report.curve import figure
from validation.report.drift_section import STEPS, distance_figure
from validation.report.player import WIDTH, player, read_arms
from validation.verdict import Number

_TO_TRUTH = re.compile(r"(reference|candidate)_(\w+)_to_truth_per_(\w+)")
_BAND = "lossless_band_{}_to_truth_{}_per_{}"
_DRAWN_TOGETHER = re.compile("_distance_per_step$|_band_|_to_truth_")
_BOUNDS = {"floor": "≥", "ceiling": "≤"}
_INITIALS = re.compile(r"\b(psnr|ssim|iou|rms)\b")


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
            players, problems, css = _players(folder, record, f"s{len(samples)}")
            style += css
            samples.append(
                {
                    "record": record,
                    "anchor": row.anchor if n == 0 else "",
                    "verdict": summary.verdict_of([record]),
                    "title": _title(record),
                    "problems": problems,
                    "players": players,
                    "curves": _curves(record),
                    "latents": _latents(record),
                    "rungs": _rungs(record),
                    "arms": _arms(record),
                    "numbers": _numbers(record),
                    "case": json.dumps(record.case, indent=2),
                    "files": [
                        (role, file if (folder / file).is_file() else f"{file} (missing)")
                        for role, file in record.artifacts.items()
                    ],
                    "seconds": summary.seconds([record]),
                }
            )
    body = page.render("samples.html", samples=samples)
    return page.Section("Samples", body, frozenset(row.anchor for row in rows), "\n".join(style))


def _title(record: Record) -> str:
    """What was sampled, such as the prompt and the seed, as far as the case records it."""
    prompt, seed = (record.case.get(key) for key in ("prompt", "seed"))
    return ", ".join([*([str(prompt)] if prompt else []), *([] if seed is None else [f"seed {seed}"])])


# Pictures


def _players(folder: Path, record: Record, name: str) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """The values of each player, problems of their files in words, and the CSS of their images."""
    shown, problems, style = [], [], []
    for n, spec in enumerate(record.players or _unsaid(folder, record)):
        arms, wrong = read_arms(folder, record, spec["role"])
        problems += wrong
        if arms:
            total = max(len(frames) for frames in arms.values())
            worst = spec.get("worst")
            made, css = player(
                arms,
                f"{name}-{n}",
                label=f"{spec['role']} of {record.subject}, {record.op_set}",
                note=_note(record, spec),
                worst=worst if isinstance(worst, int) and 0 <= worst < total else None,
                rate=min(max(spec["rate"], 0.1), 120.0),
                unit=spec["unit"],
                width=spec.get("width") or WIDTH,
            )
            shown.append(made)
            style += css
            problems += [made["left_out"]] * bool(made["left_out"])
    return shown, problems, style


def _unsaid(folder: Path, record: Record) -> list[dict[str, Any]]:
    """Players for a record that names none: all frames that both arms have."""
    pairs = [name.removeprefix("reference_") for name in record.artifacts if name.startswith("reference_")]
    readable = [role for role in pairs if not read_arms(folder, record, role)[1]]
    return [{"role": role, "unit": "frame", "rate": 16.0} for role in readable]


def _note(record: Record, spec: Mapping[str, Any]) -> Callable[[int], str]:
    """A function that gives the words below a frame: its caption or number, and its value in each series of frames."""
    unit, captions, worst = spec["unit"], spec.get("captions") or [], spec.get("worst")
    series = {
        name: values
        for name, values in record.series.items()
        if name.endswith(f"_per_{unit}") and not _DRAWN_TOGETHER.search(name)
    }

    def note(frame: int) -> str:
        first = captions[frame] if frame < len(captions) else f"{unit} {frame}"
        parts = [f"{first}, the worst" if frame == worst else first]
        for name, values in series.items():
            if frame < len(values):
                quantity = name.rpartition("_per_")[0]
                parts.append(f"{_words(quantity)} {_shown(values[frame], _measure(record, quantity))}")
        return " · ".join(parts)

    return note


# Numbers


def _measure(record: Record, quantity: str) -> Mapping[str, str]:
    """The measure of a quantity, or of its worst part, such as ``psnr_worst_frame`` for ``psnr``; empty if none."""
    names = {measure["name"]: measure for measure in record.measures}
    parts = (measure for name, measure in names.items() if name.startswith(f"{quantity}_"))
    return names.get(quantity) or next(parts, {})


def _words(name: str) -> str:
    return _INITIALS.sub(lambda match: match[0].upper(), name.replace("_", " ")).replace("IOU", "IoU")


def _shown(value: Number, measure: Mapping[str, str] | None = None) -> str:
    """A number with its measure's unit; a share close to 1 is not rounded to 1."""
    unit, share = (measure or {}).get("unit", ""), bool(measure) and (measure or {}).get("better") == "high"
    if not isinstance(value, (int, float)):
        return summary.number(value)
    if not unit and isinstance(value, float) and 0 < 1 - value < 5e-5:
        return f"1 - {summary.number(1 - value, 2)}"
    if not unit and share and math.isfinite(value):
        return f"{value:.4f}"
    return summary.number(value, 4) + (f" {unit}" if unit else "")


def _range(least: Number, greatest: Number, measure: Mapping[str, str] | None = None) -> str:
    if least is None or greatest is None:
        return "-"
    return f"{_shown(least)} to {_shown(greatest, measure)}"


def _latents(record: Record) -> list[list[str]]:
    """Rows for the tested steps: distances of the latents, in shares of their spread."""
    series, between = record.series, record.series.get("latents_per_step", [])

    def at(name: str, step: int) -> float | None:
        values = series.get(f"{name}_per_step", [])
        return values[step] if step < len(values) else None

    return [
        [
            STEPS[name],
            _shown(between[step]),
            "-",
            _shown(at("reference_distance", step)),
            _shown(at("candidate_distance", step)),
            _range(at("lossless_band_least", step), at("lossless_band_greatest", step)),
        ]
        for name, step in (tested_steps(len(between)).items() if between else ())
    ]


def _rungs(record: Record) -> list[tuple[str, list[tuple[bool, list[str]]]]]:
    """Each rung with the rows of its measures; a row says whether it is past its bound."""
    numbers = record.numbers
    rungs: dict[str, list[tuple[bool, list[str]]]] = {}
    for measure in record.measures:
        name, high = measure["name"], measure["better"] == "high"
        value, kind = numbers.get(name), "floor" if high else "ceiling"
        bound = numbers.get(f"{kind}_{name}")
        past = False
        if isinstance(value, (int, float)) and isinstance(bound, (int, float)):
            past = not (value >= bound if high else value <= bound)
        cells = [
            measure["label"],
            _shown(value, measure),
            "-" if bound is None else f"{_BOUNDS[kind]} {_shown(bound, measure)}",
            *(_shown(numbers.get(f"{arm}_{name}"), measure) for arm in ("reference", "candidate")),
            _range(numbers.get(f"replays_{name}_least"), numbers.get(f"replays_{name}_greatest"), measure),
        ]
        rungs.setdefault(measure["rung"], []).append((past, cells))
    return list(rungs.items())


def _measured(record: Record) -> set[str]:
    """The names of all numbers that the table of measures shows."""
    names = [measure["name"] for measure in record.measures]
    shown = {f"{before}{name}" for name in names for before in ("", "floor_", "ceiling_", "reference_", "candidate_")}
    return shown | {f"replays_{name}_{end}" for name in names for end in ("least", "greatest")}


def _arms(record: Record) -> list[list[str]]:
    """Rows of the numbers that each arm has by itself, such as peak memory or a mesh's Euler number."""
    rows = []
    for name, value in record.numbers.items():
        if "reference" in name and name not in _measured(record):
            other = name.replace("reference", "candidate")
            what = _words(re.sub("_?reference_?", "", name)).replace(" mib", " memory")
            unit = " MiB" if name.endswith("_mib") else ""
            rows.append([what, *(_plain(found) + unit for found in (value, record.numbers.get(other)))])
    return rows


def _plain(value: Number) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else _shown(value)


def _numbers(record: Record) -> list[tuple[str, str]]:
    """The numbers in no table: where it is worst, ranks among the replays, and one entry for the calls of all sites."""
    numbers, found, calls = record.numbers, [], []
    bounds = {f"{kind}_{name}": name for name in numbers for kind in _BOUNDS}
    measured = _measured(record)
    for name, value in numbers.items():
        if name.startswith("calls_"):
            calls.append(f"{name.removeprefix('calls_')} {summary.number(value)}")
        elif name not in measured and name not in bounds and "reference" not in name and "candidate" not in name:
            bound = [
                f" ({kind} {_shown(numbers[f'{kind}_{name}'])})" for kind in _BOUNDS if f"{kind}_{name}" in numbers
            ]
            found.append((_label(name), _plain(value) + "".join(bound)))
    return [*found, *([("calls of the sites", ", ".join(calls))] if calls else [])]


def _label(name: str) -> str:
    rank = re.fullmatch(r"(lossless|close)_rank_(\w+)", name)
    if rank and rank[2] in STEPS:
        return f"{rank[1]} replays nearer to the truth, {STEPS[rank[2]]}"
    return _words(name)


# Curves


def _curves(record: Record) -> list[Markup]:
    """Figures of the series: distances to the truth with their bands, and each other series by itself."""
    series = record.series
    found = []
    together = {match[2]: match[3] for name in series if (match := _TO_TRUTH.fullmatch(name))}
    for quantity, axis in together.items():
        lines = {arm: series.get(f"{arm}_{quantity}_to_truth_per_{axis}", []) for arm in ("reference", "candidate")}
        edges = [series.get(_BAND.format(quantity, end, axis), []) for end in ("least", "greatest")]
        note = _series_note([value for values in lines.values() for value in values], axis)
        title = f"{_named(record, quantity, axis)}, to the truth"
        found.append(figure(title, lines, note=note, bands={"lossless band": (edges[0], edges[1])}, axis=axis))
    found += [
        _curve(record, name, values) for name, values in series.items() if values and not _DRAWN_TOGETHER.search(name)
    ]
    if (steps := distance_figure(series, "")) is not None:
        found.append(steps)
    return found


def _named(record: Record, quantity: str, axis: str) -> str:
    unit = _measure(record, quantity).get("unit")
    return f"{_words(quantity)} per {axis}{f', {unit}' if unit else ''}"


def _curve(record: Record, series: str, values: list[float]) -> Markup:
    """A series over frames, or over steps if its name ends in ``_per_step``."""
    quantity, _, axis = series.rpartition("_per_")
    title = f"{_named(record, quantity, axis)}, candidate to reference" if quantity else series
    if series == "latents_per_step":
        title = "Distance of the candidate's latents to the reference's, in shares of their spread, per step"
    better = _measure(record, quantity).get("better")
    floor = record.numbers.get(f"floor_{quantity}_worst_{axis}")
    return figure(
        title,
        {"candidate": values},
        note=_series_note(values, axis),
        # The other floors do not apply to single frames.
        floors={"floor": float(floor)} if isinstance(floor, (int, float)) and math.isfinite(floor) else {},
        marked=_worst(values, better == "high") if better and axis != "step" else [],
        axis=axis or series,
        at=range(1, len(values) + 1) if axis == "step" else None,
        log=axis == "step",
    )


def _worst(values: list[float], high: bool) -> list[int]:
    """The index of the worst value, as a list; empty if all are NaN."""
    known = [n for n, value in enumerate(values) if not math.isnan(value)]
    return [(min if high else max)(known, key=values.__getitem__)] if known else []


def _series_note(values: list[float], axis: str) -> str:
    notes = []
    if infinite := sum(value == math.inf for value in values):
        notes.append(
            f"Infinite, which for PSNR is equal to the bit, in {infinite:,} of {summary.counted(len(values), axis)}."
        )
    if without := sum(math.isnan(value) or value == -math.inf for value in values):
        notes.append(f"No number in {without:,} of {summary.counted(len(values), axis)} (crosses).")
    return " ".join(notes)
