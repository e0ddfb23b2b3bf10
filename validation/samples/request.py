"""The request for a run over sampled output."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from validation import files
from validation.device import Device
from validation.errors import UsageError
from validation.files import default_folder

REPLAYS = 8

LATENTS = "latents"
"""``--until latents``: nothing is made of them."""

Progress = Callable[[str], None]


def silent(_text: str) -> None:
    """Discard a line of progress."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Settings of a run over sampled output.

    Attributes:
        device: where to sample.
        checkpoint: its folder; None is `Model.default_checkpoint`.
        sites: where to mount; None is every site whose op the set has.
        prompts: a JSON file of what to sample; None is the checkpoint's own among the fixtures.
        bounds: a JSON file for `validation.samples.gates.Gates.read`; None is the checkpoint's own among the
            fixtures, or else the model's.
        seed: added to the seed of each prompt. seeds: how many consecutive seeds each prompt gets, from its own on.
        steps, guidance: denoising steps and guidance scale instead of the prompts' own.
        until: where a sample ends: `LATENTS`, or a rung; None is the last rung.
        own: values of the model's own options that were given, by name.
        replays: legal replays of each kind for each prompt, at least 4; more are made if there are too few prompts
            for the test to reject. 0 leaves the drift out: only the gates are judged then.
        require: the tier that the drift is held to.
        cache: where the replays' distances and finished arms are kept; None is `validation.files.default_folder`.
        folder: the run folder, for the samples; None keeps none.
        repro: the command line that repeats the run, or "".
        progress: called with a line of text as the work goes on.
    """

    device: Device
    checkpoint: Path | None = None
    sites: Sequence[str] | None = None
    prompts: Path | None = None
    bounds: Path | None = None
    seed: int = 0
    seeds: int = 1
    steps: int | None = None
    guidance: float | None = None
    until: str | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replays: int = REPLAYS
    require: str = "lossless"
    cache: Path | None = None
    folder: Path | None = None
    repro: str = ""
    progress: Progress = silent

    @property
    def cache_folder(self) -> Path:
        """`cache`, or the user's default folder."""
        return self.cache or default_folder()

    @property
    def changes_prompts(self) -> bool:
        """Whether options change what the prompts ask for."""
        return self.steps is not None or self.guidance is not None or bool(self.own)

    def check_folders(self) -> None:
        """Raise UsageError if a folder that the run writes to is not writable."""
        for folder in (self.folder, self.cache_folder):
            if folder is not None:
                files.require_writable(folder)

    def check_numbers(self) -> None:
        """Raise UsageError naming the first number out of range."""
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps: {self.steps}, expected an integer >= 1")
        if self.seeds < 1:
            raise UsageError(f"--seeds: {self.seeds}, expected an integer >= 1")
        if self.guidance is not None and not 1 <= self.guidance < math.inf:
            raise UsageError(f"--guidance: {self.guidance}, expected a number of at least 1")
        if self.replays != 0 and self.replays < 4:
            raise UsageError(f"--replays: {self.replays}, expected at least 4, or 0 to leave the drift out")
