"""Sampling Helios: the latents of a prompt step by step, and their frames."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import HeliosPipeline, HeliosPyramidPipeline
from torch import Tensor

from validation.device.threads import one_thread
from validation.models.mount import Mount
from validation.models.prompts import Prompt, embed_prompt
from validation.samples.clock import Clock
from validation.samples.rung import Sample

CHUNK_FRAMES = 33  # frames that a pipeline denoises at once: 9 latent frames at a stride of 4

Frames = npt.NDArray[np.float32]  # [T, H, W, 3]


def steps_of(pipeline: Any, prompt: Prompt) -> int:
    """Denoising steps of a prompt's whole video: all chunks, and all stages of a pyramid."""
    stages = pipeline.scheduler.config.stages if isinstance(pipeline, HeliosPyramidPipeline) else 1
    chunks = -(-prompt.frames // CHUNK_FRAMES)
    return int(prompt.steps * stages * chunks)


def forwards_per_step(prompt: Prompt) -> int:
    """Forwards of the transformer in a step: two for a guided prompt (with and without it), else one."""
    return 2 if prompt.guidance_scale > 1 else 1


def sample(
    pipeline: HeliosPipeline | HeliosPyramidPipeline,
    prompt: Prompt,
    mounted: Mount | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Sample:
    """Sample the latents of one video. The seed decides everything; the caller's random state is unchanged.

    Args:
        pipeline: from `loading.load`.
        prompt: what to sample.
        mounted: a fresh mount on ``pipeline.transformer``, whose forwards are counted.
        progress: called with a few words after each denoising step.

    Returns:
        Latents after each step, float32 ``[1, C, T, H, W]``, chunk after chunk. Seconds of the stages ``encode``
        (prompt) and ``denoise``.

    Raises:
        SiteError: a mounted site failed, or was called the wrong number of times.
    """
    device = pipeline.transformer.device
    clock = Clock(device)
    latents: list[Tensor] = []
    steps = steps_of(pipeline, prompt)
    if isinstance(pipeline, HeliosPyramidPipeline):
        schedule: dict[str, Any] = {
            "pyramid_num_inference_steps_list": [prompt.steps] * pipeline.scheduler.config.stages
        }
    else:
        schedule = {"num_inference_steps": prompt.steps}

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].float().cpu())
        progress(f"step {len(latents)} of {steps}")
        return {}

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_one_thread(device))
        torch.manual_seed(prompt.seed)
        with clock.timed("encode"):
            embeds = _encode(pipeline, prompt.text, device)
            negative = _encode(pipeline, prompt.negative_text, device) if prompt.guidance_scale > 1 else None
        # The pipeline would decode each chunk for any output_type, but its history needs only latents.
        pipeline.vae.__dict__["decode"] = _decode_nothing
        stack.callback(pipeline.vae.__dict__.pop, "decode")
        with clock.timed("denoise"):
            pipeline(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                height=prompt.height,
                width=prompt.width,
                num_frames=prompt.frames,
                **schedule,
                guidance_scale=prompt.guidance_scale,
                generator=torch.Generator().manual_seed(prompt.seed),
                output_type="latent",
                callback_on_step_end=after_step,
            )
    if mounted:
        mounted.require_forwards(len(latents) * forwards_per_step(prompt))
    return Sample(latents, seconds=clock.seconds)


def decode(pipeline: HeliosPipeline | HeliosPyramidPipeline, latents: Sequence[Tensor], frames: int) -> Frames:
    """Decode the video of a trajectory of latents, with the same bits as the pipeline itself.

    Args:
        pipeline: the one that sampled them.
        latents: after each step.
        frames: the requested number.

    Returns:
        Frames as they leave the VAE, float32 RGB in [0, 1], ``[T, H, W, 3]``.
    """
    vae, device = pipeline.vae, pipeline.transformer.device
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, std = (torch.tensor(values, device=device, dtype=vae.dtype).view(shape)
                 for values in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    per_chunk = len(latents) // -(-frames // CHUNK_FRAMES)
    with _one_thread(device), torch.no_grad():
        # Multiplied and divided in the pipeline's order.
        chunks = [
            vae.decode(last.to(device, vae.dtype) / (1.0 / std) + mean, return_dict=False)[0]
            for last in latents[per_chunk - 1 :: per_chunk]
        ]
        video = torch.cat(chunks, dim=2)
        whole = (video.size(2) - 1) // pipeline.vae_scale_factor_temporal * pipeline.vae_scale_factor_temporal + 1
        shown = pipeline.video_processor.postprocess_video(video[:, :, :whole], output_type="np")[0]
    return np.asarray(shown, dtype=np.float32)


def _one_thread(device: torch.device) -> AbstractContextManager[None]:
    """Use one thread on the CPU: the same bits on any number of cores, and no waiting for a thread whose core is busy
    with other processes (measured on 2 cores at a load of 4: 35 s instead of 76 s)."""
    return one_thread() if device.type == "cpu" else nullcontext()


def _decode_nothing(latents: Tensor, **_options: Any) -> tuple[Tensor]:
    return (latents,)


def _encode(pipeline: Any, text: str, device: torch.device) -> Tensor:
    if pipeline.text_encoder is None:
        return embed_prompt(text, pipeline.transformer.config.text_dim).to(device)
    embeds: Tensor = pipeline.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=512)[0]
    return embeds
