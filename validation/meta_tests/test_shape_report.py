"""The report's section on sampled shapes, written from records of real comparisons of formula shapes."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from validation.controls import shapes
from validation.media.mesh import extract
from validation.media.render import render
from validation.meta_tests.shape_fields import TORUS, field_of
from validation.meta_tests.test_report import ENVIRONMENT, HOSTILE, Page
from validation.models.shape_pipeline import Shape
from validation.ops import load_op_set
from validation.record import Level, Record, Run
from validation.report import page
from validation.report.html import write_report
from validation.report.shape_section import is_shape
from validation.report.terminal import print_table
from validation.shape_options import ShapeOptions
from validation.shape_quality import Gates, Plan, _keep, judge, make_plan
from validation.verdict import Status

GATES = Gates("loose", {"mesh_candidate_rms": 1e-3, "mesh_reference_rms": 1e-3}, {"shaded_psnr_worst_view": 30.0})


@pytest.fixture(scope="module")
def plan() -> Plan:
    plan = make_plan(load_op_set("reference_ops"), replays=0, shape=ShapeOptions(octree_resolution=32))
    cameras = tuple(dataclasses.replace(camera, height=64, width=64, supersample=1) for camera in plan.cameras[:2])
    return dataclasses.replace(plan, cameras=cameras)


def shape_of(plan: Plan, shift: float) -> Shape:
    field = field_of("torus", TORUS, 32, shift)
    mesh = extract(field)
    seconds = {"denoise": 1.5, "decode": 2.25, "mesh": 0.5, "render": 0.25}
    latents = [torch.full((1, 4, 2), shift) + torch.arange(8.0).view(1, 4, 2)] * 4
    return Shape(latents, field, mesh, render(mesh, plan.cameras), seconds=seconds, peak_bytes=3 * 2**20)


def write(plan: Plan, folder: Path, candidate: Shape, **changes: Any) -> tuple[Record, Page]:
    reference = shape_of(plan, 0.0)
    verdict = judge(reference, candidate, GATES)
    prompt = plan.prompts[0]
    run = Run(folder, ENVIRONMENT)
    beside: dict[str, Any] = {
        "reference_field_rms": 1.25e-5,
        "candidate_field_rms": 1.75e-5,
        "replays_field_rms_least": 1.5e-5,
        "replays_field_rms_greatest": 2.5e-5,
        "reference_peak_mib": 3.0,
        "calls_gate": 7,
    }
    record = Record(
        Level.SAMPLE,
        "hunyuan3d",
        "candidate",
        verdict.status,
        verdict.check,
        verdict.reason,
        case={
            "prompt": "torus",
            "seed": 3,
            "octree_resolution": 32,
            "until": "views",
            "cameras": [camera.name for camera in plan.cameras],
        },
        dtype="float16",
        numbers=verdict.numbers | beside,
        series=verdict.series
        | {"lossless_band_least_per_step": [0.5] * 4, "lossless_band_greatest_per_step": [0.75] * 4},
        artifacts=_keep({"reference": reference, "candidate": candidate}, prompt, plan, folder),
    )
    record = dataclasses.replace(record, **changes)
    run.add(record)
    return record, Page(write_report(folder).read_text())


def test_views_turntable_rungs_and_band_are_shown(plan: Plan, tmp_path: Path) -> None:
    record, shown = write(plan, tmp_path, shape_of(plan, 0.004))
    assert is_shape(record)
    players = shown.of_class("player")
    assert len(players) == 2
    assert [json.loads(player["data-frames"] or "")[-1] for player in players] == [2 * 2 - 1, 23]
    notes = json.loads(players[0]["data-notes"] or "")
    assert notes[:2] == ["three-quarter, shaded", "front, shaded"]
    assert notes[2] == "three-quarter, normals"
    assert len(shown.of_class("sprite")) == 2 * 4  # reference, candidate, and both again for the difference
    assert len(shown.of_class("difference")) == 2
    text = shown.text()
    for words in ("torus, seed 3", "1.25e-5", "1.75e-5", "1.5e-5 to 2.5e-5", "0.5 to 0.75", "≤ 0.001", "gate 7"):
        assert words in text, words
    assert "euler number 0 0" in text
    assert "watertight yes yes" in text
    # The section on videos leaves shapes alone.
    assert "No frames of the" not in text
    assert text.count("torus, seed 3") == 1


def test_a_row_past_its_gate_is_marked(plan: Plan, tmp_path: Path) -> None:
    _, right = write(plan, tmp_path / "right", shape_of(plan, 0.0005))
    assert right.of_class("past") == []
    record, wrong = write(plan, tmp_path / "wrong", shape_of(plan, 0.2))
    assert record.status is Status.BELOW_FLOOR
    assert len(wrong.of_class("past")) == 3


def test_a_hole_shows_in_the_table(plan: Plan, tmp_path: Path) -> None:
    cut = shapes.hole_in_the_mesh(shape_of(plan, 0.0), plan.cameras)
    record, shown = write(plan, tmp_path, cut)
    assert record.check == "mesh"
    assert "watertight yes no" in shown.text()


def test_missing_damaged_and_hostile_files_are_told(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record, _ = write(plan, folder, shape_of(plan, 0.0))
    (folder / record.artifacts["candidate_views"]).unlink()
    np.savez(folder / record.artifacts["candidate_turntable"], frames=np.zeros((2, 3)))
    text = Page(write_report(folder).read_text()).text()
    assert f"No views of the candidate: {record.artifacts['candidate_views']} is missing." in text
    assert "No turntable of the candidate" in text
    hostile = {**record.case, "prompt": HOSTILE, "cameras": [HOSTILE, HOSTILE]}
    _, shown = write(plan, tmp_path / "hostile", shape_of(plan, 0.0), case=hostile, reason=HOSTILE)
    assert len(shown.attributes("script")) == 1


def test_records_that_ended_early_have_no_players(plan: Plan, tmp_path: Path) -> None:
    case = {"prompt": "torus", "seed": 0, "octree_resolution": 32, "until": "shape"}
    record, shown = write(
        plan,
        tmp_path,
        shape_of(plan, 0.0),
        case=case,
        numbers={"inside_logits": 0},
        series={},
        status=Status.NO_SURFACE,
    )
    assert shown.of_class("player") == []
    assert "NO_SURFACE" in shown.text()
    assert "inside logits 0" in shown.text()
    assert page.render("shapes.html", samples=[])
    assert record.status.failed


def test_the_terminal_names_samples_and_drift_apart_and_explains_no_column_that_is_empty(
    plan: Plan, tmp_path: Path
) -> None:
    record, _ = write(plan, tmp_path, shape_of(plan, 0.0))
    file = io.StringIO()
    print_table([record, dataclasses.replace(record, level=Level.MODEL)], file=file)
    text = file.getvalue()
    assert "hunyuan3d samples" in text
    assert "hunyuan3d drift" in text
    assert "budget %:" not in text
