"""The options of sampled shapes alone: on the command line, in pytest, and as they are passed on."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
    """Options of ``--model hunyuan3d`` alone, as given; None leaves a number to the prompt.

    Attributes:
        until: where an arm ends: ``shape`` (the decoded field), ``mesh`` or ``views``.
        images: pictures to make shapes of.
        image_encoder: folder of DINOv2, or None for the checkpoint's own.
        steps: denoising steps. guidance: the guidance scale.
        octree_resolution: cells along an edge of the grid.
        seeds: how many seeds each prompt gets, from its own on.
    """

    until: str = "views"
    images: tuple[Path, ...] = ()
    image_encoder: Path | None = None
    steps: int | None = None
    guidance: float | None = None
    octree_resolution: int | None = None
    seeds: int = 1

    @classmethod
    def read(cls, arguments: argparse.Namespace) -> Self:
        """From parsed arguments, see `add_shape_options`."""
        return cls(
            until=arguments.until,
            images=tuple(arguments.image),
            image_encoder=arguments.image_encoder,
            steps=arguments.steps,
            guidance=arguments.guidance,
            octree_resolution=arguments.octree_resolution,
            seeds=arguments.seeds,
        )

    def words(self) -> list[str]:
        """As a command line has them; none that is the default."""
        words = [word for image in self.images for word in ("--image", str(image))]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "images" and value != field.default:
                words += [f"--{field.name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
        return words


def add_shape_options(add: Callable[..., Any]) -> None:
    """Add what `ShapeOptions.read` reads, by argparse's ``add_argument`` or pytest's ``addoption``."""
    add("--until", default="views", metavar="RUNG", help="end with the shape, the mesh or the views (default: views)")
    add(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="picture to make a shape of, background removed (alpha 0); may be repeated",
    )
    add("--image-encoder", type=Path, metavar="DIR", help="DINOv2 as transformers saves it (default: the checkpoint's)")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the prompt's; 50 for a picture)")
    add("--guidance", type=float, metavar="X", help="guidance scale (default: the prompt's; 5 for a picture)")
    add(
        "--octree-resolution",
        type=int,
        metavar="N",
        help="cells along the grid's edge (default: the prompt's; 384 for a picture)",
    )
    add("--seeds", type=int, default=1, metavar="N", help="seeds of each prompt (default: 1)")
