"""Prompts: what to sample and how, and their embedding if a checkpoint has no text model."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor

from validation.errors import UsageError
from validation.samples.prompts import read_prompts

PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What to sample, and how.

    Attributes:
        name: short, for file names: lower-case letters, digits and hyphens.
        text: the caption. negative_text: what to guide away from.
        seed: of the noise.
        height, width: in pixels, multiples of 16.
        frames: the requested number; the pipeline rounds to chunks of 33 and then to 4 n + 1.
        steps: denoising steps of a chunk, or of each stage of a chunk if the model samples a pyramid.
        guidance_scale: classifier-free guidance; 1 is no guidance.
        fps: frames per second of the previews.
    """

    name: str
    text: str
    seed: int
    height: int
    width: int
    frames: int
    steps: int
    guidance_scale: float
    negative_text: str = ""
    fps: int = 16

    def __post_init__(self) -> None:
        """Raise a UsageError naming the first field with a wrong type or value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = {str: (str,), int: (int,), float: (int, float)}[cast("type", field.type)]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UsageError(f"prompt: {field.name} is {value!r}, expected {kinds[-1].__name__}")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise UsageError(f"prompt: name is {self.name!r}, expected lower-case letters, digits and hyphens")
        for name in ("height", "width"):
            if getattr(self, name) < 16 or getattr(self, name) % 16:
                raise UsageError(f"prompt {self.name}: {name} is {getattr(self, name)}, expected a multiple of 16")
        least = {"frames": 1, "steps": 1, "fps": 1, "guidance_scale": 1, "seed": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise UsageError(f"prompt {self.name}: {name} is {getattr(self, name)}, expected at least {value}")

    @classmethod
    def read(cls, path: Path) -> tuple[Self, ...]:
        """Read a JSON file: fields for all prompts at the top, each prompt's own under ``prompts``.

        Raises:
            UsageError: no such file, no JSON, an unknown or missing field, the same name and seed twice.
        """
        return read_prompts(cls, path)


def embed_prompt(text: str, width: int) -> Tensor:
    """An embedding of a short prompt without a text model, ``[1, PROMPT_TOKENS, width]`` float32.

    Token i is a word (lower case, split at white space; the end token last): the sum of two standard
    normal vectors over sqrt(2), one keyed by the word and one by i, so that the same word
    looks alike at every place and another order is another prompt. Rows after the last token are zero, as
    in Helios' padded text. Keys are hashed with SHA-256, so the vectors are the same everywhere.

    Raises:
        UsageError: more than `PROMPT_TOKENS` - 1 words.
    """
    words = [*text.lower().split(), "</s>"]
    if len(words) > PROMPT_TOKENS:
        raise UsageError(f"prompt {text!r} has {len(words) - 1} words, expected at most {PROMPT_TOKENS - 1}")

    rows = torch.zeros(1, PROMPT_TOKENS, width)
    for i, word in enumerate(words):
        rows[0, i] = (embed_key(f"word {word}", width) + embed_key(f"position {i}", width)) / 2**0.5
    return rows


def embed_key(key: str, width: int) -> Tensor:
    """A standard normal vector ``[width]``, float32, seeded by the key's SHA-256."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))
