"""Sampling Hunyuan3D-2's shape model: the loaded parts, the condition, and the latents of a prompt step by step.

The denoiser works in float16 and the decoder in float32, as in production. The checkpoint decides what a shape is
conditioned on: DINOv2's tokens of a picture if it has an image encoder, otherwise the formula of
`validation.models.hunyuan3d.shapes`, as for the small trained model.
"""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from validation.device.threads import one_thread
from validation.errors import UsageError
from validation.models.hunyuan3d.dinov2 import ImageEncoder, ImagePrompt, load_image_encoder
from validation.models.hunyuan3d.dit import Hunyuan3DDiT
from validation.models.hunyuan3d.flow_matching import Schedule, denoise, guidance_embedded, guided
from validation.models.hunyuan3d.loading import load_denoiser, load_schedule, load_shape_vae
from validation.models.hunyuan3d.parts import Parts
from validation.models.hunyuan3d.shape_vae import ShapeVAE
from validation.models.hunyuan3d.shapes import ShapePrompt, embed_shape
from validation.models.mount import Mount
from validation.samples.clock import Clock

DTYPE = torch.float16
"""Of the denoiser and the image encoder."""

Prompt = ShapePrompt | ImagePrompt


@dataclasses.dataclass
class ShapePipeline:
    """The loaded parts.

    Attributes:
        denoiser, vae, schedule: see `loading`.
        encoder: the image encoder, or None.
        num_latents: latents per shape, as the decoder was trained with.
    """

    denoiser: Hunyuan3DDiT
    vae: ShapeVAE
    schedule: Schedule
    encoder: ImageEncoder | None
    num_latents: int

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.denoiser.latent_in.weight.device

    def condition(self, prompt: Prompt) -> Tensor:
        """The context ``[1, T, C]`` of a prompt, in the denoiser's dtype and on its device.

        Raises:
            UsageError: a picture for a model without an image encoder, a formula for a model with one, or tokens
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
    """Load the parts with their weights, the denoiser with ``reference_ops`` at its sites.

    Raises:
        UsageError: a file is missing or damaged, or the parts do not fit together.
    """
    denoiser = load_denoiser(parts.denoiser, dtype, device, packed_qk_norm=packed_qk_norm)
    vae = load_shape_vae(parts.vae, torch.float32, device)
    if vae.config.embed_dim != denoiser.config.in_channels:
        raise UsageError(
            f"{parts.vae}: embed_dim is {vae.config.embed_dim}, expected {denoiser.config.in_channels}, "
            "the denoiser's in_channels"
        )
    encoder = None if parts.encoder is None else load_image_encoder(parts.encoder, dtype, device)
    return ShapePipeline(denoiser, vae, load_schedule(parts.denoiser), encoder, vae.config.num_latents)


def sample(
    model: Hunyuan3DDiT,
    context: Tensor,
    *,
    schedule: Schedule,
    steps: int,
    num_latents: int,
    seed: int,
    guidance_scale: float = 5.0,
    unconditional: Tensor | None = None,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Tensor]:
    """Sample latents; the seed decides everything, and no global random state is read or changed.

    Args:
        model: the denoiser; in production float16.
        context: ``[B, T, context_in_dim]``, in the model's dtype and on its device.
        schedule: from `loading.load_schedule`.
        steps: 50 in production, for turbo 5.
        num_latents: latents per shape, as the decoder was trained with (`ShapeVAEConfig`).
        seed: of the noise, drawn in float32 on the CPU so that every dtype and device starts alike.
        guidance_scale: classifier-free guidance, or the model's own input if it embeds it.
        unconditional: as in `guided`; not used if the model embeds its guidance.
        mounted: a fresh mount on the model, whose calls are counted.
        progress: called with a few words after each step; an exception that it raises ends the sampling.

    Returns:
        The latents ``[B, num_latents, in_channels]`` after each step, on the CPU, in the model's dtype.

    Raises:
        SiteError: a mounted site failed, or was called the wrong number of times.
        ValueError: a wrong shape, or a number of steps that the schedule does not allow.
    """
    sigmas = schedule.sigmas(steps)
    velocity = (
        guidance_embedded(model, context, guidance_scale)
        if model.config.guidance_embed
        else guided(model, context, guidance_scale, unconditional)
    )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(context), num_latents, model.config.in_channels, generator=generator)
    latents = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if context.device.type == "cpu":
            # The same bits on any number of cores.
            stack.enter_context(one_thread())
        for x in denoise(velocity, noise.to(context), sigmas, schedule.num_train_timesteps):
            latents.append(x.cpu())
            progress(f"step {len(latents)} of {steps}")
    if mounted is not None:
        mounted.require_forwards(steps)
    return latents


def sample_prompt(
    pipeline: ShapePipeline,
    prompt: Prompt,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[list[Tensor], dict[str, float]]:
    """Sample a prompt: its latents after each step, and the seconds of the stages ``condition`` and ``denoise``.

    Arguments and errors as in `sample` and `ShapePipeline.condition`.
    """
    clock = Clock(pipeline.device)
    with clock.timed("condition"):
        context = pipeline.condition(prompt)
    with clock.timed("denoise"):
        latents = sample(
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
    return latents, clock.seconds
