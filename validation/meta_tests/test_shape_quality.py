"""Sampled shapes, rung by rung: on the small trained model, with a coarse grid and few steps."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference_ops
from validation import cli
from validation.controls import shapes
from validation.device import Device
from validation.errors import UsageError
from validation.files import FIXTURES
from validation.media.field import ShapeError
from validation.meta_tests.model_op_sets import reference
from validation.models import hunyuan3d, shape_pipeline
from validation.models.mount import SiteCall
from validation.models.shape_pipeline import PACKED, SITE_NAMES, Shape, ShapePipeline
from validation.models.shapes import KINDS, ShapePrompt
from validation.ops import OpSet, load_op_set
from validation.record import Level, Record, read_run
from validation.sample_runs import Request
from validation.shape_options import ShapeOptions
from validation.shape_quality import (
    PROMPTS,
    TRAINED,
    Gates,
    Plan,
    ShapeRun,
    check_reference,
    distances,
    judge,
    make_plan,
    run_quality,
)
from validation.verdict import Status

CPU = Device("interpreter", "cpu")
SMALL = ShapeOptions(steps=3, octree_resolution=20)
GATES = Gates.read(FIXTURES / "tolerances" / "hunyuan3d-trained.json")
STAGES = {
    "shape": ("condition", "denoise", "decode"),
    "mesh": ("condition", "denoise", "decode", "mesh"),
    "views": ("condition", "denoise", "decode", "mesh", "render"),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline() -> ShapePipeline:
    return shape_pipeline.load(shape_pipeline.find_parts(TRAINED), "cpu")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """One shape."""
    return prompts_in(tmp_path, 1)


def prompts_in(folder: Path, count: int) -> Path:
    content = json.loads(PROMPTS.read_text())
    content["prompts"] = content["prompts"][:count]
    path = folder / "prompts.json"
    path.write_text(json.dumps(content))
    return path


def plan_of(ops: OpSet, prompts: Path, shape: ShapeOptions = SMALL, **options: Any) -> Plan:
    return make_plan(ops, prompts=prompts, replays=0, shape=shape, **options)


def record_of(
    pipeline: ShapePipeline,
    prompts: Path,
    ops: OpSet,
    shape: ShapeOptions = SMALL,
    spoil: Callable[[Shape], Shape] | None = None,
    folder: Path | None = None,
    **options: Any,
) -> Record:
    plan = plan_of(ops, prompts, shape, **options)
    pipeline.denoiser.sites.packed_qk_norm = plan.packed
    run = ShapeRun(pipeline, plan, ops, CPU, cache=prompts.parent / "cache", replays=0)
    record = run.judge(plan.prompts[0], spoil=spoil, folder=folder)
    run.store.clear()
    pipeline.denoiser.sites.packed_qk_norm = False
    return record


# The three paths


@pytest.mark.parametrize("until", STAGES)
def test_every_path_reports_stages_and_memory(pipeline: ShapePipeline, prompts: Path, until: str) -> None:
    shape = dataclasses.replace(SMALL, until=until)
    record = record_of(pipeline, prompts, reference(), shape, folder=prompts.parent / "run")
    assert (record.level, record.status, record.tier) == (Level.SAMPLE, Status.PASSED, "bit-exact")
    arms = [f"{arm}_{stage}" for arm in ("reference", "candidate") for stage in STAGES[until]]
    assert sorted(record.seconds) == sorted([*arms, "compare", "save"])
    assert all(seconds >= 0 for seconds in record.seconds.values())
    for arm in ("reference", "candidate"):
        assert record.seconds[f"{arm}_denoise"] > 0.01
        assert record.seconds[f"{arm}_decode"] > 0.01
        assert 50 < float(record.numbers[f"{arm}_peak_mib"] or 0) < 4000
    kept = {"shape": {"shape"}, "mesh": {"shape", "mesh"}, "views": {"shape", "mesh", "views", "turntable"}}[until]
    roles = {role.removeprefix("candidate_") for role in record.artifacts if role.startswith("candidate")}
    assert roles - {"turntable_mp4"} == kept
    for name in record.artifacts.values():
        assert (prompts.parent / "run" / name).stat().st_size > 500
    with np.load(prompts.parent / "run" / record.artifacts["candidate_shape"]) as arrays:
        assert arrays["latents"].shape == (1, 32, 16)
        assert ("field" in arrays) == (until == "shape")
    rungs = {name.partition("_")[0] for name in record.numbers}
    assert ("mesh" in rungs, "shaded" in rungs) == (until != "shape", until == "views")
    assert Record.from_json(record.to_json()) == record


def test_fused_ops_pass_on_copies_and_on_the_packed_projection(pipeline: ShapePipeline, prompts: Path) -> None:
    shape = dataclasses.replace(SMALL, steps=1, until="mesh")
    fused = load_op_set("fused_ops")
    for sites in (None, ["norm1", PACKED]):
        record = record_of(pipeline, prompts, fused, shape, sites=sites)
        assert record.status is Status.PASSED, record.reason
        assert record.case["sites"] == (list(hunyuan3d.SITE_NAMES) if sites is None else sites)
        assert record.numbers["calls_qk_norm"] == 7
        assert record.numbers["forwards"] == 1


# Named verdicts


def emptied(shape: Shape) -> Shape:
    assert shape.field is not None
    return dataclasses.replace(shape, field=np.full_like(shape.field, -1.0))


def flattened(shape: Shape) -> Shape:
    assert shape.field is not None
    field = np.full_like(shape.field, -1.0)
    field[4, 4, 4] = 1e-30
    return dataclasses.replace(shape, field=field)


def with_nan(shape: Shape) -> Shape:
    latents = [t.clone() for t in shape.latents]
    latents[-1][0, 3, 2] = math.nan
    return Shape(latents)


def with_fewer_latents(shape: Shape) -> Shape:
    return Shape([t[:, :-2] for t in shape.latents])


PROBLEMS: dict[str, tuple[Callable[[Shape], Shape], Status, str, str]] = {
    "no surface": (emptied, Status.NO_SURFACE, "field", "inside_logits"),
    "flat": (flattened, Status.DEGENERATE_MESH, "mesh", "thickness"),
    "NaN": (with_nan, Status.INCORRECT_NONFINITE, "field", "nan_logits"),
    "fewer latents": (with_fewer_latents, Status.MISSING_LATENTS, "latents", "latents_expected"),
}


def spoiled(pipeline: ShapePipeline, change: Callable[[Shape], Shape], prompt: Any) -> Callable[[Shape], Shape]:
    """A change of what was sampled, and all that follows from it."""

    def spoil(shape: Shape) -> Shape:
        changed = dataclasses.replace(change(shape), mesh=None, views=None)
        return shape_pipeline.finish(pipeline, changed, prompt, until="mesh")

    return spoil


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_candidate_that_is_no_shape_fails_by_name(pipeline: ShapePipeline, prompts: Path, problem: str) -> None:
    change, status, check, number = PROBLEMS[problem]
    plan = plan_of(reference(), prompts)
    spoil = spoiled(pipeline, change, plan.prompts[0])
    record = record_of(pipeline, prompts, reference(), dataclasses.replace(SMALL, until="mesh"), spoil)
    assert (record.status, record.check) == (status, check)
    assert record.status.failed
    assert isinstance(record.numbers[number], (int, float))
    assert str(status) in record.message.splitlines()[0]
    for arm in ("reference", "candidate"):
        assert f"{arm}_peak_mib" in record.numbers


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_reference_that_is_no_shape_is_inconclusive(pipeline: ShapePipeline, prompts: Path, problem: str) -> None:
    change, status, _, number = PROBLEMS[problem]
    plan = plan_of(reference(), prompts)
    sampled = shape_pipeline.sample(pipeline, plan.prompts[0], reference(), hunyuan3d.SITE_NAMES, until="mesh")
    spoilt = spoiled(pipeline, change, plan.prompts[0])(sampled)
    verdict = check_reference(spoilt, spoilt)
    assert verdict is not None
    assert (verdict.status, verdict.check) == (Status.INCONCLUSIVE, "reference")
    assert str(status) in verdict.reason
    assert number in verdict.numbers


def test_a_model_short_of_latents_is_inconclusive_and_no_crash(prompts: Path) -> None:
    short = shape_pipeline.load(shape_pipeline.find_parts(TRAINED), "cpu")
    short.num_latents -= 1
    record = record_of(short, prompts, reference(), folder=prompts.parent / "run")
    assert (record.status, record.check) == (Status.INCONCLUSIVE, "reference")
    assert "MISSING_LATENTS: 31 latents came, expected 32" in record.reason
    assert {"reference_condition", "reference_denoise", "save"} <= set(record.seconds)


def test_an_op_that_makes_nan_is_named(pipeline: ShapePipeline, prompts: Path) -> None:
    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor, **options: Any) -> Tensor:
        y: Tensor = reference_ops.residual_gate_add(residual, x, gate, **options)
        return y * math.nan

    record = record_of(pipeline, prompts, reference(residual_gate_add=residual_gate_add))
    assert (record.status, record.check) == (Status.INCORRECT_NONFINITE, "field")
    assert record.numbers["nan_logits"] == 21**3
    assert "latents hold NaN or infinity from step 1 of 3 on" in record.message


def test_an_op_that_raises_or_returns_another_shape_is_named(pipeline: ShapePipeline, prompts: Path) -> None:
    def raises(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    record = record_of(pipeline, prompts, reference(residual_gate_add=raises))
    assert (record.status, record.check) == (Status.RUNTIME_ERROR, "sites")
    assert "residual_gate_add raised at site gate: RuntimeError: no such kernel" in record.reason
    short = record_of(pipeline, prompts, reference(residual_gate_add=lambda residual, *_, **__: residual[:, 1:]))
    assert (short.status, short.check) == (Status.INCORRECT_SHAPE, "sites")


def test_a_reference_that_differs_from_itself_is_inconclusive(pipeline: ShapePipeline, prompts: Path) -> None:
    plan = plan_of(reference(), prompts)
    first = shape_pipeline.sample(pipeline, plan.prompts[0], reference(), hunyuan3d.SITE_NAMES, until="shape")
    assert check_reference(first, first) is None
    latents = [t.clone() for t in first.latents]
    latents[1][0, 0, 0] += 0.01
    verdict = check_reference(first, dataclasses.replace(first, latents=latents))
    assert verdict is not None
    assert "first in the latents of step 2 of 3" in verdict.reason
    assert first.field is not None
    field = first.field.copy()
    field[0, 0, 0] = np.nextafter(field[0, 0, 0], 9)
    verdict = check_reference(first, dataclasses.replace(first, field=field))
    assert verdict is not None
    assert "the decoder is not deterministic here" in verdict.reason


# Gates


@pytest.fixture(scope="module")
def sampled(pipeline: ShapePipeline) -> Shape:
    plan = make_plan(reference(), replays=0, shape=ShapeOptions(octree_resolution=40))
    prompt = next(prompt for prompt in plan.prompts if prompt.name == "torus")
    return shape_pipeline.sample(pipeline, prompt, reference(), hunyuan3d.SITE_NAMES, cameras=plan.cameras)


def test_the_same_shape_passes_every_gate(sampled: Shape) -> None:
    assert GATES.failures(distances(sampled, sampled)) == []
    verdict = judge(sampled, sampled, GATES)
    assert (verdict.status, verdict.check, verdict.tier) == (Status.PASSED, "views", "bit-exact")


@pytest.mark.parametrize("name", [name for name, fault in shapes.FAULTS.items() if fault.spoil is not None])
def test_planted_faults_of_the_shape_are_past_the_gate_that_names_them(sampled: Shape, name: str) -> None:
    plan = make_plan(reference(), replays=0)
    fault = shapes.FAULTS[name]
    assert fault.spoil is not None
    verdict = judge(sampled, fault.spoil(sampled, plan.cameras), GATES)
    assert verdict.status is Status.BELOW_FLOOR
    assert {verdict.check} == fault.gates


def test_a_mesh_that_is_open_where_the_reference_is_closed_fails_without_any_gate(sampled: Shape) -> None:
    plan = make_plan(reference(), replays=0)
    loose = Gates("loose", {"mesh_chamfer": 1.0}, {})
    verdict = judge(sampled, shapes.hole_in_the_mesh(sampled, plan.cameras), loose)
    assert (verdict.status, verdict.check) == (Status.BELOW_FLOOR, "mesh")
    assert "not watertight" in verdict.reason


def test_a_failure_tells_the_first_rung_in_full_and_the_others_in_short(sampled: Shape) -> None:
    plan = make_plan(reference(), replays=0)
    verdict = judge(sampled, shapes.mesh_mirrored(sampled, plan.cameras), GATES)
    mesh, views = verdict.reason.split("; ")
    assert mesh.startswith("past the gate: mesh_candidate_rms ")
    assert mesh.count("(ceiling ") > 1
    assert views.startswith("views too: shaded_psnr_worst_view ")
    assert views.endswith(" more")
    assert views.count("(floor ") == 1


def test_a_nan_is_past_every_gate() -> None:
    names = [*GATES.ceilings, *GATES.floors]
    assert len(GATES.failures(dict.fromkeys(names, math.nan))) == len(names)


def test_each_gate_fails_alone() -> None:
    good = {name: bound * 0.9 for name, bound in GATES.ceilings.items()}
    good |= {name: bound + 1e-9 for name, bound in GATES.floors.items()}
    assert GATES.failures(good) == []
    for name, bound in (*GATES.ceilings.items(), *GATES.floors.items()):
        worse = bound * 1.01 if name in GATES.ceilings else bound - 1e-6
        ((rung, text),) = GATES.failures({**good, name: worse})
        assert text.startswith(f"{name} ")
        assert rung in ("field", "mesh", "views")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "has no gates"),
        ({"ceilings": {"field_iou": 1}}, "unknown name 'field_iou' in ceilings"),
        ({"floors": {"field_iou": "high"}}, 'field_iou in floors is "high", expected a finite number'),
        ({"floors": {"field_iou": True}}, "expected a finite number"),
        ({"floors": [1]}, "floors is a list"),
    ],
)
def test_bad_gates_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        Gates.read(path)


# Sites and options


def test_both_forms_of_the_qk_norm_are_mounted_by_name(prompts: Path) -> None:
    assert PACKED in SITE_NAMES
    plan = plan_of(reference(), prompts, sites=["gate", PACKED])
    assert (plan.packed, plan.site_names) == (True, [PACKED, "gate"])
    plan = plan_of(reference(), prompts, sites=["qk_norm"])
    assert (plan.packed, plan.site_names) == (False, ["qk_norm"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": ["qk_norm", PACKED]}, "one site in two forms"),
        ({"sites": ["norm9"]}, "unknown site 'norm9'"),
        ({"shape": ShapeOptions(until="video")}, "--until: 'video', expected one of: shape, mesh, views"),
        ({"shape": ShapeOptions(steps=0)}, "--steps: 0"),
        ({"shape": ShapeOptions(octree_resolution=0)}, "--octree-resolution: 0"),
        ({"shape": ShapeOptions(guidance=0.5)}, "--guidance: 0.5"),
        ({"shape": ShapeOptions(guidance=math.nan)}, "--guidance: nan"),
        ({"shape": ShapeOptions(seeds=0)}, "--seeds: 0"),
        ({"shape": ShapeOptions(images=(Path("a.png"),))}, "has no image encoder"),
        ({"shape": ShapeOptions(image_encoder=Path("nowhere"))}, "--image-encoder: no folder nowhere"),
        ({"checkpoint": Path("nowhere")}, "--checkpoint: no folder nowhere"),
        ({"checkpoint": FIXTURES}, "holds 0 folders with a denoiser"),
        ({"replays": 3}, "--replays: 3"),
        ({"gates": Path("nowhere.json")}, "cannot read nowhere.json"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(reference(), **options)
    assert says in str(error.value)


def test_seeds_and_numbers_reach_every_prompt() -> None:
    shape = ShapeOptions(steps=7, guidance=2.5, octree_resolution=9, seeds=3)
    plan = make_plan(reference(), seed=5, replays=0, shape=shape)
    assert len(plan.prompts) == 3 * len(ShapePrompt.read(PROMPTS))
    for prompt in plan.prompts:
        assert (prompt.steps, prompt.guidance_scale, prompt.octree_resolution) == (7, 2.5, 9)
    assert [prompt.seed for prompt in plan.prompts[:3]] == [5, 6, 7]
    assert {prompt.kind for prompt in plan.prompts if isinstance(prompt, ShapePrompt)} <= set(KINDS)
    assert shape.words() == ["--steps", "7", "--guidance", "2.5", "--octree-resolution", "9", "--seeds", "3"]


def test_every_site_call_of_a_forward_has_a_place_of_its_own(pipeline: ShapePipeline) -> None:
    depth = pipeline.denoiser.config.depth
    for site in hunyuan3d.sites_of(dataclasses.asdict(pipeline.denoiser.config)):
        calls = [SiteCall(site.name, index, 0, site.calls) for index in range(site.calls)]
        assert len({hunyuan3d.place_of(call, depth) for call in calls}) == site.calls
    assert hunyuan3d.place_of(SiteCall("gate", 3, 0, 7), 2) == "double block 1 text"
    assert hunyuan3d.place_of(SiteCall("gate", 4, 0, 7), 2) == "single block 0"
    assert hunyuan3d.place_of(SiteCall("pre_norm", 2, 0, 3), 2) == "single block 2"
    assert hunyuan3d.place_of(SiteCall("norm_final", 0, 0, 1), 2) == "output"


def test_the_distances_to_the_truth_stand_beside_the_rungs(pipeline: ShapePipeline, tmp_path: Path) -> None:
    shape = dataclasses.replace(SMALL, until="mesh", steps=2)
    plan = make_plan(reference(), prompts=prompts_in(tmp_path, 6), shape=shape)

    def judged() -> tuple[Record, ShapeRun]:
        run = ShapeRun(pipeline, plan, reference(), CPU, cache=tmp_path / "cache")
        return run.judge(plan.prompts[0]), run

    record, run = judged()
    assert run.drift is not None
    for name in ("field_rms", "mesh_reference_rms", "mesh_volume_change"):
        least, greatest = (float(record.numbers[f"replays_{name}_{end}"] or 0) for end in ("least", "greatest"))
        assert 0 < least < greatest
        # The reference is a legal rounding too.
        assert 0.1 * least < float(record.numbers[f"reference_{name}"] or 0) < 10 * greatest
        assert record.numbers[f"candidate_{name}"] == record.numbers[f"reference_{name}"]
    assert not any("psnr" in name for name in record.numbers)
    assert set(record.series) >= {"latents_per_step", "candidate_distance_per_step", "lossless_band_least_per_step"}
    again, _ = judged()
    assert {n: v for n, v in again.numbers.items() if "peak" not in n} == {
        n: v for n, v in record.numbers.items() if "peak" not in n
    }


# Going on after an interruption


def test_an_interrupted_run_goes_on_and_a_finished_one_starts_anew(tmp_path: Path) -> None:
    ops_file = tmp_path / "kernels.py"
    source = "from reference_ops import residual_gate_add  # {}\n"
    ops_file.write_text(source.format(1))
    told: list[str] = []

    def run(stop_at: str = "") -> list[Record]:
        told.clear()

        def progress(text: str) -> None:
            told.append(text)
            if stop_at and stop_at in text:
                raise KeyboardInterrupt

        return list(
            run_quality(
                load_op_set(str(ops_file)),
                Request(
                    CPU,
                    prompts=prompts_in(tmp_path, 2),
                    replays=0,
                    cache=tmp_path / "cache",
                    shape=dataclasses.replace(SMALL, until="shape"),
                    progress=progress,
                ),
            )
        )

    def resumed() -> int:
        return len(list((tmp_path / "cache" / "arms").rglob("*.safetensors")))

    with pytest.raises(KeyboardInterrupt):
        run("box seed 0")
    assert resumed() == 3  # the first prompt's arms
    records = run()
    assert any("taken from the run that was interrupted" in text for text in told)
    assert [record.status for record in records] == [Status.PASSED] * 2
    assert resumed() == 0
    run()
    assert not any("interrupted" in text for text in told)
    with pytest.raises(KeyboardInterrupt):
        run("box seed 0")
    ops_file.write_text(source.format(2))
    run()
    assert not any("candidate, taken" in text for text in told)


def test_a_resumed_drift_is_that_of_a_run_that_was_not_interrupted(tmp_path: Path) -> None:
    told: list[str] = []

    def run(stop_at: str = "") -> list[Record]:
        def progress(text: str) -> None:
            told.append(text)
            if stop_at and stop_at in text:
                raise KeyboardInterrupt

        request = Request(
            CPU,
            prompts=prompts_in(tmp_path, 6),
            replays=4,
            cache=tmp_path / "cache",
            shape=ShapeOptions(until="shape", steps=2, octree_resolution=8),
            progress=progress,
        )
        return list(run_quality(load_op_set("validation.adapters.torch_native"), request))

    with pytest.raises(KeyboardInterrupt):
        run("capsule seed 0: candidate")
    told.clear()
    assert len(list((tmp_path / "cache" / "arms").rglob("*-truth.safetensors"))) == 3
    resumed = run()
    # Of three prompts both arms of the reference, and the candidate; of the fourth the reference's.
    assert sum("taken from" in text and "truth" not in text for text in told) == 3 * 3 + 2
    told.clear()
    whole = run()  # the band is there, the arms are not
    assert not any("taken from" in text for text in told)
    assert [(record.status, record.reason) for record in resumed] == [(r.status, r.reason) for r in whole]
    for one, other in zip(resumed, whole, strict=True):
        assert one.series == other.series
        assert {n: v for n, v in one.numbers.items() if "peak" not in n} == {
            n: v for n, v in other.numbers.items() if "peak" not in n
        }


# The command


def test_the_command_samples_shapes_and_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = f"--until mesh --steps 2 --octree-resolution 16 --replays 0 --cache {tmp_path / 'cache'} --out {out}"
    command = f"quality --model hunyuan3d --ops reference_ops --prompts {prompts_in(tmp_path, 1)} {options}"
    assert cli.main(command.split()) == cli.PASSED, capsys.readouterr()
    _, records = read_run(out)
    assert [record.subject for record in records] == ["hunyuan3d"]
    assert "--until mesh --steps 2 --octree-resolution 16" in records[0].repro
    assert "Shapes" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model helios --until mesh", "--until: helios has no such option"),
        ("--model hunyuan3d --until video", "--until: 'video'"),
        ("--seeds 0", "--seeds: 0"),
        ("--model hunyuan3d --image nowhere.png", "--image: the checkpoint has no image encoder"),
    ],
)
def test_the_command_refuses_bad_options(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quality", *arguments.split()]) == cli.USAGE
    assert says in capsys.readouterr().err


def test_shape_errors_carry_their_numbers() -> None:
    error = ShapeError(Status.NO_SURFACE, "field", "none above 0", {"inside_logits": 0})
    shape = Shape([torch.zeros(1, 2, 3)], problem=error)
    verdict = judge(dataclasses.replace(shape, problem=None), shape, GATES)
    assert (verdict.status, verdict.check, verdict.numbers) == (Status.NO_SURFACE, "field", {"inside_logits": 0})
