"""The checkpoints that tests sample: those that are embedded, and one made of them."""

import runpy
import shutil
from pathlib import Path

import torch

from validation.files import FIXTURES

TINY = FIXTURES / "checkpoints" / "helios-tiny"  # random weights
HELIOS_TRAINED = FIXTURES / "checkpoints" / "helios-trained"
SHAPES_TRAINED = FIXTURES / "checkpoints" / "hunyuan3d-trained"
SHAPE_PROMPTS = FIXTURES / "prompts" / "hunyuan3d-trained.json"


def with_small_vae(folder: Path) -> Path:
    """Copy `TINY` to a folder, with a VAE of a few narrow layers: for tests that decode many videos to compare them."""
    from diffusers import AutoencoderKLWan

    shutil.copytree(TINY, folder)
    config = {**AutoencoderKLWan.load_config(folder / "vae"), "base_dim": 4, "num_res_blocks": 0}
    vae = AutoencoderKLWan.from_config({**config, "dim_mult": [1, 1, 1, 1]})
    recipe = runpy.run_path(str(FIXTURES / "recipes" / "helios_tiny.py"))
    with torch.no_grad():
        recipe["draw_vae"](vae, torch.Generator().manual_seed(2))
    vae.save_pretrained(folder / "vae")
    return folder
