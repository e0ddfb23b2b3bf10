"""Sampled shapes, rung by rung: on the small trained model, with a coarse grid and few steps."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference_ops
from validation import cli
from validation.device import Device
from validation.errors import UsageError
from validation.files import FIXTURES
from validation.media.field import ShapeError
from validation.media.render import Camera
from validation.meta_tests.model_op_sets import reference
from validation.meta_tests.sampled_models import SHAPE_PROMPTS as PROMPTS
from validation.models.hunyuan3d import faults, rungs, sites
from validation.models.hunyuan3d.model import Hunyuan3D
from validation.models.hunyuan3d.sampling import ShapePipeline
from validation.models.hunyuan3d.shapes import KINDS, ShapePrompt
from validation.models.hunyuan3d.sites import PACKED
from validation.models.mount import SiteCall
from validation.ops import OpSet, load_op_set
from validation.options import given
from validation.record import Level, Record, read_run
from validation.samples.compare import check_reference, judge
from validation.samples.gates import Gates
from validation.samples.request import Request
from validation.samples.run import SampleRun, plan, run
from validation.samples.rung import Sample, SampleError
from validation.session import Session
from validation.verdict import Status

CPU = Device("interpreter", "cpu")
SMALL: dict[str, Any] = {"steps": 3, "own": {"octree_resolution": 20}}
MEASURES = [measure for rung in Hunyuan3D.rungs for measure in rung.measures]
GATES = Gates.read(FIXTURES / "tolerances" / "hunyuan3d-trained.json", MEASURES)
RUNGS = Hunyuan3D.rungs
CAMERAS = Camera.read(FIXTURES / "cameras" / "views.json")
VIEWED = SimpleNamespace(cameras=CAMERAS)  # all that a shape's planted fault needs from the model
STAGES = {
    "latents": ("condition", "denoise"),
    "field": ("condition", "denoise", "decode"),
    "mesh": ("condition", "denoise", "decode", "mesh"),
    "views": ("condition", "denoise", "decode", "mesh", "render"),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline() -> ShapePipeline:
    model = Hunyuan3D(Request(CPU, replays=0), reference())
    model.load(CPU)
    return model.pipeline


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


def model_of(pipeline: ShapePipeline | None, prompts: Path, ops: OpSet, **options: Any) -> Hunyuan3D:
    model = Hunyuan3D(Request(CPU, prompts=prompts, **{"replays": 0, **SMALL, **options}), ops)
    if pipeline is not None:
        pipeline.denoiser.sites.packed_qk_norm = model.packed
        model.pipeline, model.device = pipeline, pipeline.device
    return model


def record_of(
    pipeline: ShapePipeline,
    prompts: Path,
    ops: OpSet,
    spoil: Callable[[Sample], Sample] | None = None,
    folder: Path | None = None,
    **options: Any,
) -> Record:
    model = model_of(pipeline, prompts, ops, **options)
    sampled = SampleRun(model, ops, CPU, gates=Gates.of(model), cache=prompts.parent / "cache")
    record = sampled.judge(model.prompts[0], spoil=spoil, folder=folder)
    sampled.store.clear()
    pipeline.denoiser.sites.packed_qk_norm = False
    return record


def sampled_by(pipeline: ShapePipeline, prompts: Path, until: str) -> Sample:
    model = model_of(pipeline, prompts, reference())
    return model.finish(model.sample(reference(), model.prompts[0]), model.prompts[0], until)


# The three paths


@pytest.mark.parametrize("until", STAGES)
def test_every_path_reports_stages_and_memory(pipeline: ShapePipeline, prompts: Path, until: str) -> None:
    record = record_of(pipeline, prompts, reference(), folder=prompts.parent / "run", until=until)
    assert (record.level, record.status, record.tier) == (Level.SAMPLE, Status.PASSED, "bit-exact")
    arms = [f"{arm}_{stage}" for arm in ("reference", "candidate") for stage in STAGES[until]]
    assert sorted(record.seconds) == sorted([*arms, "compare", "save"])
    assert all(seconds >= 0 for seconds in record.seconds.values())
    for arm in ("reference", "candidate"):
        assert record.seconds[f"{arm}_denoise"] > 0.01
        assert until == "latents" or record.seconds[f"{arm}_decode"] > 0.01
        assert 50 < float(record.numbers[f"{arm}_peak_mib"] or 0) < 4000
    kept = {"shape"} | {"mesh": {"mesh"}, "views": {"mesh", "views", "turntable"}}.get(until, set())
    roles = {role.removeprefix("candidate_") for role in record.artifacts if role.startswith("candidate")}
    assert roles - {"turntable_mp4"} == kept
    for name in record.artifacts.values():
        assert (prompts.parent / "run" / name).stat().st_size > 500
    with np.load(prompts.parent / "run" / record.artifacts["candidate_shape"]) as arrays:
        assert arrays["latents"].shape == (1, 32, 16)
        assert ("field" in arrays) == (until == "field")
    rungs = {name.partition("_")[0] for name in record.numbers}
    assert ("mesh" in rungs, "shaded" in rungs) == (until in ("mesh", "views"), until == "views")
    assert [player["role"] for player in record.players] == (["views", "turntable"] if until == "views" else [])
    assert {measure["rung"] for measure in record.measures} == set(list(STAGES)[1 : list(STAGES).index(until) + 1])
    assert Record.from_json(record.to_json()) == record


def test_fused_ops_pass_on_copies_and_on_the_packed_projection(pipeline: ShapePipeline, prompts: Path) -> None:
    fused = load_op_set("fused_ops")
    for names in (None, ["norm1", PACKED]):
        record = record_of(pipeline, prompts, fused, steps=1, until="mesh", sites=names)
        assert record.status is Status.PASSED, record.reason
        assert record.case["sites"] == (list(sites.SITE_NAMES) if names is None else names)
        assert record.numbers["calls_qk_norm"] == 7
        assert record.numbers["forwards"] == 1


# Named verdicts


def emptied(sample: Sample) -> Sample:
    return dataclasses.replace(sample, made={"field": np.full_like(sample.made["field"], -1.0)})


def flattened(sample: Sample) -> Sample:
    field = np.full_like(sample.made["field"], -1.0)
    field[4, 4, 4] = 1e-30
    return dataclasses.replace(sample, made={"field": field})


def with_nan(sample: Sample) -> Sample:
    latents = [t.clone() for t in sample.latents]
    latents[-1][0, 3, 2] = math.nan
    return Sample(latents)


def with_fewer_latents(sample: Sample) -> Sample:
    return Sample([t[:, :-2] for t in sample.latents])


PROBLEMS: dict[str, tuple[Callable[[Sample], Sample], Status, str, str]] = {
    "no surface": (emptied, Status.NO_SURFACE, "field", "inside_logits"),
    "flat": (flattened, Status.DEGENERATE_MESH, "mesh", "thickness"),
    "NaN": (with_nan, Status.INCORRECT_NONFINITE, "field", "nan_logits"),
    "fewer latents": (with_fewer_latents, Status.MISSING_LATENTS, "latents", "latents_expected"),
}


def spoiled(pipeline: ShapePipeline, change: Callable[[Sample], Sample], prompts: Path) -> Callable[[Sample], Sample]:
    """A function that applies a change to a sample and recomputes what follows from it."""
    model = model_of(pipeline, prompts, reference())
    return lambda sample: model.finish(change(sample), model.prompts[0], "mesh")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_candidate_that_is_no_shape_fails_by_name(pipeline: ShapePipeline, prompts: Path, problem: str) -> None:
    change, status, check, number = PROBLEMS[problem]
    spoil = spoiled(pipeline, change, prompts)
    record = record_of(pipeline, prompts, reference(), spoil, until="mesh")
    assert (record.status, record.check) == (status, check)
    assert record.status.failed
    assert isinstance(record.numbers[number], (int, float))
    assert str(status) in record.message.splitlines()[0]
    for arm in ("reference", "candidate"):
        assert f"{arm}_peak_mib" in record.numbers


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_reference_that_is_no_shape_is_inconclusive(pipeline: ShapePipeline, prompts: Path, problem: str) -> None:
    change, status, _, number = PROBLEMS[problem]
    spoilt = spoiled(pipeline, change, prompts)(sampled_by(pipeline, prompts, "mesh"))
    verdict = check_reference(spoilt, spoilt, RUNGS)
    assert verdict is not None
    assert (verdict.status, verdict.check) == (Status.INCONCLUSIVE, "reference")
    assert str(status) in verdict.reason
    assert number in verdict.numbers


def test_a_model_short_of_latents_is_inconclusive_and_no_crash(prompts: Path) -> None:
    model = Hunyuan3D(Request(CPU, replays=0), reference())
    model.load(CPU)
    short = model.pipeline
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
    first = sampled_by(pipeline, prompts, "field")
    assert check_reference(first, first, RUNGS) is None
    latents = [t.clone() for t in first.latents]
    latents[1][0, 0, 0] += 0.01
    verdict = check_reference(first, dataclasses.replace(first, latents=latents), RUNGS)
    assert verdict is not None
    assert "first in the latents of step 2 of 3" in verdict.reason
    field = first.made["field"].copy()
    field[0, 0, 0] = np.nextafter(field[0, 0, 0], 9)
    verdict = check_reference(first, dataclasses.replace(first, made={"field": field}), RUNGS)
    assert verdict is not None
    assert "the decoder is not deterministic here" in verdict.reason


# Gates


@pytest.fixture(scope="module")
def sampled(pipeline: ShapePipeline) -> Sample:
    model = model_of(pipeline, PROMPTS, reference(), steps=None, own={"octree_resolution": 40})
    prompt = next(prompt for prompt in model.prompts if prompt.name == "torus")
    return model.finish(model.sample(reference(), prompt), prompt, "views")


def test_the_same_shape_passes_every_gate(sampled: Sample) -> None:
    verdict = judge(sampled, sampled, RUNGS, GATES)
    assert (verdict.status, verdict.check, verdict.tier) == (Status.PASSED, "views", "bit-exact")


@pytest.mark.parametrize("name", [name for name, fault in faults.FAULTS.items() if fault.spoil is not None])
def test_planted_faults_of_the_shape_are_past_the_gate_that_names_them(sampled: Sample, name: str) -> None:
    fault = faults.FAULTS[name]
    assert fault.spoil is not None
    verdict = judge(sampled, fault.spoil(sampled, VIEWED), RUNGS, GATES)
    assert verdict.status is Status.BELOW_FLOOR
    assert {verdict.check} == fault.gates


def test_a_mesh_that_is_open_where_the_reference_is_closed_fails_without_any_gate(sampled: Sample) -> None:
    loose = Gates("loose", {"mesh_chamfer": 1.0}, {})
    verdict = judge(sampled, faults.hole_in_the_mesh(sampled, VIEWED), RUNGS, loose)
    assert (verdict.status, verdict.check) == (Status.BELOW_FLOOR, "mesh")
    assert "not watertight" in verdict.reason


def test_a_failure_tells_the_first_rung_in_full_and_the_others_in_short(sampled: Sample) -> None:
    verdict = judge(sampled, faults.mesh_mirrored(sampled, VIEWED), RUNGS, GATES)
    mesh, views = verdict.reason.split("; ")
    assert mesh.startswith("past the gate: mesh_candidate_rms ")
    assert mesh.count("(ceiling ") > 1
    assert views.startswith("views too: shaded_psnr_worst_view ")
    assert views.endswith(" more")
    assert views.count("(floor ") == 1


def test_a_nan_is_past_every_gate() -> None:
    names = [*GATES.ceilings, *GATES.floors]
    assert len(GATES.failures(dict.fromkeys(names, math.nan), RUNGS)) == len(names)


def test_each_gate_fails_alone() -> None:
    good: dict[str, Any] = {name: bound * 0.9 for name, bound in GATES.ceilings.items()}
    good |= {name: bound + 1e-9 for name, bound in GATES.floors.items()}
    assert GATES.failures(good, RUNGS) == []
    for name, bound in (*GATES.ceilings.items(), *GATES.floors.items()):
        worse = bound * 1.01 if name in GATES.ceilings else bound - 1e-6
        ((rung, text),) = GATES.failures({**good, name: worse}, RUNGS)
        assert text.startswith(f"{name} ")
        assert rung.name in ("field", "mesh", "views")


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
        Gates.read(path, MEASURES)


# Sites and options


def test_both_forms_of_the_qk_norm_are_mounted_by_name(prompts: Path) -> None:
    model = model_of(None, prompts, reference(), sites=["gate", PACKED])
    assert (model.packed, model.site_names) == (True, [PACKED, "gate"])
    model = model_of(None, prompts, reference(), sites=["qk_norm"])
    assert (model.packed, model.site_names) == (False, ["qk_norm"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": ["qk_norm", PACKED]}, "one site in two forms"),
        ({"sites": ["norm9"]}, "unknown site 'norm9'"),
        ({"until": "video"}, "--until: 'video', expected one of: latents, field, mesh, views"),
        ({"steps": 0}, "--steps: 0"),
        ({"own": {"octree_resolution": 0}}, "--octree-resolution: 0"),
        ({"guidance": 0.5}, "--guidance: 0.5"),
        ({"guidance": math.nan}, "--guidance: nan"),
        ({"seeds": 0}, "--seeds: 0"),
        ({"own": {"image": (Path("a.png"),)}}, "has no image encoder"),
        ({"own": {"image_encoder": Path("nowhere")}}, "--image-encoder: no folder nowhere"),
        ({"checkpoint": Path("nowhere")}, "--checkpoint: no folder nowhere"),
        ({"checkpoint": FIXTURES}, "holds 0 folders with a denoiser"),
        ({"replays": 3}, "--replays: 3"),
        ({"bounds": Path("nowhere.json")}, "cannot read nowhere.json"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(Hunyuan3D, reference(), Request(CPU, **options))
    assert says in str(error.value)


def test_seeds_and_numbers_reach_every_prompt() -> None:
    request = Request(CPU, steps=7, guidance=2.5, own={"octree_resolution": 9}, seeds=3, seed=5, replays=0)
    model = Hunyuan3D(request, reference())
    assert len(model.prompts) == 3 * len(ShapePrompt.read(PROMPTS))
    for prompt in model.prompts:
        assert (prompt.steps, prompt.guidance_scale, prompt.octree_resolution) == (7, 2.5, 9)
    assert [prompt.seed for prompt in model.prompts[:3]] == [5, 6, 7]
    assert {prompt.kind for prompt in model.prompts if isinstance(prompt, ShapePrompt)} <= set(KINDS)


def test_a_request_has_what_the_options_say_and_the_line_that_repeats_it(tmp_path: Path) -> None:
    options = given(
        ops="reference_ops", out=tmp_path, steps=7, guidance=2.5, octree_resolution=9, seeds=3, seed=5, replays=0
    )
    session = Session(options)
    assert session.models() == ("hunyuan3d",)
    request = session._request("hunyuan3d", tmp_path)
    assert (request.steps, request.guidance, request.seeds, request.seed) == (7, 2.5, 3, 5)
    assert dict(request.own) == {"octree_resolution": 9}
    assert request.repro == (
        "validate quality --model hunyuan3d --ops reference_ops --seed 5 --replays 0 --steps 7 --guidance 2.5 "
        "--octree-resolution 9 --seeds 3"
    )


def test_every_site_call_of_a_forward_has_a_place_of_its_own(pipeline: ShapePipeline) -> None:
    depth = pipeline.denoiser.config.depth
    for site in sites.sites_of(dataclasses.asdict(pipeline.denoiser.config)):
        calls = [SiteCall(site.name, index, 0, site.calls) for index in range(site.calls)]
        assert len({sites.place_of(call, depth) for call in calls}) == site.calls
    assert sites.place_of(SiteCall("gate", 3, 0, 7), 2) == "double block 1 text"
    assert sites.place_of(SiteCall("gate", 4, 0, 7), 2) == "single block 0"
    assert sites.place_of(SiteCall("pre_norm", 2, 0, 3), 2) == "single block 2"
    assert sites.place_of(SiteCall("norm_final", 0, 0, 1), 2) == "output"


def test_the_distances_to_the_truth_stand_beside_the_rungs(pipeline: ShapePipeline, tmp_path: Path) -> None:
    model = model_of(
        pipeline, prompts_in(tmp_path, 6), reference(), until="mesh", steps=2, replays=8, own={"octree_resolution": 12}
    )

    def judged() -> tuple[Record, SampleRun]:
        made = SampleRun(model, reference(), CPU, gates=Gates.of(model), cache=tmp_path / "cache")
        return made.judge(model.prompts[0]), made

    record, made = judged()
    assert made.drift is not None
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


# Resuming after an interruption


def test_an_interrupted_run_goes_on_and_a_finished_one_starts_anew(tmp_path: Path) -> None:
    ops_file = tmp_path / "kernels.py"
    source = "from reference_ops import residual_gate_add  # {}\n"
    ops_file.write_text(source.format(1))
    told: list[str] = []

    def records_of(stop_at: str = "") -> list[Record]:
        told.clear()

        def progress(text: str) -> None:
            told.append(text)
            if stop_at and stop_at in text:
                raise KeyboardInterrupt

        return list(
            run(
                Hunyuan3D,
                load_op_set(str(ops_file)),
                Request(
                    CPU,
                    prompts=prompts_in(tmp_path, 2),
                    replays=0,
                    cache=tmp_path / "cache",
                    until="field",
                    steps=1,
                    own={"octree_resolution": 8},
                    progress=progress,
                ),
            )
        )

    def resumed() -> int:
        return len(list((tmp_path / "cache" / "arms").rglob("*.safetensors")))

    with pytest.raises(KeyboardInterrupt):
        records_of("box seed 0")
    assert resumed() == 3  # the first prompt's arms
    records = records_of()
    assert any("taken from the run that was interrupted" in text for text in told)
    assert [record.status for record in records] == [Status.PASSED] * 2
    assert resumed() == 0
    records_of()
    assert not any("interrupted" in text for text in told)
    with pytest.raises(KeyboardInterrupt):
        records_of("box seed 0")
    ops_file.write_text(source.format(2))
    records_of()
    assert not any("candidate, taken" in text for text in told)


def test_a_resumed_drift_is_that_of_a_run_that_was_not_interrupted(tmp_path: Path) -> None:
    told: list[str] = []

    def records_of(stop_at: str = "") -> list[Record]:
        def progress(text: str) -> None:
            told.append(text)
            if stop_at and stop_at in text:
                raise KeyboardInterrupt

        request = Request(
            CPU,
            prompts=prompts_in(tmp_path, 6),
            replays=4,
            cache=tmp_path / "cache",
            until="field",
            steps=2,
            own={"octree_resolution": 8},
            progress=progress,
        )
        return list(run(Hunyuan3D, load_op_set("validation.adapters.torch_native"), request))

    with pytest.raises(KeyboardInterrupt):
        records_of("capsule seed 0: candidate")
    told.clear()
    assert len(list((tmp_path / "cache" / "arms").rglob("*-truth.safetensors"))) == 3
    resumed = records_of()
    # Both arms of the reference and the candidate for three prompts; the reference's for the fourth.
    assert sum("taken from" in text and "truth" not in text for text in told) == 3 * 3 + 2
    told.clear()
    whole = records_of()  # the band is there, the arms are not
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
    assert "points to the other surface, RMS" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model helios --until mesh", "--until: 'mesh', expected one of: latents, frames"),
        ("--model helios --octree-resolution 9", "--octree-resolution: helios has no such option"),
        ("--model hunyuan3d --until video", "--until: 'video'"),
        ("--seeds 0", "--seeds: 0"),
        ("--model hunyuan3d --image nowhere.png", "--image: the checkpoint has no image encoder"),
    ],
)
def test_the_command_refuses_bad_options(arguments: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quality", *arguments.split()]) == cli.USAGE
    assert says in capsys.readouterr().err


def test_shape_errors_carry_their_numbers() -> None:
    with pytest.raises(SampleError) as error, rungs.named():
        raise ShapeError("NO_SURFACE", "field", "none above 0", {"inside_logits": 0})
    sample = Sample([torch.zeros(1, 2, 3)], problem=error.value)
    verdict = judge(dataclasses.replace(sample, problem=None), sample, RUNGS, GATES)
    assert (verdict.status, verdict.check, verdict.numbers) == (Status.NO_SURFACE, "field", {"inside_logits": 0})
