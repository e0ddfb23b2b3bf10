"""Hunyuan3D-2's shape model as it is run: a checkpoint's parts, and one arm from condition to views, each stage timed.

The denoiser works in float16 and the decoder in float32, as in production. What a shape is conditioned on says the
checkpoint: DINOv2's tokens of a picture where it has an image encoder, otherwise the formula of
`validation.models.shapes`, as the small trained model has it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trimesh
from torch import Tensor

from validation.errors import UsageError
from validation.files import hash_files
from validation.media.field import Field, ShapeError, sample_field
from validation.media.mesh import extract, require_surface
from validation.media.render import Camera, Views, render
from validation.models import hunyuan3d
from validation.models.clock import Clock, peak_memory, reset_peak_memory
from validation.models.dinov2 import ImageEncoder, ImagePrompt, load_image_encoder
from validation.models.flow_matching import Schedule
from validation.models.mount import Site, select_sites
from validation.models.shape_vae import MEMORY_LIMIT, ShapeVAE
from validation.models.shapes import ShapePrompt, embed_shape
from validation.ops import OpSet

DTYPE = torch.float16
"""Of the denoiser and the image encoder."""

UNTIL = ("shape", "mesh", "views")
"""Where an arm may end: with the decoded field, with the mesh, with the rendered views."""

PACKED = "packed_qk_norm"
"""The site ``qk_norm`` with views of the packed projection, instead of contiguous copies of q and k."""

SITE_NAMES = (*hunyuan3d.SITE_NAMES, PACKED)

Prompt = ShapePrompt | ImagePrompt


Progress = Callable[[str], None]


def _nothing(_text: str) -> None:
    pass


# A checkpoint's parts


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of a checkpoint are.

    Attributes:
        denoiser: its folder, in the official layout.
        vae: the decoder's; may be the denoiser's.
        encoder: the image encoder's, official or as transformers saves it; None: conditioned on formulas.
    """

    denoiser: Path
    vae: Path
    encoder: Path | None

    @property
    def folders(self) -> list[Path]:
        """All of them, each once."""
        return list(dict.fromkeys(folder for folder in (self.denoiser, self.vae, self.encoder) if folder is not None))


