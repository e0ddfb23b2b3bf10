"""The small trained shape model: its shapes' formulas, its checkpoint, its recipe."""

import dataclasses
import json
import math
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from validation.errors import UsageError
from validation.files import FIXTURES
from validation.models.hunyuan3d import dit, loading, sampling
from validation.models.hunyuan3d.shapes import (
    CONTEXT_TOKENS,
    KINDS,
    ShapePrompt,
    embed_shape,
    shape_iou,
    signed_distance,
)

CHECKPOINT = FIXTURES / "checkpoints" / "hunyuan3d-trained"
DENOISER = CHECKPOINT / "hunyuan3d-dit-v2-0"
VAE = CHECKPOINT / "hunyuan3d-vae-v2-0"
PROMPTS = FIXTURES / "prompts" / "hunyuan3d-trained.json"
RECIPE = FIXTURES / "recipes" / "hunyuan3d_trained.py"

LEAST_IOU = 0.85


# The shapes


def volume(kind: str, v: Mapping[str, float]) -> float:
    """The volume by the formulas of solid geometry, without distances."""

    def ball(radius: float) -> float:
        return 4 / 3 * math.pi * radius**3

    def cap(radius: float, height: float) -> float:
        return math.pi * height**2 * (radius - height / 3)

    def torus(ring: float, tube: float) -> float:
        return 2 * math.pi**2 * ring * tube**2

    volumes = {
        "sphere": lambda: ball(v["radius"]),
        "box": lambda: 8 * v["half-x"] * v["half-y"] * v["half-z"],
        "torus": lambda: torus(v["ring"], v["tube"]),
        "capsule": lambda: ball(v["radius"]) + math.pi * v["radius"] ** 2 * 2 * v["half-height"],
        "sphere-with-hole": lambda: ball((v["radius"] ** 2 - v["hole"] ** 2) ** 0.5),  # the napkin ring
        "box-and-sphere": lambda: 8 * v["half"] ** 3 + ball(v["radius"]) - cap(v["radius"], 0.4 * v["radius"]),
        "box-without-sphere": lambda: (
            8 * v["half"] ** 3 - ball(v["half"] * v["cut"]) + 6 * cap(v["half"] * v["cut"], v["half"] * (v["cut"] - 1))
        ),
        "planet": lambda: ball(v["radius"]) + torus(v["ring"], v["tube"]),
    }
    return volumes[kind]()


@pytest.mark.parametrize("prompt", ShapePrompt.read(PROMPTS), ids=lambda prompt: prompt.name)
def test_signed_distance_has_the_sign_of_the_solid(prompt: ShapePrompt) -> None:
    points = 2 * torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0)) - 1
    inside = (signed_distance(prompt.kind, prompt.parameters, points) < 0).float().mean()
    expected = volume(prompt.kind, prompt.parameters) / 8
    # Four standard errors of the share of points.
    assert abs(float(inside) - expected) < 4 * (expected * (1 - expected) / len(points)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_fit_the_cube_and_their_distance_has_unit_slope(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for end in (0, 1):
        parameters = {name: ends[end] for name, ends in KINDS[kind].ranges.items()}
        points = 2 * torch.rand(10_000, 3, generator=generator, dtype=torch.float64) - 1
        points.requires_grad_()
        distance = signed_distance(kind, parameters, points)
        (slope,) = torch.autograd.grad(distance.sum(), points)
        torch.testing.assert_close(slope.norm(dim=-1), torch.ones(len(points), dtype=torch.float64))
        assert distance.min() < -0.05
        faces = points.detach() / points.detach().abs().amax(dim=-1, keepdim=True)
        assert signed_distance(kind, parameters, faces).min() > 0.03


def test_many_shapes_of_a_kind_at_once() -> None:
    points = torch.rand(3, 50, 3, generator=torch.Generator().manual_seed(0))
    for kind, family in KINDS.items():
        weight = torch.tensor([[0.0], [0.4], [1.0]])
        many = {name: low + (high - low) * weight for name, (low, high) in family.ranges.items()}
        together = signed_distance(kind, many, points)
        for i in range(3):
            one = {name: float(value[i]) for name, value in many.items()}
            torch.testing.assert_close(together[i], signed_distance(kind, one, points[i]))


def test_every_shape_has_a_context_of_its_own() -> None:
    rows = [embed_shape(p.kind, p.parameters, 64) for p in ShapePrompt.read(PROMPTS)]
    assert all(row.shape == (1, CONTEXT_TOKENS, 64) and row.dtype is torch.float32 for row in rows)
    assert torch.pdist(torch.stack(rows).flatten(1)).min() > 5
    near = embed_shape("sphere", {"radius": 0.71}, 64) - embed_shape("sphere", {"radius": 0.7}, 64)
    assert 0 < near.norm() < 1
    used = rows[0].square().mean(dim=-1)[0]
    assert used[:2].min() > 0.5
    assert used[:2].max() < 2
    assert not used[2:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "A b"}, "name is 'A b'"),
        ({"kind": "cone"}, "kind is 'cone', expected one of: sphere, box"),
        ({"parameters": {"ring": 0.6}}, "expected ring, tube"),
        ({"parameters": {"ring": 0.6, "tube": 0.5}}, r"tube is 0.5, expected a number in \[0.15, 0.3\]"),
        ({"parameters": {"ring": 0.6, "tube": True}}, "tube is True"),
        ({"parameters": {"ring": float("nan"), "tube": 0.2}}, "ring is nan"),
        ({"steps": 0}, "steps is 0, expected an integer of at least 1"),
        ({"seed": 1.5}, "seed is 1.5, expected an integer"),
        ({"guidance_scale": "3"}, "guidance_scale is '3', expected a number"),
        ({"octree_resolution": None}, "octree_resolution is None"),
        ({"frames": 3}, "expected the fields name, kind"),
    ],
)
def test_bad_shape_prompts_are_named(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    good = dataclasses.asdict(next(p for p in ShapePrompt.read(PROMPTS) if p.kind == "torus"))
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"prompts": [{**good, **change}]}))
    with pytest.raises(UsageError, match=message):
        ShapePrompt.read(path)


