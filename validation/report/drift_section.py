"""The report's section on drift: at which sites and steps of a model the candidate leaves the truth, from the records
of `validation.drift.verdicts`."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from validation.drift.band import ALPHA, tested_steps
from validation.record import Level, Record
from validation.report import page, summary
from validation.report.curve import Values, figure

STEPS = {"first": "first step", "second": "second step", "half": "end of the first half", "last": "last step"}

WIDE = 1080
MAX_TICKS = 12

_ARMS = {"baseline": "reference", "replay": "legal rounding", "candidate": "candidate"}


def section(folder: Path, records: Sequence[Record]) -> page.Section | None:  # noqa: ARG001 - all sections take both
    """The section, or None where no drift was measured."""
    rows = [row for row in summary.rows(records) if row.level is Level.MODEL]
    if not rows:
        return None
    models = [
        {
            "row": row,
            "checks": [
                {
                    "record": record,
                    "verdict": summary.verdict_of([record]),
                    **(_teacher(record) if record.check == "teacher-forced" else _band(record)),
                }
                for record in row.records
            ],
        }
        for row in rows
    ]
    return page.Section("Drift", page.render("drift.html", models=models), frozenset(row.anchor for row in rows))


def distance_figure(series: Mapping[str, Values], whose: str) -> Markup | None:
    """Distances to the truth's latents over the steps, with the bands; None if the series have none."""
    lines = {arm: series.get(f"{arm}_distance_per_step", []) for arm in ("reference", "candidate")}
    if not any(lines.values()):
        return None
    bands = {
        f"{kind} band": (series[f"{kind}_band_least_per_step"], series[f"{kind}_band_greatest_per_step"])
        for kind in ("close", "lossless")
        if f"{kind}_band_least_per_step" in series
    }
    steps = range(1, len(lines["candidate"]) + 1)
    title = f"Distance to the truth's latents{whose}, in shares of their spread, over the denoising steps"
    return figure(title, lines, bands=bands, axis="step", at=steps, log=True)


# Teacher-forced


def _teacher(record: Record) -> dict[str, Any]:
    numbers, series = record.numbers, record.series
    figures, wide = [], []
    watched = [int(step) for step in series.get("watched_steps", [])]
    if watched:
        lines = {name: series.get(f"{arm}_error_per_watched_step", []) for arm, name in _ARMS.items()}
        title = "RMS error of all sites, in shares of the truth's RMS, over the steps that were watched"
        figures.append(figure(title, lines, axis="step", at=watched, log=True))
    places = record.case.get("places")
    if isinstance(places, list) and "candidate_error_per_place" in series:
        names = [str(place) for place in places]
        further = [n for n, p in enumerate(series.get("p_per_place", [])) if p < ALPHA]
        title = "RMS error where it is made, in shares of the truth's RMS, over the sites as the model runs them"
        note = "Ringed: further from the truth than the path that is replaced."
        wide.append(
            figure(
                title,
                {name: series.get(f"{arm}_error_per_place", []) for arm, name in _ARMS.items()},
                note=note if further else "",
                marked=further,
                axis="site",
                names=names,
                ticks=_ticks(names),
                log=True,
                width=WIDE,
            )
        )
    sites = [name.removeprefix("factor_") for name in numbers if name.startswith("factor_")]
    rows = [
        (
            _below(numbers.get(f"p_{site}")),
            [
                site.replace("_", " "),
                summary.number(numbers.get(f"watched_{site}")),
                _factor(numbers.get(f"factor_{site}")),
                summary.number(numbers.get(f"p_{site}"), 2),
            ],
        )
        for site in sites
    ]
    head = ("site", "watched calls", "RMS error, times the reference's", "p")
    return {
        "title": "Teacher-forced",
        "wide": wide,
        "first": _first(numbers),
        "figures": figures,
        "head": head,
        "rows": rows,
    }


def _first(numbers: Mapping[str, Any]) -> str:
    if "first_site" not in numbers:
        return ""
    place = f" in {numbers['first_place']}" if numbers.get("first_place") else ""
    return (
        f"First to leave: {numbers['first_site']}{place}, {summary.number(numbers.get('first_factor'), 4)} times the "
        f"RMS error of the path that it replaces, from step {numbers.get('first_step')} on."
    )


def _ticks(names: Sequence[str]) -> dict[int, str]:
    """Labels of the places where a block begins, thinned out to about `MAX_TICKS`."""
    found: dict[int, str] = {}
    for n, name in enumerate(names):
        match = re.search(r"(?<= in )(?:\w+ )?block \d+", name)
        words = match[0] if match else name.rpartition(" in ")[2]
        if words not in found.values():
            found[n] = words
    apart = max(1, math.ceil(len(found) / MAX_TICKS))
    return {n: words for i, (n, words) in enumerate(found.items()) if i % apart == 0}


def _factor(value: object) -> str:
    if isinstance(value, float) and 0 < abs(value - 1) < 5e-4:
        return f"1 {'+' if value > 1 else '-'} {summary.number(abs(value - 1), 1)}"
    return summary.number(value, 4)


# Free-running


def _band(record: Record) -> dict[str, Any]:
    numbers, series = record.numbers, record.series
    drawn = distance_figure(series, ", median of the prompts")
    rows = []
    candidate = series.get("candidate_distance_per_step", [])
    for name, step in tested_steps(len(candidate)).items() if candidate else ():
        cells = [STEPS[name], *(_at(series, f"{arm}_distance", step) for arm in ("reference", "candidate"))]
        for kind in ("lossless", "close"):
            rank = numbers.get(f"{kind}_rank_{name}")
            of = "-" if rank is None else f"{summary.number(rank, 2)} of {numbers.get('replays')}"
            edges = [_at(series, f"{kind}_band_{edge}", step) for edge in ("least", "greatest")]
            cells += [
                "-" if "-" in edges else " to ".join(edges),
                of,
                summary.number(numbers.get(f"{kind}_p_{name}"), 2),
            ]
        rows.append((_below(numbers.get(f"lossless_p_{name}")), cells))
    head = ("step", "reference", "candidate", "lossless band", "mean rank", "p", "close band", "mean rank", "p")
    return {
        "title": "Free-running",
        "wide": [],
        "first": "",
        "figures": [drawn] if drawn else [],
        "head": head,
        "rows": rows,
    }


def _at(series: Mapping[str, Values], name: str, step: int) -> str:
    values = series.get(f"{name}_per_step", [])
    return summary.number(values[step]) if step < len(values) else "-"


def _below(p: object) -> bool:
    return isinstance(p, (int, float)) and p < ALPHA
