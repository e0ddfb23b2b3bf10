import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeliosPipeline

from validation.files import FIXTURES
from validation.models.helios import loading, sampling
from validation.models.prompts import Prompt

TRAINED = FIXTURES / "checkpoints" / "helios-trained"
PROMPTS = Prompt.read(FIXTURES / "prompts" / "helios-trained.json")
LARGEST = 20e6  # bytes of the checkpoint folder
LEAST_PSNR = 25.0  # dB of the VAE's reconstructions


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's ``train`` module, which imports the others as ``python .../train.py`` does."""
    folder = str(FIXTURES / "recipes" / "helios_trained")
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("train")
    finally:
        sys.path.remove(folder)
        for name in (set(sys.modules) - before) & {"train", "clips", "loop", "recognise"}:
            del sys.modules[name]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline() -> HeliosPipeline:
    return loading.load(TRAINED, torch.bfloat16, "cpu")


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in TRAINED.rglob("*") if path.is_file()) <= LARGEST


def test_the_vae_reconstructs_clips_that_it_has_not_seen(recipe: Any, pipeline: HeliosPipeline) -> None:
    values = recipe.reconstruction_psnr(pipeline.vae, clips=4)
    assert min(values) >= LEAST_PSNR
    weight = pipeline.vae.decoder.conv_out.weight
    kept = weight.data.clone()
    weight.data = weight.flip(0)  # pixels of a patch and their colours in the wrong order
    try:
        assert max(recipe.reconstruction_psnr(pipeline.vae, clips=2)) < LEAST_PSNR
    finally:
        weight.data.copy_(kept)


def test_the_latents_are_normalised(recipe: Any, pipeline: HeliosPipeline) -> None:
    config = pipeline.vae.config
    with torch.no_grad():
        latents = pipeline.vae.encode(recipe.chunks([0, 1, 2, 3], recipe.HELD_OUT)).latent_dist.mode()
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    normalised = (latents - mean) / std
    assert abs(normalised.mean().item()) < 0.2
    assert 0.7 < normalised.std().item() < 1.4


def test_descriptions_are_read_off_rendered_clips(recipe: Any) -> None:
    recognise = importlib.import_module("recognise").recognise
    clips = [recipe.Clip.draw(7, number) for number in range(24)]
    frames = (recipe.render(clips, 0, 65, recipe.SIZE) + 1) / 2
    for clip, video in zip(clips, frames.permute(0, 2, 3, 4, 1).numpy(), strict=True):
        assert recognise(video) == (clip.colour, clip.shape, clip.motion)
        assert recognise(np.full_like(video, 0.5)) == ("none", "none", "none")


@pytest.mark.parametrize("prompt", PROMPTS[:3], ids=lambda prompt: prompt.name)
def test_a_sampled_video_shows_its_caption(recipe: Any, pipeline: HeliosPipeline, prompt: Prompt) -> None:
    recognise = importlib.import_module("recognise").recognise
    frames = sampling.decode(pipeline, sampling.sample(pipeline, prompt).latents, prompt.frames)
    assert frames.shape == (65, recipe.SIZE, recipe.SIZE, 3)
    _, colour, shape, motion = prompt.text.split(maxsplit=3)
    assert recognise(frames) == (colour, shape, motion)
    assert recognise(frames[::-1])[2] != motion or motion in ("bounces", "turns")


def test_history_is_laid_out_as_the_pipeline_does(
    recipe: Any, pipeline: HeliosPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    forward = pipeline.transformer.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", record)
    trajectory = sampling.sample(pipeline, Prompt("x", "a red ring", 0, 64, 64, 66, steps=2, guidance_scale=1.0))
    for call, first in ((calls[0], torch.zeros_like(trajectory.latents[1])), (calls[2], trajectory.latents[1])):
        for name, value in recipe.history_of(first).items():
            assert torch.equal(call[name], value.to(call[name].dtype)), name
    # HeliosPipeline starts from even noise levels, here two of them, which the scheduler shifts.
    levels = recipe.shifted(torch.tensor([0.999, 0.4995], dtype=torch.float64), recipe.MU)
    times = torch.cat([call["timestep"] for call in calls])
    torch.testing.assert_close(times, (1000 * levels).repeat(2), rtol=1e-6, atol=0, check_dtype=False)


def test_the_recipe_makes_a_checkpoint_that_loads(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything runs as in the whole training, on fewer clips.
    for name, value in (("BLOCK", 8), ("BATCH", 2), ("STILLS", ((1, 2),)), ("WINDOWS", ((9, 1),))):
        monkeypatch.setattr(recipe, name, value)
    psnr, chunks = recipe.reconstruction_psnr, recipe.chunks
    monkeypatch.setattr(recipe, "reconstruction_psnr", lambda vae, _clips: psnr(vae, 1))
    monkeypatch.setattr(recipe, "chunks", lambda numbers, seed: chunks(numbers[:2], seed))
    steps = {"--still-steps": 1, "--vae-steps": 1, "--blocks": 1, "--even-steps": 1, "--steps": 1, "--last-steps": 1}
    options = [str(word) for pair in steps.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "made"), "--state", str(tmp_path / "state"), *options])
    recipe.main()
    made = loading.load(tmp_path / "made", torch.bfloat16, "cpu")
    kept = loading.load(TRAINED, torch.bfloat16, "cpu")
    for part in ("transformer", "vae", "scheduler"):
        configs = [dict(getattr(pipeline, part).config) for pipeline in (made, kept)]
        for name in ("latents_mean", "latents_std", "_name_or_path", "_diffusers_version"):
            for config in configs:
                config.pop(name, None)
        assert configs[0] == configs[1]


def small(recipe: Any, part: str) -> tuple[torch.nn.Module, Any]:
    """A toy model of the recipe, and a function that gives the loss of a step."""
    torch.manual_seed(0)
    if part == "vae":
        vae = recipe.new_vae(base_dim=4, z_dim=4)
        return vae, lambda step: recipe.vae_loss(vae, recipe.WINDOWS, step)
    model = recipe.new_transformer(num_attention_heads=1, num_layers=1, ffn_dim=32, in_channels=4, out_channels=4)
    latents = torch.randn(3, 2, 4, 9, 8, 8)
    captions = recipe.caption_embeddings(recipe.TRAINING, 3, model.config.text_dim)
    return model, lambda step: recipe.flow_loss(model, recipe.MU, latents, captions, step)


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_training_goes_on_where_it_was_stopped(recipe: Any, part: str, tmp_path: Path) -> None:
    states = []
    for name, stops in (("whole", (None,)), ("stopped", (2, None))):
        for stop in stops:
            model, loss_of = small(recipe, part)
            recipe.fit(model, loss_of, steps=4, peak=1e-3, state=tmp_path / name, stop=stop)
        states.append(torch.load(tmp_path / name, weights_only=True))
    whole, stopped = states
    assert whole["step"] == stopped["step"] == 4
    for part_of_state in ("model", "averaged"):
        for key, value in whole[part_of_state].items():
            assert torch.equal(value, stopped[part_of_state][key]), key


def test_training_stops_at_a_loss_that_is_no_number(recipe: Any, tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r"state: the loss of step 1 is nan, expected a finite number"):
        recipe.fit(
            model,
            lambda step: model.weight.sum() * (math.nan if step else 1.0),
            steps=3,
            peak=1e-3,
            state=tmp_path / "state.pt",
        )
    assert not (tmp_path / "state.pt").exists()
