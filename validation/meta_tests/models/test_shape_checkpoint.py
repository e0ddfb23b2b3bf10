"""Shapes of pictures: small checkpoints in the official layout, with DINOv2 as transformers saves it."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from validation import cli
from validation.drift import band
from validation.errors import UsageError
from validation.meta_tests.sampled_models import SHAPE_PROMPTS as PROMPTS
from validation.meta_tests.sampled_models import SHAPES_TRAINED as TRAINED
from validation.models.hunyuan3d import dit, parts, sampling, sites
from validation.models.hunyuan3d.dinov2 import MEAN, STD, ImagePrompt, load_image_encoder, prepare_image
from validation.models.hunyuan3d.flow_matching import ConsistencyFlowMatchEuler
from validation.models.hunyuan3d.shapes import ShapePrompt
from validation.ops import load_op_set
from validation.record import Record, read_run
from validation.verdict import Status

DINO = Dinov2Config(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=1
)
TOKENS = 1 + 3 * 3

DENOISER, VAE = (TRAINED / name for name in ("hunyuan3d-dit-v2-0", "hunyuan3d-vae-v2-0"))


@pytest.fixture(scope="module")
def encoder() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(DINO).eval()


@pytest.fixture(scope="module")
def transformers_folder(encoder: Dinov2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("dinov2")
    encoder.save_pretrained(folder)
    processor = {"image_processor_type": "BitImageProcessor", "image_mean": list(MEAN), "image_std": list(STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def official_folder(transformers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the whole pipeline, as ``hunyuan3d-dit-v2-0`` is: denoiser, decoder, conditioner, scheduler."""
    folder: Path = tmp_path_factory.mktemp("checkpoint") / "hunyuan3d-dit-v2-0"
    folder.mkdir()
    config = yaml.safe_load((DENOISER / "config.yaml").read_text())
    config["vae"] = yaml.safe_load((VAE / "config.yaml").read_text())
    plain = {key: value for key, value in DINO.to_dict().items() if isinstance(value, (bool, int, float, str))}
    main = {"type": "DinoImageEncoder", "kwargs": {"config": plain, "image_size": 42}}
    config["conditioner"] = {"target": "SingleImageEncoder", "params": {"main_image_encoder": main}}
    config["image_processor"] = {"target": "ImageProcessorV2", "params": {"size": 64, "border_ratio": 0.15}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    weights = load_file(DENOISER / "model.fp16.safetensors")
    weights |= {f"vae.{key}": value for key, value in load_file(VAE / "model.fp16.safetensors").items()}
    # transformers saves under the names of the official file.
    prefix = "conditioner.main_image_encoder.model."
    weights |= {
        prefix + key: value.half() for key, value in load_file(transformers_folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.fp16.safetensors")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red bar, 10 columns wide and 30 rows high, on transparent black, off the middle."""
    pixels = np.zeros((60, 40, 4), np.uint8)
    pixels[5:35, 3:13] = (200, 30, 10, 255)
    path = tmp_path / "Red Bar.png"
    Image.fromarray(pixels).save(path)
    return path


# Pictures


def extent(image: Tensor) -> tuple[int, int, int, int]:
    """First and last row and column that are not white."""
    rows, columns = (image[0].amin(dim=0) < 0.5).nonzero(as_tuple=True)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def test_the_subject_is_centred_on_white(picture: Path) -> None:
    image = prepare_image(picture)
    assert image.shape == (1, 3, 512, 512)
    top, bottom, left, right = extent(image)
    # 85 % of the edge of 60 pixels, which becomes 512; the bar is a third as wide as it is high.
    assert bottom - top + 1 == pytest.approx(0.85 * 512, abs=4)
    assert right - left + 1 == pytest.approx(0.85 * 512 * 9 / 29, abs=12)
    assert abs(top + bottom - 511) <= 12
    assert abs(left + right - 511) <= 12
    assert torch.equal(image[0, :, 0, 0], torch.ones(3))
    torch.testing.assert_close(image[0, :, 256, 256], torch.tensor([200, 30, 10]) / 255, atol=0.01, rtol=0)


def test_half_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[..., 3] = 127
    path = tmp_path / "grey.png"
    Image.fromarray(pixels).save(path)
    value = float(prepare_image(path)[0, 0, 256, 256])
    assert value == pytest.approx(1 - 127 / 255, abs=0.01)


def test_a_picture_without_alpha_is_all_subject(tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.fromarray(np.full((30, 30, 3), 40, np.uint8)).save(path)
    top, bottom, left, right = extent(prepare_image(path))
    assert bottom - top + 1 == pytest.approx(0.85 * 512, abs=12)
    assert right - left + 1 == pytest.approx(0.85 * 512, abs=12)


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_picture_without_a_subject_is_refused(alpha: int, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[3, :, 3] = alpha * 255  # a single row
    path = tmp_path / "empty.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(UsageError, match=f"no subject: {8 * alpha} of 64 pixels"):
        prepare_image(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "nowhere.png"):
        with pytest.raises(UsageError, match=f"cannot read .*{name}"):
            prepare_image(tmp_path / name)


def test_a_prompt_is_named_after_its_file(picture: Path) -> None:
    prompt = ImagePrompt.read(picture, steps=5, guidance_scale=5.0, octree_resolution=16)
    assert (prompt.name, prompt.text) == ("red-bar", "image Red Bar.png")
    assert len(prompt.digest) == 64


# The encoder


def test_both_layouts_give_the_same_tokens(transformers_folder: Path, official_folder: Path, picture: Path) -> None:
    first = load_image_encoder(transformers_folder, torch.float32, "cpu")
    second = load_image_encoder(official_folder, torch.float32, "cpu")
    assert (second.size, second.border, second.image_size) == (64, 0.15, 42)
    second.size = first.size
    tokens = first(picture)
    assert tokens.shape == (1, TOKENS, 64)
    # The official file holds float16.
    torch.testing.assert_close(second(picture), tokens, atol=2e-2, rtol=0)
    second.use_cls_token = False
    assert second(picture).shape == (1, TOKENS - 1, 64)


def test_the_encoder_gets_what_transformers_own_processor_would_give_it(
    transformers_folder: Path, encoder: Dinov2Model, picture: Path
) -> None:
    found = load_image_encoder(transformers_folder, torch.float32, "cpu")
    image = torch.nn.functional.interpolate(prepare_image(picture), (42, 42), mode="bilinear", antialias=True)
    pixels = (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(found(picture), encoder(pixels).last_hidden_state)


def damaged(folder: Path, tmp_path: Path, change: Any) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    change(copy)
    return copy


def without_a_key(folder: Path) -> None:
    weights = load_file(folder / "model.fp16.safetensors")
    weights.pop("conditioner.main_image_encoder.model.layernorm.weight")
    save_file(weights, folder / "model.fp16.safetensors")


def of_another_kind(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["conditioner"]["params"]["main_image_encoder"]["type"] = "CLIPImageEncoder"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_a_key, "1 missing keys of the image encoder"),
        (of_another_kind, "main_image_encoder is a CLIPImageEncoder"),
        (lambda folder: (folder / "model.fp16.safetensors").write_bytes(b"odd"), "cannot read"),
        (lambda folder: (folder / "model.fp16.safetensors").unlink(), "lacks model.fp16.safetensors"),
        (lambda folder: (folder / "config.yaml").write_text("model: {}"), "has no conditioner"),
    ],
)
def test_damaged_encoders_are_refused(official_folder: Path, tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_image_encoder(damaged(official_folder, tmp_path, change), torch.float32, "cpu")


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UsageError, match="model_type is 'clip', expected dinov2"):
        load_image_encoder(tmp_path, torch.float32, "cpu")


# A checkpoint's parts


def test_parts_are_found_from_either_folder(official_folder: Path, transformers_folder: Path) -> None:
    for folder in (official_folder, official_folder.parent):
        found = parts.find_parts(folder)
        assert (found.denoiser, found.vae, found.encoder) == (official_folder,) * 3
        assert found.folders == [official_folder]
    assert parts.find_parts(official_folder, transformers_folder).encoder == transformers_folder
    trained = parts.find_parts(TRAINED)
    assert (trained.vae.name, trained.encoder) == ("hunyuan3d-vae-v2-0", None)
    assert parts.find_parts(TRAINED / "hunyuan3d-dit-v2-0") == trained


# The command


def run(*arguments: object) -> int:
    return cli.main(["quality", "--model", "hunyuan3d", *map(str, arguments)])


def test_the_command_makes_shapes_of_a_picture(official_folder: Path, picture: Path, tmp_path: Path) -> None:
    what = ["--ops", "reference_ops", "--checkpoint", official_folder, "--image", picture, "--until", "field"]
    options = ["--steps", 2, "--guidance", 2, "--octree-resolution", 16, "--seeds", 2, "--replays", 0]
    words = [*what, *options, "--cache", tmp_path / "cache"]
    status = run(*words, "--out", tmp_path / "run")
    _, records = read_run(tmp_path / "run")
    assert status == cli.PASSED, [record.reason for record in records]
    assert [(record.case["prompt"], record.case["seed"]) for record in records] == [
        ("image Red Bar.png", 0),
        ("image Red Bar.png", 1),
    ]
    for record in records:
        check_image_record(record)
    assert f"--image '{picture}'" in records[0].repro
    # pytest takes the same words with its prefix, to the same records.
    prefixed = [re.sub("^--", "--validate-", str(word)) for word in words]
    command = [sys.executable, "-m", "pytest", "-m", "quality", "validation/test_quality.py", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--validate-model", "hunyuan3d", *prefixed, "--validate-out", str(tmp_path / "pytest")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, again = read_run(tmp_path / "pytest")
    assert [(record.case, record.status, record.repro) for record in again] == [
        (record.case, record.status, record.repro) for record in records
    ]


def check_image_record(record: Record) -> None:
    assert (record.status, record.tier) == (Status.PASSED, "bit-exact")
    assert record.seconds["reference_condition"] > 1e-4
    assert (record.case["steps"], record.case["guidance_scale"]) == (2, 2.0)
    assert math.isfinite(float(record.numbers["field_rms"] or 0))


# The other official models


def turbo_folder(folder: Path) -> Path:
    """A folder like ``hunyuan3d-dit-v2-0-turbo``: the guidance is an input, few sigmas of a consistency schedule.

    It has the trained model's weights; those of the guidance are random.
    """
    config = yaml.safe_load((DENOISER / "config.yaml").read_text())
    config["model"]["params"]["guidance_embed"] = True
    config["scheduler"] = {
        "target": "hy3dgen.shapegen.schedulers.ConsistencyFlowMatchEulerDiscreteScheduler",
        "params": {"num_train_timesteps": 1000, "pcm_timesteps": 100},
    }
    weights = load_file(DENOISER / "model.fp16.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key in [key for key in weights if key.startswith("model.time_in.")]:
        drawn = torch.randn(weights[key].shape, generator=generator) * weights[key].float().std()
        weights[key.replace("time_in.", "guidance_in.")] = drawn.half()
    return write_model(folder / "hunyuan3d-dit-v2-0-turbo", config, weights)


def mini_folder(folder: Path) -> Path:
    """A folder like ``hunyuan3d-dit-v2-mini``: fewer blocks and fewer latents."""
    config = yaml.safe_load((DENOISER / "config.yaml").read_text())
    config["model"]["params"]["depth_single_blocks"] -= 1
    weights = load_file(DENOISER / "model.fp16.safetensors")
    last = f"model.single_blocks.{config['model']['params']['depth_single_blocks']}."
    kept = {key: value for key, value in weights.items() if not key.startswith(last)}
    vae = yaml.safe_load((VAE / "config.yaml").read_text())
    vae["params"]["num_latents"] //= 2
    write_model(folder / "hunyuan3d-vae-v2-mini", vae, load_file(VAE / "model.fp16.safetensors"))
    return write_model(folder / "hunyuan3d-dit-v2-mini", config, kept)


def write_model(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_file(weights, folder / "model.fp16.safetensors")
    return folder


def one_prompt(folder: Path) -> Path:
    content = json.loads(PROMPTS.read_text())
    path = folder / "prompts.json"
    path.write_text(json.dumps(content | {"prompts": content["prompts"][:1]}))
    return path


def sampled_by(folder: Path, out: Path, *options: object) -> list[Record]:
    words = ["--checkpoint", folder, "--octree-resolution", 16, "--until", "field", "--replays", 0, *options]
    status = run("--ops", "reference_ops", *words, "--cache", out / "cache", "--out", out)
    _, records = read_run(out)
    assert status == cli.PASSED, [record.reason for record in records]
    assert {(record.status, record.tier) for record in records} == {(Status.PASSED, "bit-exact")}
    return records


def test_a_turbo_checkpoint_takes_one_batch_item_a_step_and_its_guidance_as_an_input(tmp_path: Path) -> None:
    folder = turbo_folder(tmp_path)
    shutil.copytree(VAE, tmp_path / VAE.name)
    prompts = one_prompt(tmp_path)
    fields = []
    for guidance in (1, 5):
        out = tmp_path / f"guidance {guidance}"
        (record,) = sampled_by(folder, out, "--prompts", prompts, "--steps", 5, "--guidance", guidance)
        assert (record.numbers["forwards"], record.numbers["calls_norm_final"]) == (5, 5)
        assert record.case["guidance_scale"] == guidance
        with np.load(out / record.artifacts["candidate_shape"]) as arrays:
            fields.append(arrays["field"])
    assert np.abs(fields[0] - fields[1]).max() > 1e-3
    # It differs from what the other kind of model makes of the same noise.
    (plain,) = sampled_by(TRAINED, tmp_path / "plain", "--prompts", prompts, "--steps", 5, "--guidance", 5)
    with np.load(tmp_path / "plain" / plain.artifacts["candidate_shape"]) as arrays:
        assert np.abs(arrays["field"] - fields[1]).max() > 1e-3


def test_fused_ops_pass_on_a_turbo_checkpoint(tmp_path: Path) -> None:
    """With a batch of one, which no other sampled model has."""
    pipeline = sampling.load(dataclasses.replace(parts.find_parts(TRAINED), denoiser=turbo_folder(tmp_path)), "cpu")
    assert isinstance(pipeline.schedule, ConsistencyFlowMatchEuler)
    prompt = dataclasses.replace(ShapePrompt.read(PROMPTS)[0], steps=1, octree_resolution=16)
    arms = []
    for name in ("reference_ops", "fused_ops"):
        with dit.mount(pipeline.denoiser, load_op_set(name), sites.SITE_NAMES) as mounted:
            arms.append(sampling.sample_prompt(pipeline, prompt, mounted)[0])
        assert mounted.calls["qk_norm"] == 7
    distance = band.distance(arms[1][-1], arms[0][-1])
    assert 0 < distance < 2e-3


def test_a_turbo_checkpoint_refuses_more_steps_than_it_was_distilled_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = turbo_folder(tmp_path)
    shutil.copytree(VAE, tmp_path / VAE.name)
    assert run("--checkpoint", folder, "--steps", 101, "--out", tmp_path / "run") == cli.USAGE
    assert "steps is 101, expected at most 100, the distilled noise levels" in capsys.readouterr().err


def test_a_mini_checkpoint_has_fewer_blocks_and_latents(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    prompts = one_prompt(tmp_path)
    (record,) = sampled_by(tmp_path, tmp_path / "run", "--prompts", prompts, "--steps", 4)
    assert record.numbers["calls_pre_norm"] == 4 * 2
    with np.load(tmp_path / "run" / record.artifacts["candidate_shape"]) as arrays:
        assert arrays["latents"].shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--image: none given, expected a picture"),
        (["--image", "nowhere.png"], "cannot read nowhere.png"),
        (["--prompts", "prompts.json"], "--prompts: hunyuan3d-dit-v2-0 makes shapes of pictures"),
    ],
)
def test_the_command_refuses_what_does_not_fit_the_checkpoint(
    official_folder: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--ops", "reference_ops", "--checkpoint", official_folder, *options) == cli.USAGE
    assert says in capsys.readouterr().err


def test_tokens_of_another_width_are_refused(
    official_folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Dinov2Model(Dinov2Config.from_dict({**DINO.to_dict(), "hidden_size": 32})).save_pretrained(tmp_path / "narrow")
    options = ["--image", picture, "--image-encoder", tmp_path / "narrow", "--cache", tmp_path / "cache"]
    assert (
        run("--ops", "reference_ops", "--checkpoint", official_folder, *options, "--out", tmp_path / "r") == cli.USAGE
    )
    assert "tokens are 32 wide, expected 64" in capsys.readouterr().err
