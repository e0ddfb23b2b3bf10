"""Hunyuan3D-2's shape model as a `validation.samples.model.Model`."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from validation.device import Device
from validation.errors import UsageError
from validation.files import FIXTURES, hash_files
from validation.media import video
from validation.media.grid import RESOLUTION
from validation.media.mesh import extract, write_mesh
from validation.media.render import Camera, render, turntable
from validation.models.hunyuan3d import OPTIONS, dit, loading, parts, rungs, sampling, sites
from validation.models.hunyuan3d.denoiser import Hunyuan3DDenoiser
from validation.models.hunyuan3d.dinov2 import ImagePrompt
from validation.models.hunyuan3d.field import sample_field
from validation.models.hunyuan3d.sampling import Prompt, ShapePipeline
from validation.models.hunyuan3d.shapes import ShapePrompt
from validation.models.mount import Mount, Site, SiteCall
from validation.ops import OpSet
from validation.samples.meshes import Mesh
from validation.samples.model import Model
from validation.samples.request import Progress, silent
from validation.samples.rung import Kept, Player, Sample
from validation.verdict import Numbers

CAMERAS = FIXTURES / "cameras" / "views.json"

# Defaults for a picture, which are the official pipeline's.
STEPS, GUIDANCE = 50, 5.0

TURNTABLE_FRAMES, TURNTABLE_SIZE = 24, 192
PANE = 256  # pixels: reference, candidate and difference are shown side by side
VIEW_KINDS = ("shaded", "normals")  # the kinds that are kept


class Hunyuan3D(Model[Prompt]):
    """A checkpoint: the denoiser in float16, as in production, the decoder in float32.

    Attributes:
        parts: where the checkpoint's parts are.
        packed: whether the q/k norm works on the packed projection.
        cameras: cameras of the views.
        pipeline: the loaded parts.
    """

    name = "hunyuan3d"
    dtype = sampling.DTYPE
    rungs = (rungs.Field(), Mesh(), rungs.Views())
    default_checkpoint = FIXTURES / "checkpoints" / "hunyuan3d-trained"
    denoiser = Hunyuan3DDenoiser
    options = OPTIONS
    prompt_type = ShapePrompt

    parts: parts.Parts
    packed: bool
    pipeline: ShapePipeline

    @classmethod
    def ops(cls) -> frozenset[str]:
        """See `Model.ops`."""
        return frozenset(site.op for site in sites.sites_of({}))

    def choose_sites(self, ops: OpSet, names: Sequence[str] | None) -> tuple[Site, ...]:
        """See `Model.choose_sites`; ``packed_qk_norm`` is the site ``qk_norm`` in another form."""
        resolution = self.own("octree_resolution")
        if resolution is not None and resolution < 1:
            raise UsageError(f"--octree-resolution: {resolution}, expected an integer >= 1")
        self.parts = parts.find_parts(self.checkpoint, self.own("image_encoder"))
        self.cameras = Camera.read(CAMERAS)
        chosen, self.packed = parts.choose_sites(self.parts, ops, names)
        return chosen

    def read_prompts(self, path: Path | None) -> Sequence[Prompt]:
        """Read formulas, or the given pictures if the checkpoint has an image encoder."""
        images, resolution = self.own("image"), self.own("octree_resolution")
        if self.parts.encoder is None:
            if images:
                raise UsageError("--image: the checkpoint has no image encoder, expected one (or --image-encoder)")
            shapes = super().read_prompts(path)
            if resolution is None:
                return shapes
            return [dataclasses.replace(prompt, octree_resolution=resolution) for prompt in shapes]
        name = self.parts.denoiser.name
        if path is not None:
            raise UsageError(f"--prompts: {name} makes shapes of pictures, expected --image")
        if not images:
            raise UsageError(f"--image: none given, expected a picture: {name} has an image encoder")
        return [
            ImagePrompt.read(image, steps=STEPS, guidance_scale=GUIDANCE, octree_resolution=resolution or RESOLUTION)
            for image in images
        ]

    def check_prompts(self) -> None:
        """Raise UsageError if the schedule does not allow a prompt's number of steps."""
        schedule = loading.load_schedule(self.parts.denoiser)
        for prompt in self.prompts:
            try:
                schedule.sigmas(prompt.steps)
            except ValueError as error:
                raise UsageError(f"prompt {prompt.name}: {error}") from error

    @property
    def site_names(self) -> list[str]:
        """See `Model.site_names`."""
        return [sites.PACKED if site.name == "qk_norm" and self.packed else site.name for site in self.sites]

    def load(self, device: Device) -> None:
        """See `Model.load`; every prompt is conditioned once."""
        self.pipeline = sampling.load(self.parts, device.torch, packed_qk_norm=self.packed)
        self.device = self.pipeline.device
        for prompt in self.prompts:
            self.pipeline.condition(prompt)

    def identity(self) -> dict[str, Any]:
        """The checkpoint's content. Both forms of the q/k norm, on copies and packed, have the same truth."""
        kinds = (".json", ".yaml", ".safetensors")
        files = [file for folder in self.parts.folders for file in sorted(folder.iterdir()) if file.suffix in kinds]
        return {"checkpoint": hash_files(files)}

    def finish_identity(self) -> dict[str, Any]:
        """The cameras."""
        return {"cameras": [dataclasses.asdict(camera) for camera in self.cameras]}

    def mount(self, ops: OpSet) -> Mount:
        """See `Model.mount`."""
        return dit.mount(self.pipeline.denoiser, ops, [site.name for site in self.sites])

    def place_of(self, call: SiteCall) -> str:
        """See `sites.place_of`."""
        return sites.place_of(call, self.pipeline.denoiser.config.depth)

    def latents(self, prompt: Prompt, mounted: Mount, progress: Progress = silent) -> Sample:
        """See `sampling.sample_prompt`."""
        latents, seconds = sampling.sample_prompt(self.pipeline, prompt, mounted, progress)
        return Sample(latents, seconds=seconds)

    def make(
        self, rung: str, sample: Sample, made: Mapping[str, Any], prompt: Prompt, progress: Progress = silent
    ) -> Any:
        """Make the field, the mesh or the views."""
        with rungs.named():
            if rung == "field":
                return sample_field(self.pipeline.vae, sample.latents[-1], prompt.octree_resolution, progress=progress)
            return extract(made["field"]) if rung == "mesh" else render(made["mesh"], self.cameras)

    def case(self, prompt: Prompt, _reference: Sample | None) -> dict[str, Any]:
        """The grid, where the sample ends, and the cameras."""
        case = {"octree_resolution": prompt.octree_resolution, "until": self.until}
        return case | ({"cameras": [camera.name for camera in self.cameras]} if self.until == "views" else {})

    def title(self, case: Mapping[str, Any]) -> str:
        """The grid, and where the sample ends."""
        return f"octree resolution {case['octree_resolution']}, until {case['until']}"

    def keep(self, samples: Mapping[str, Sample], prompt: Prompt, folder: Path) -> Kept:
        """Write each arm's latents, mesh, views and turntable; if there is no mesh, the field instead."""
        start = time.perf_counter()
        relative = Path("artifacts") / f"{self.name}-{prompt.name}-{prompt.seed}"
        artifacts: dict[str, str] = {}

        def path_of(role: str, suffix: str) -> Path:
            artifacts[role] = (relative / f"{role}{suffix}").as_posix()
            return folder / artifacts[role]

        for arm, sample in samples.items():
            made = sample.made
            arrays: dict[str, npt.NDArray[Any]] = {"latents": sample.latents[-1].float().numpy()}
            if "mesh" not in made and "field" in made:
                arrays["field"] = made["field"]
            _write_arrays(path_of(f"{arm}_shape", ".npz"), arrays)
            if "mesh" in made:
                write_mesh(path_of(f"{arm}_mesh", ".glb"), made["mesh"])
            if "views" in made:
                frames = np.concatenate([made["views"].shaded, made["views"].normal])
                video.write_video(path_of(f"{arm}_views", ".npz"), video.to_uint8(frames))
                camera = dataclasses.replace(self.cameras[0], height=TURNTABLE_SIZE, width=TURNTABLE_SIZE)
                around = video.to_uint8(turntable(made["mesh"], camera, TURNTABLE_FRAMES))
                video.write_video(path_of(f"{arm}_turntable", ".npz"), around)
                video.write_video(path_of(f"{arm}_turntable_mp4", ".mp4"), around)
        return Kept(artifacts, seconds={"save": time.perf_counter() - start})

    def players(self, _prompt: Prompt, numbers: Numbers) -> list[Player]:
        """Players for the views and the turntable."""
        if self.until != "views":
            return []
        names = [camera.name for camera in self.cameras]
        worst = numbers.get("shaded_worst_view")
        return [
            Player(
                "views",
                "view",
                1.0,
                PANE,
                [f"{name}, {kind}" for kind in VIEW_KINDS for name in names],
                names.index(str(worst)) if worst in names else None,
            ),
            Player("turntable", "frame", 8.0, PANE, [f"turntable, frame {n}" for n in range(TURNTABLE_FRAMES)]),
        ]


def _write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a writable folder") from error


MODEL = Hunyuan3D
