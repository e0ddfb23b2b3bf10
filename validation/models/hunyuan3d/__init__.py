"""Hunyuan3D-2's shape model, whose blocks look up the op of each site in a table.

sites          which op runs where; dit: the denoiser; flow_matching: its noise levels and steps
parts          the parts of a checkpoint; loading reads their configuration and weights
shapes, dinov2 the condition of a shape: a formula, or a picture
sampling       latents of a prompt; field (by shape_vae), mesh and views are made from them
rungs, model   implement `validation.samples.model`
"""

from pathlib import Path

from validation.option import Option

OPTIONS = (
    Option(
        "image", "picture to make a shape of, background removed (alpha 0)", type=Path, metavar="FILE", repeated=True
    ),
    Option("image-encoder", "DINOv2 as transformers saves it (default: the checkpoint's)", type=Path, metavar="DIR"),
    Option(
        "octree-resolution",
        "cells along the grid's edge (default: the prompt's; 384 for a picture)",
        type=int,
        metavar="N",
    ),
)