# The checkpoint


def test_checkpoint_is_small_and_its_prompts_cover_every_kind() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*")) <= 10_000_000
    assert {prompt.kind for prompt in ShapePrompt.read(PROMPTS)} == set(KINDS)
    for folder in (DENOISER, VAE):
        assert {t.dtype for t in load_file(folder / "model.fp16.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("prompt", ShapePrompt.read(PROMPTS), ids=lambda prompt: prompt.name)
def test_named_shapes_are_sampled(prompt: ShapePrompt) -> None:
    # Every second point of the prompts' own grid is enough.
    coarse = dataclasses.replace(prompt, octree_resolution=prompt.octree_resolution // 2)
    field = runpy.run_path(str(RECIPE))["sample_shape"](CHECKPOINT, coarse)
    assert shape_iou(field, prompt.kind, prompt.parameters) >= LEAST_IOU
    for other in ShapePrompt.read(PROMPTS):
        if other.name != prompt.name:
            # It is this shape and not just one of its size.
            assert shape_iou(field, other.kind, other.parameters) < LEAST_IOU


def largest_activation(model: dit.Hunyuan3DDiT) -> float:
    """The largest value in any module's output in a whole sampling; NaN or infinity if there is one."""
    prompt = ShapePrompt.read(PROMPTS)[-1]
    largest = torch.zeros(())

    def watch(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal largest
        for t in output if isinstance(output, tuple | list) else (output,):
            if isinstance(t, Tensor):
                largest = torch.maximum(largest, t.abs().max().float())  # propagates NaN

    for module in model.modules():
        module.register_forward_hook(watch)
    sampling.sample(
        model,
        embed_shape(prompt.kind, prompt.parameters, model.config.context_in_dim).half(),
        schedule=loading.load_schedule(DENOISER),
        steps=prompt.steps,
        num_latents=32,
        seed=prompt.seed,
        guidance_scale=prompt.guidance_scale,
    )
    return float(largest)


def test_float16_activations_are_far_from_overflow() -> None:
    limit = torch.finfo(torch.float16).max / 64
    model = loading.load_denoiser(DENOISER)
    assert 1 < largest_activation(model) < limit

    for module in model.modules():
        if isinstance(module, dit.SingleStreamBlock):
            module.linear2.weight *= 1000
    assert not largest_activation(model) < limit


# The recipe


def toy(**settings: Any) -> dict[str, Any]:
    sizes = {"width": 32, "hidden_size": 32, "depth": 1, "depth_single_blocks": 1, "num_latents": 4, "queries": 16}
    return sizes | {"vae_batch": 1, "denoiser_batch": 1, "vae_steps": 5, "denoiser_steps": 5} | settings


def test_training_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    recipe = runpy.run_path(str(RECIPE))
    settings = recipe["Settings"](**toy())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert recipe["train"](settings, whole, tmp_path / "state-whole")
    for stop_after in ({"vae": 2}, {"denoiser": 2}):
        assert not recipe["train"](settings, parts, tmp_path / "state-parts", stop_after)
        assert not parts.exists()
    assert recipe["train"](settings, parts, tmp_path / "state-parts")

    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    for stage in ("vae", "denoiser"):
        one, other = (torch.load(tmp_path / f"state-{name}" / f"{stage}.pt") for name in ("whole", "parts"))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    model, vae = (
        loading.load_denoiser(whole / "hunyuan3d-dit-v2-0"),
        loading.load_shape_vae(whole / "hunyuan3d-vae-v2-0"),
    )
    assert model.config.in_channels == vae.config.embed_dim


@pytest.mark.parametrize("part", ["generator", "optimiser", "average"])
def test_training_needs_all_of_its_state(tmp_path: Path, part: str) -> None:
    recipe = runpy.run_path(str(RECIPE))
    settings, made, state = recipe["Settings"](**toy()), tmp_path / "made", tmp_path / "state"
    recipe["train"](settings, made, state)
    whole = torch.load(state / "denoiser.pt")
    (state / "denoiser.pt").unlink()
    recipe["train"](settings, made, state, {"denoiser": 0})
    first = torch.load(state / "denoiser.pt")
    (state / "denoiser.pt").unlink()
    recipe["train"](settings, made, state, {"denoiser": 2})
    torch.save(torch.load(state / "denoiser.pt") | {part: first[part]}, state / "denoiser.pt")
    recipe["train"](settings, made, state)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.load(state / "denoiser.pt")["average"], whole["average"], rtol=0, atol=0)


def test_a_state_of_another_length_is_refused(tmp_path: Path) -> None:
    recipe = runpy.run_path(str(RECIPE))
    recipe["train"](recipe["Settings"](**toy(vae_steps=2, denoiser_steps=2)), tmp_path / "made", tmp_path / "state")
    with pytest.raises(SystemExit, match="is of 2 steps, expected 3"):
        recipe["train"](recipe["Settings"](**toy(vae_steps=3)), tmp_path / "made", tmp_path / "state")
