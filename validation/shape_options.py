"""The options of sampled shapes alone."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Self

from validation.options import Option

COMMANDS, GROUP = ("quality", "pytest"), "with --model hunyuan3d"

OPTIONS = (
    Option(
        "image",
        "picture to make a shape of, background removed (alpha 0)",
        COMMANDS,
        type=Path,
        metavar="FILE",
        repeated=True,
        group=GROUP,
    ),
    Option(
        "until", "end with the shape, the mesh or the views", COMMANDS, default="views", metavar="RUNG", group=GROUP
    ),
    Option(
        "image-encoder",
        "DINOv2 as transformers saves it (default: the checkpoint's)",
        COMMANDS,
        type=Path,
        metavar="DIR",
        group=GROUP,
    ),
    Option(
        "steps",
        "denoising steps (default: the prompt's; 50 for a picture)",
        COMMANDS,
        type=int,
        metavar="N",
        group=GROUP,
    ),
    Option(
        "guidance",
        "guidance scale (default: the prompt's; 5 for a picture)",
        COMMANDS,
        type=float,
        metavar="X",
        group=GROUP,
    ),
    Option(
        "octree-resolution",
        "cells along the grid's edge (default: the prompt's; 384 for a picture)",
        COMMANDS,
        type=int,
        metavar="N",
        group=GROUP,
    ),
    Option("seeds", "seeds of each prompt", COMMANDS, type=int, default=1, metavar="N", group=GROUP),
)


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
    def read(cls, options: argparse.Namespace) -> Self:
        """From the options of a session."""
        values = {option.key: getattr(options, option.key) for option in OPTIONS}
        return cls(images=tuple(values.pop("image")), **values)

    def words(self) -> list[str]:
        """As a command line has them; none that is the default."""
        given = [(option, value) for option in OPTIONS if (value := self.values()[option.key]) != option.unset]
        return [word for option, value in given for word in option.words(value)]

    def values(self) -> dict[str, Any]:
        """The values, by the option's key."""
        return {option.key: getattr(self, option.key, list(self.images)) for option in OPTIONS}