def find_parts(checkpoint: Path, image_encoder: Path | None = None) -> Parts:
    """The parts of a checkpoint; no weights are read.

    Args:
        checkpoint: a denoiser's folder such as ``hunyuan3d-dit-v2-0``, or the folder around exactly one. The
            decoder is the denoiser's own or, where it has none, the only one among its siblings.
        image_encoder: DINOv2's folder; None is the denoiser's own ``conditioner``, if it has one.

    Raises:
        UsageError: no such folder or part, or several.
    """
    for option, folder in (("--checkpoint", checkpoint), ("--image-encoder", image_encoder)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{option}: no folder {folder}, expected a Hunyuan3D-2 checkpoint or a part of one")
    denoiser = _the_only(checkpoint, "a denoiser", "model")
    hunyuan3d.denoiser_params(denoiser)
    hunyuan3d.load_schedule(denoiser)
    own = hunyuan3d.read_config(denoiser)
    vae = denoiser if "vae" in own else _the_only(denoiser.parent, "a decoder (ShapeVAE)", "vae")
    if image_encoder is None and "conditioner" in own:
        image_encoder = denoiser
    return Parts(denoiser, vae, image_encoder)


def _the_only(folder: Path, what: str, section: str) -> Path:
    """The folder itself or the only one in it that has this part."""
    if section == "model" and (folder / "config.yaml").is_file():
        return folder
    found = [path.parent for path in sorted(folder.glob("*/config.yaml")) if _has(path.parent, section)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UsageError(f"{folder} holds {len(found)} folders with {what} ({names}), expected one")
    return found[0]


def _has(folder: Path, section: str) -> bool:
    config = hunyuan3d.read_config(folder)
    if section == "vae":
        # A decoder in a folder of its own: a denoiser's is used with that denoiser only.
        return str(config.get("target", "")).rpartition(".")[2] == "ShapeVAE"
    return section in config


def choose_sites(parts: Parts, ops: OpSet, names: Sequence[str] | None) -> tuple[tuple[Site, ...], bool]:
    """The sites to mount, and whether the q/k norm works on the packed projection; no weights are read.

    Raises:
        UsageError: as in `select_sites`, or both forms of the q/k norm.
    """
    packed = names is not None and PACKED in names
    if packed and names is not None:
        if "qk_norm" in names:
            raise UsageError(f"--sites: qk_norm and {PACKED} are one site in two forms, expected one of them")
        names = ["qk_norm" if name == PACKED else name for name in names]
    available = hunyuan3d.sites_of(hunyuan3d.denoiser_params(parts.denoiser))
    return select_sites(available, ops, names), packed


@dataclasses.dataclass
class ShapePipeline:
    """The loaded parts.

    Attributes:
        denoiser, vae, schedule: see `validation.models.hunyuan3d`.
        encoder: of pictures, or None.
        num_latents: that a shape has; what the decoder was trained with.
    """

    denoiser: hunyuan3d.Hunyuan3DDiT
    vae: ShapeVAE
    schedule: Schedule
    encoder: ImageEncoder | None
    num_latents: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.denoiser.latent_in.weight.device

    def condition(self, prompt: Prompt) -> Tensor:
        """The context ``[1, T, C]`` of a prompt, in the denoiser's dtype and on its device.

        Raises:
            UsageError: a picture for a model without an image encoder, a formula for one that has it, or tokens
                of another width.
        """
        width = self.denoiser.config.context_in_dim
        if isinstance(prompt, ImagePrompt):
            if self.encoder is None:
                raise UsageError(f"prompt {prompt.name}: the checkpoint has no image encoder, expected a shape")
            context = self.encoder(Path(prompt.image))
            if context.shape[-1] != width:
                raise UsageError(f"--image-encoder: tokens are {context.shape[-1]} wide, expected {width}")
        else:
            if self.encoder is not None:
                raise UsageError(f"prompt {prompt.name}: the checkpoint has an image encoder, expected an image")
            context = embed_shape(prompt.kind, prompt.parameters, width)
        return context.to(self.device, self.denoiser.latent_in.weight.dtype)


def load(
    parts: Parts, device: torch.device | str, *, packed_qk_norm: bool = False, dtype: torch.dtype = DTYPE
) -> ShapePipeline:
    """The parts with their weights, the denoiser with ``reference_ops`` at its sites.

    Raises:
        UsageError: a file is missing or damaged, or the parts do not fit together.
    """
    denoiser = hunyuan3d.load_denoiser(parts.denoiser, dtype, device, packed_qk_norm=packed_qk_norm)
    vae = hunyuan3d.load_shape_vae(parts.vae, torch.float32, device)
    if vae.config.embed_dim != denoiser.config.in_channels:
        raise UsageError(
            f"{parts.vae}: embed_dim is {vae.config.embed_dim}, expected {denoiser.config.in_channels}, "
            "the denoiser's in_channels"
        )
    encoder = None if parts.encoder is None else load_image_encoder(parts.encoder, dtype, device)
    return ShapePipeline(denoiser, vae, hunyuan3d.load_schedule(parts.denoiser), encoder, vae.config.num_latents)


# One arm


@dataclasses.dataclass(frozen=True)
class Shape:
    """One sampled shape, as far as it was made.

    Attributes:
        latents: after each denoising step, ``[1, L, C]``, on the CPU.
        field: of logits. mesh, views: made of it.
        problem: why it ends early: it has no surface, holds NaN, is degenerate, or too few latents came.
        seconds: wall-clock seconds of the stages ``condition``, ``denoise``, ``decode``, ``mesh``, ``render``; a
            stage that was not reached is left out.
        peak_bytes: the greatest memory held meanwhile: allocated on the GPU, resident on the CPU.
        calls: calls of each mounted site. forwards: of the denoiser.
    """

    latents: list[Tensor]
    field: Field | None = None
    mesh: trimesh.Trimesh | None = None
    views: Views | None = None
    problem: ShapeError | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_bytes: int = 0
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    forwards: int = 0


def sample(
    pipeline: ShapePipeline,
    prompt: Prompt,
    ops: OpSet,
    sites: Iterable[str],
    progress: Progress = _nothing,
    *,
    until: str = "views",
    cameras: Sequence[Camera] = (),
    memory_limit: int = MEMORY_LIMIT,
) -> Shape:
    """Sample one shape with an op set mounted, decode its field, extract its mesh and render its views.

    Args:
        pipeline: from `load`.
        prompt: what to sample.
        ops: to mount on the `sites`, names from `hunyuan3d.SITE_NAMES`.
        progress: called with a few words after each denoising step and each chunk of points.
        until: where to end, one of `UNTIL`.
        cameras: of the views.
        memory_limit: see `sample_field`.

    Raises:
        SiteError: a mounted site failed, or was not called as often as it must be.
        UsageError: as in `ShapePipeline.condition`.
    """
    clock = Clock(pipeline.device)
    reset_peak_memory(pipeline.device)
    with _timed(clock, "condition"):
        context = pipeline.condition(prompt)
    with hunyuan3d.mount(pipeline.denoiser, ops, sites) as mounted, _timed(clock, "denoise"):
        latents = sample_latents(pipeline, prompt, context, mounted, progress)
    shape = Shape(latents, seconds=clock.seconds, calls=dict(mounted.calls), forwards=mounted.forwards)
    shape = finish(
        pipeline, shape, prompt, progress, until=until, cameras=cameras, memory_limit=memory_limit, clock=clock
    )
    return dataclasses.replace(shape, peak_bytes=peak_memory(pipeline.device))


def sample_latents(
    pipeline: ShapePipeline,
    prompt: Prompt,
    context: Tensor,
    mounted: hunyuan3d.SiteMount,
    progress: Progress = _nothing,
) -> list[Tensor]:
    """The latents after each step; arguments and errors as in `sample` and `hunyuan3d.sample`."""
    return hunyuan3d.sample(
        pipeline.denoiser,
        context,
        schedule=pipeline.schedule,
        steps=prompt.steps,
        num_latents=pipeline.num_latents,
        seed=prompt.seed,
        guidance_scale=prompt.guidance_scale,
        mounted=mounted,
        progress=progress,
    )


def finish(
    pipeline: ShapePipeline,
    shape: Shape,
    prompt: Prompt,
    progress: Progress = _nothing,
    *,
    until: str = "views",
    cameras: Sequence[Camera] = (),
    memory_limit: int = MEMORY_LIMIT,
    clock: Clock | None = None,
) -> Shape:
    """A shape of latents, and of a field where there is one, with what follows from them; see `sample`."""
    clock = clock or Clock(pipeline.device)
    field, mesh, views, problem = shape.field, shape.mesh, shape.views, None
    try:
        if field is None:
            with _timed(clock, "decode"):
                field = sample_field(
                    pipeline.vae,
                    shape.latents[-1],
                    prompt.octree_resolution,
                    memory_limit=memory_limit,
                    progress=progress,
                )
        require_surface(field)
        if until != "shape" and mesh is None:
            with _timed(clock, "mesh"):
                mesh = extract(field)
        if until == "views" and mesh is not None and views is None:
            with _timed(clock, "render"):
                views = render(mesh, cameras)
    except ShapeError as error:
        problem = error
    seconds = dict(shape.seconds) | clock.seconds
    return dataclasses.replace(shape, field=field, mesh=mesh, views=views, problem=problem, seconds=seconds)


@contextmanager
def _timed(clock: Clock, stage: str) -> Iterator[None]:
    clock.start(stage)
    try:
        yield
    finally:
        clock.stop(stage)


def identity_of(parts: Parts, sites: Iterable[str], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the latents but op set, prompt and device, as JSON values."""
    kinds = (".json", ".yaml", ".safetensors")
    files = [file for folder in parts.folders for file in sorted(folder.iterdir()) if file.suffix in kinds]
    return {"checkpoint": hash_files(files), "dtype": str(DTYPE), "sites": list(sites), **extra}
