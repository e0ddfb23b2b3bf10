"""The report's section on sampled shapes: both arms' views, a turntable, and the rungs' numbers beside their bands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.drift.band import tested_steps
from validation.record import Record
from validation.report import page, sampled, summary
from validation.report.drift_section import STEPS
from validation.report.player import player, read_arms

PANE = 256  # pixels: reference, candidate and difference stand beside each other

_VIEW_KINDS = ("shaded", "normals")
_NAMES = {
    "field_rms": ("logits, RMS", ""),
    "field_max": ("logits, greatest", ""),
    "field_flips": ("points that change sides", ""),
    "field_iou": ("IoU", ""),
    "mesh_candidate_rms": ("points to the other surface, RMS", " d"),
    "mesh_candidate_max": ("points to the other surface, greatest", " d"),
    "mesh_reference_rms": ("and back, RMS", " d"),
    "mesh_reference_max": ("and back, greatest", " d"),
    "mesh_chamfer": ("Chamfer, normalised", " d²"),
    "mesh_volume_change": ("volume, change", ""),
    **{
        f"{kind}_{name}": (f"{kind}, {words}", unit)
        for kind in ("shaded", "normal", "depth", "silhouette")
        for name, words, unit in (
            ("psnr_worst_view", "PSNR of the worst view", " dB"),
            ("psnr_worst_tile", "PSNR of the worst tile", " dB"),
            ("ssim_worst_view", "SSIM of the worst view", ""),
        )
    },
    "silhouette_iou_worst_view": ("silhouette, IoU of the worst view", ""),
}
_RUNGS = {"field": "field", "mesh": "mesh"}
_PLACES = {
    "field_worst": "grid point where the logits differ most",
    "mesh_candidate_mean": "points to the other surface, mean (d)",
    "mesh_reference_mean": "and back, mean (d)",
    **{
        f"{kind}_worst_{part}": f"worst {part}, {kind}"
        for part in ("view", "tile")
        for kind in ("shaded", "normal", "depth", "silhouette")
    },
    "forwards": "forwards of the denoiser",
}


def is_shape(record: Record) -> bool:
    """Whether a sample is a shape, and this section's."""
    return "octree_resolution" in record.case


def section(folder: Path, records: Sequence[Record]) -> page.Section | None:
    """The section, or None where no shape was sampled."""
    return sampled.section(
        folder, records, title="Shapes", template="shapes.html", prefix="h", mine=is_shape, make=_sample
    )


def _sample(folder: Path, record: Record, name: str) -> sampled.Made:
    players, style, problems = [], [], []
    if record.case.get("until") == "views":
        for role, unit, rate in (("views", "view", 1.0), ("turntable", "frame", 8.0)):
            arms, wrong = read_arms(folder, record, role)
            problems += wrong
            if arms:
                note = _view_note(record) if role == "views" else (lambda frame: f"turntable, frame {frame}")
                label = f"{role} of {record.case.get('prompt_name')}, {record.op_set}"
                worst = _worst_view(record) if role == "views" else None
                shown, css = player(
                    arms, f"{name}-{role}", label=label, note=note, worst=worst, rate=rate, unit=unit, width=PANE
                )
                players.append(shown)
                style += css
                problems += [shown["left_out"]] * bool(shown["left_out"])
    return {
        "problems": problems,
        "players": players,
        "latents": _latents(record),
        "rungs": _rungs(record),
        "solid": _solid(record),
        "numbers": _numbers(record),
    }, style


