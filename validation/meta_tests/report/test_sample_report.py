"""The report's section on samples knows no model: the record says what to show of a shape."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from validation.meta_tests.report.test_report import ENVIRONMENT, HOSTILE, Page, video
from validation.record import Level, Record, Run
from validation.report import page
from validation.report.html import write_report
from validation.report.terminal import print_table
from validation.verdict import Status

MEASURES = [
    {"name": "field_rms", "label": "logits, RMS", "unit": "", "better": "low", "rung": "field"},
    {"name": "field_iou", "label": "IoU", "unit": "", "better": "high", "rung": "field"},
    {"name": "mesh_rms", "label": "points to the other surface, RMS", "unit": "d", "better": "low", "rung": "mesh"},
    {"name": "shaded_psnr_worst_view", "label": "shaded, PSNR", "unit": "dB", "better": "high", "rung": "views"},
]  # fmt: skip
NUMBERS: dict[str, float | int | str | None] = {
    "field_rms": 1e-4,
    "ceiling_field_rms": 1e-3,
    "reference_field_rms": 1.25e-5,
    "candidate_field_rms": 1.75e-5,
    "replays_field_rms_least": 1.5e-5,
    "replays_field_rms_greatest": 2.5e-5,
    "field_iou": 1 - 2e-5,
    "mesh_rms": 2e-4,
    "ceiling_mesh_rms": 1e-3,
    "shaded_psnr_worst_view": 41.5,
    "floor_shaded_psnr_worst_view": 30.0,
    "mesh_euler_number_reference": 0,
    "mesh_euler_number_candidate": 0,
    "mesh_watertight_reference": True,
    "mesh_watertight_candidate": True,
    "reference_peak_mib": 3.0,
    "candidate_peak_mib": 4.5,
    "shaded_worst_view": "front",
    "lossless_rank_first": 3,
    "calls_gate": 7,
}
STEPS = {
    "latents_per_step": [1e-4, 2e-4, 3e-4, 4e-4],
    "reference_distance_per_step": [0.6] * 4,
    "candidate_distance_per_step": [0.7] * 4,
    "lossless_band_least_per_step": [0.5] * 4,
    "lossless_band_greatest_per_step": [0.75] * 4,
}
CAPTIONS = [f"{camera}, {kind}" for kind in ("shaded", "normals") for camera in ("three-quarter", "front")]
PLAYERS: list[dict[str, Any]] = [
    {"role": "views", "unit": "view", "rate": 1.0, "width": 256, "captions": CAPTIONS, "worst": 1},
    {"role": "turntable", "unit": "frame", "rate": 8.0, "width": 256, "captions": None, "worst": None},
]


def write(folder: Path, **changes: Any) -> tuple[Record, Page]:
    run = Run(folder, ENVIRONMENT)
    (folder / "artifacts").mkdir(exist_ok=True)
    artifacts = {}
    for arm, seed in (("reference", 0), ("candidate", 1)):
        for role, count in (("views", len(CAPTIONS)), ("turntable", 24)):
            artifacts[f"{arm}_{role}"] = f"artifacts/{arm}_{role}.npz"
            np.savez(folder / artifacts[f"{arm}_{role}"], frames=video(count, 32, 32, seed=seed))
        artifacts[f"{arm}_shape"] = f"artifacts/{arm}_shape.npz"
        np.savez(folder / artifacts[f"{arm}_shape"], latents=np.zeros((1, 4)))
    record = Record(
        Level.SAMPLE, "a_model", "candidate", Status.PASSED, "views", "worst view 41.5 dB",
        {"prompt": "torus", "seed": 3}, "float16", None, NUMBERS, STEPS, artifacts, measures=MEASURES, players=PLAYERS,
    )  # fmt: skip
    record = dataclasses.replace(record, **changes)
    run.add(record)
    return record, Page(write_report(folder).read_text())


def test_players_rungs_bounds_and_band_are_shown(tmp_path: Path) -> None:
    _, shown = write(tmp_path)
    players = shown.of_class("player")
    assert [json.loads(player["data-frames"] or "")[-1] for player in players] == [2 * 2 - 1, 23]
    assert [player["data-worst"] for player in players] == ["1", ""]
    assert json.loads(players[0]["data-notes"] or "") == [
        "three-quarter, shaded", "front, shaded, the worst", "three-quarter, normals", "front, normals",
    ]  # fmt: skip
    assert json.loads(players[1]["data-notes"] or "")[5] == "frame 5"
    assert len(shown.of_class("sprite")) == 2 * 4  # reference, candidate, and both again for the difference
    assert len(shown.of_class("difference")) == 2
    text = shown.text()
    assert "torus, seed 3" in text
    assert "logits, RMS 0.0001 ≤ 0.001 1.25e-5 1.75e-5 1.5e-5 to 2.5e-5" in text
    assert "IoU 1 - 2e-5 -" in text
    assert "points to the other surface, RMS 0.0002 d ≤ 0.001 d" in text
    assert "shaded, PSNR 41.5 dB ≥ 30 dB" in text
    assert "first step 0.0001 - 0.6 0.7 0.5 to 0.75" in text
    assert "mesh euler number 0 0" in text
    assert "mesh watertight yes yes" in text
    assert "peak memory 3 MiB 4.5 MiB" in text
    assert "shaded worst view front" in text
    assert "lossless replays nearer to the truth, first step 3" in text
    assert "calls of the sites gate 7" in text
    rungs = [data.strip() for tags, data in shown.texts if tags[-3:] == ("tbody", "tr", "th") and data.strip()]
    assert rungs[:4] == ["latents", "field", "mesh", "views"]


def test_a_row_past_its_bound_is_marked(tmp_path: Path) -> None:
    _, right = write(tmp_path / "right")
    assert right.of_class("past") == []
    past = {"field_rms": 2e-3, "shaded_psnr_worst_view": 29.0, "mesh_rms": float("nan")}
    _, wrong = write(tmp_path / "wrong", numbers=NUMBERS | past, status=Status.BELOW_FLOOR)
    assert len(wrong.of_class("past")) == 3


def test_an_arm_that_differs_shows_in_the_table(tmp_path: Path) -> None:
    _, shown = write(tmp_path, numbers=NUMBERS | {"mesh_watertight_candidate": False})
    assert "watertight yes no" in shown.text()


def test_missing_damaged_and_hostile_files_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record, _ = write(folder)
    (folder / record.artifacts["candidate_views"]).unlink()
    np.savez(folder / record.artifacts["candidate_turntable"], frames=np.zeros((2, 3)))
    text = Page(write_report(folder).read_text()).text()
    assert f"No views of the candidate: {record.artifacts['candidate_views']} is missing." in text
    assert "No turntable of the candidate" in text
    hostile: dict[str, Any] = {
        "case": {"prompt": HOSTILE},
        "reason": HOSTILE,
        "measures": [dict.fromkeys(measure, HOSTILE) for measure in MEASURES],
        "players": [{**PLAYERS[0], "captions": [HOSTILE] * 4, "unit": HOSTILE}, {**PLAYERS[1], "role": HOSTILE}],
    }
    _, shown = write(tmp_path / "hostile", **hostile)
    assert len(shown.attributes("script")) == 1
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)


def test_records_that_ended_early_have_no_players(tmp_path: Path) -> None:
    _, shown = write(
        tmp_path,
        numbers={"inside_logits": 0},
        series={},
        artifacts={},
        measures=[],
        players=[],
        status=Status.NO_SURFACE,
    )
    assert shown.of_class("player") == []
    assert shown.of_class("rungs") == []
    assert "NO_SURFACE" in shown.text()
    assert "inside logits 0" in shown.text()
    assert page.render("samples.html", samples=[])


def test_a_record_of_an_earlier_run_names_no_measures_and_is_still_shown(tmp_path: Path) -> None:
    earlier = {name: value for name, value in NUMBERS.items() if not name.startswith(("ceiling", "floor"))}
    earlier |= {"gate_field_rms": 1e-3, "psnr": 44.0, "floor_psnr": 30.0}
    record, _ = write(tmp_path, numbers=earlier, measures=[], players=[])
    line = json.loads(record.to_json())
    del line["measures"], line["players"]
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    shown = Page(write_report(tmp_path).read_text())
    # Artifacts of which both arms have frames are shown; a file without frames is not.
    assert len(shown.of_class("player")) == 2
    text = shown.text()
    for words in ("field RMS 0.0001", "gate field RMS 0.001", "PSNR 44 (floor 30)", "field RMS 1.25e-5 1.75e-5"):
        assert words in text, words
    assert "No shape of the" not in text


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e9])
def test_a_rate_is_one_that_a_browser_can_play(tmp_path: Path, rate: float) -> None:
    _, shown = write(tmp_path, players=[{**PLAYERS[1], "rate": rate}])
    assert 0 < float(shown.of_class("player")[0]["data-rate"] or "") <= 120


def test_the_terminal_names_samples_and_drift_apart_and_explains_no_column_that_is_empty(tmp_path: Path) -> None:
    record, _ = write(tmp_path)
    file = io.StringIO()
    print_table([record, dataclasses.replace(record, level=Level.MODEL)], file=file)
    text = file.getvalue()
    assert "a_model samples" in text
    assert "a_model drift" in text
    assert "budget %:" not in text
