"""Helios as a `validation.samples.model.Model`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from validation.device import Device
from validation.files import FIXTURES, hash_files
from validation.media import metrics, video
from validation.models.helios import loading, sampling, sites
from validation.models.helios.denoiser import HeliosDenoiser
from validation.models.mount import Mount, Site, SiteCall
from validation.models.prompts import Prompt, embed_prompt
from validation.ops import OpSet, load_op_set
from validation.samples.frames import Frames
from validation.samples.model import Model
from validation.samples.request import LATENTS, Progress, silent
from validation.samples.rung import Kept, Player, Sample
from validation.verdict import Numbers, Series

_PARTS = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")


class Helios(Model[Prompt]):
    """A Helios checkpoint: the transformer in bfloat16, as in production, the VAE in float32."""

    name = "helios"
    dtype = torch.bfloat16
    rungs = (Frames(),)
    default_checkpoint = FIXTURES / "checkpoints" / "helios-trained"
    prompt_type = Prompt
    gates_key = "floors"
    beside_replays = None
    denoiser = HeliosDenoiser

    pipeline: Any

    @classmethod
    def ops(cls) -> frozenset[str]:
        """See `Model.ops`."""
        return frozenset(site.op for site in sites.sites_of({}))

    def choose_sites(self, ops: OpSet, names: Sequence[str] | None) -> tuple[Site, ...]:
        """See `Model.choose_sites`."""
        return loading.check(self.checkpoint, ops, names)

    def check_prompts(self) -> None:
        """Raise UsageError if the checkpoint's pipeline cannot sample a prompt, or nothing can embed it."""
        loading.check_prompts(self.checkpoint, self.prompts)
        if not (self.checkpoint / "text_encoder").is_dir():
            for text in {text for prompt in self.prompts for text in (prompt.text, prompt.negative_text)}:
                embed_prompt(text, 1)

    def load(self, device: Device) -> None:
        """See `Model.load`; a test mount proves that diffusers computes the code that sites replace."""
        self.pipeline = loading.load(self.checkpoint, self.dtype, device.torch)
        self.device = self.pipeline.transformer.device
        self.mount(load_op_set("reference_ops")).unmount()

    def identity(self) -> dict[str, Any]:
        """The checkpoint's content and the version of diffusers."""
        parts = [self.checkpoint / part for part in _PARTS]
        return {
            "checkpoint": hash_files([part for part in parts if part.is_dir()]),
            "diffusers": diffusers.__version__,
        }

    def mount(self, ops: OpSet) -> Mount:
        """See `Model.mount`."""
        return sites.mount(self.pipeline.transformer, ops, self.site_names)

    def steps(self, prompt: Prompt) -> int:
        """Steps of all chunks, and of all stages of a pyramid."""
        return sampling.steps_of(self.pipeline, prompt)

    def forwards_per_step(self, prompt: Prompt) -> int:
        """Two for a guided prompt (with and without the prompt), else one."""
        return sampling.forwards_per_step(prompt)

    def place_of(self, call: SiteCall) -> str:
        """See `sites.place_of`."""
        return sites.place_of(call)

    def latents(self, prompt: Prompt, mounted: Mount, progress: Progress = silent) -> Sample:
        """See `sampling.sample`."""
        return sampling.sample(self.pipeline, prompt, mounted, progress)

    def make(
        self, _rung: str, sample: Sample, _made: Mapping[str, Any], prompt: Prompt, _progress: Progress = silent
    ) -> sampling.Frames:
        """The frames; see `sampling.decode`."""
        return sampling.decode(self.pipeline, sample.latents, prompt.frames)

    def case(self, prompt: Prompt, reference: Sample | None) -> dict[str, Any]:
        """Size and actual number of frames."""
        frames = prompt.frames if reference is None else len(reference.made.get("frames", range(prompt.frames)))
        ends = {"until": LATENTS} if self.until == LATENTS else {}
        return {"size": [prompt.height, prompt.width], "frames": frames, **ends}

    def title(self, case: Mapping[str, Any]) -> str:
        """Number and size of frames."""
        height, width = case["size"]
        return f"{case['frames']} frames of {height} x {width}"

    def keep(self, samples: Mapping[str, Sample], prompt: Prompt, folder: Path) -> Kept:
        """Write each arm's frames and a preview, and their amplified difference if they can be subtracted."""
        relative = Path("artifacts") / f"{self.name}-{prompt.name}-{prompt.seed}"
        frames = {arm: sample.made["frames"] for arm, sample in samples.items() if "frames" in sample.made}
        shown = {arm: video.to_uint8(of) for arm, of in frames.items()}
        numbers: Numbers = {}
        if len(frames) == 2 and frames["reference"].shape == frames["candidate"].shape:
            difference = video.difference(frames["reference"], frames["candidate"])
            shown["difference"], numbers["difference_factor"] = difference
        artifacts, seconds = {}, {}
        for name, of in shown.items():
            start = time.perf_counter()
            for role, suffix in ((f"{name}_frames", ".npz"), (f"{name}_mp4", ".mp4")):
                path = relative / f"{name}{suffix}"
                video.write_video(folder / path, of, prompt.fps)
                artifacts[role] = path.as_posix()
            seconds[f"{name}_save"] = time.perf_counter() - start
        return Kept(artifacts, numbers, seconds)

    def players(self, prompt: Prompt, numbers: Numbers) -> list[Player]:
        """One player, for the frames."""
        worst = numbers.get("worst_frame")
        if self.until == LATENTS:
            return []
        return [Player("frames", "frame", float(prompt.fps), worst=worst if isinstance(worst, int) else None)]

    def beside(self, truth: Sample, sample: Sample) -> list[float]:
        """PSNR of each frame to the truth's, dB; inf if identical."""
        pairs = zip(truth.made["frames"], sample.made["frames"], strict=True)
        return [metrics.psnr(a[None], b[None], 1.0) for a, b in pairs]

    def beside_record(self, arms: Mapping[str, list[float]], replays: Sequence[list[float]]) -> tuple[Numbers, Series]:
        """The PSNR of each frame as series; see `Model.beside_record`."""
        series = {f"{arm}_psnr_to_truth_per_frame": row for arm, row in arms.items()}
        if replays:
            columns = list(zip(*replays, strict=True))
            series["lossless_band_psnr_to_truth_least_per_frame"] = [min(column) for column in columns]
            series["lossless_band_psnr_to_truth_greatest_per_frame"] = [max(column) for column in columns]
        return {}, series


MODEL = Helios