def _view_note(record: Record) -> Any:
    cameras = record.case.get("cameras") or []

    def note(frame: int) -> str:
        if not cameras:
            return f"view {frame}"
        kind = _VIEW_KINDS[min(frame // len(cameras), len(_VIEW_KINDS) - 1)]
        return f"{cameras[frame % len(cameras)]}, {kind}"

    return note


def _worst_view(record: Record) -> int | None:
    cameras, worst = record.case.get("cameras") or [], record.numbers.get("shaded_worst_view")
    return cameras.index(worst) if worst in cameras else None


def _cell(value: object, unit: str = "") -> str:
    return summary.number(value) + (unit if isinstance(value, (int, float)) else "")


def _range(least: object, greatest: object, unit: str = "") -> str:
    if least is None or greatest is None:
        return "-"
    return f"{summary.number(least)} to {summary.number(greatest)}{unit}"


def _latents(record: Record) -> list[list[str]]:
    """Rows of the tested steps: distances of the latents, in shares of their spread."""
    between = record.series.get("latents_per_step", [])
    rows = []
    for name, step in tested_steps(len(between)).items() if between else ():
        found = {
            key: values[step] if step < len(values) else None
            for key, values in record.series.items()
            if key.endswith("_per_step")
        }
        rows.append(
            [
                STEPS[name],
                _cell(between[step]),
                "-",
                _cell(found.get("reference_distance_per_step")),
                _cell(found.get("candidate_distance_per_step")),
                _range(found.get("lossless_band_least_per_step"), found.get("lossless_band_greatest_per_step")),
            ]
        )
    return rows


def _rungs(record: Record) -> list[tuple[str, list[tuple[bool, list[str]]]]]:
    """Each rung with its rows; a row says whether it is past its gate."""
    numbers = record.numbers
    rungs: dict[str, list[tuple[bool, list[str]]]] = {}
    for name, (label, unit) in _NAMES.items():
        value = numbers.get(name)
        if value is None:
            continue
        gate = numbers.get(f"gate_{name}")
        ceiling = not any(word in name for word in ("psnr", "ssim", "iou"))
        past = False
        if isinstance(gate, (int, float)) and isinstance(value, (int, float)):
            past = not (value <= gate if ceiling else value >= gate)
        cells = [
            label,
            _shown(name, value, unit),
            "-" if gate is None else f"{'≤' if ceiling else '≥'} {_shown(name, gate, '')}",
            *(_shown(name, numbers.get(f"{arm}_{name}"), unit) for arm in ("reference", "candidate")),
            _range(
                _plain(name, numbers.get(f"replays_{name}_least")),
                _plain(name, numbers.get(f"replays_{name}_greatest")),
                unit,
            ),
        ]
        rung = next((rung for rung in _RUNGS if name.startswith(rung)), "views")
        rungs.setdefault(rung, []).append((past, cells))
    return list(rungs.items())


def _plain(name: str, value: object) -> object:
    close = ("ssim" in name or "iou" in name) and isinstance(value, float) and 0 < 1 - value < 5e-4
    return f"1 - {summary.number(1 - float(str(value)), 2)}" if close else value


def _shown(name: str, value: object, unit: str) -> str:
    plain = _plain(name, value)
    return plain if isinstance(plain, str) else _cell(plain, unit)


def _solid(record: Record) -> list[list[str]]:
    """Euler number, volume, faces and whether watertight, of both arms."""
    rows = []
    for name in ("euler_number", "volume", "watertight", "faces"):
        values = [record.numbers.get(f"mesh_{name}_{arm}") for arm in ("reference", "candidate")]
        if values[0] is not None:
            words = ["yes" if value is True else "no" if value is False else summary.number(value) for value in values]
            rows.append([name.replace("_", " "), *words])
    return rows


def _numbers(record: Record) -> list[tuple[str, str]]:
    """What is in no table: where it is worst, memory, the calls of all sites in one."""
    shown = {f"{before}{name}" for name in _NAMES for before in ("", "gate_", "reference_", "candidate_")}
    shown |= {f"replays_{name}_{end}" for name in _NAMES for end in ("least", "greatest")}
    shown |= {
        name
        for name in record.numbers
        # The ranks are the drift's, over all prompts.
        if name.startswith("calls_") or name.endswith(("_reference", "_candidate")) or "_rank_" in name
    }
    found = []
    for name, value in record.numbers.items():
        if name.endswith("_peak_mib"):
            found.append((f"peak memory, {name.removesuffix('_peak_mib')}", f"{summary.number(value, 4)} MiB"))
        elif name not in shown:
            found.append((_PLACES.get(name, name.replace("_", " ")), summary.number(value)))
    return [*found, *sampled.calls(record)]
