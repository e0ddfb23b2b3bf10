"""Helios checkpoints in diffusers' folder format: check their content and load the pipeline that samples them.

A checkpoint's scheduler decides the pipeline: a ``HeliosScheduler`` with one stage uses `HeliosPipeline` (Base),
with several stages the pyramid with guidance (Mid); a ``HeliosDMDScheduler`` the distilled pyramid without guidance.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from torch import Tensor, nn

from validation.errors import UsageError
from validation.files import read_json
from validation.models import offload
from validation.models.helios.sites import one_line, sites_of
from validation.models.mount import Site, select_sites
from validation.models.prompts import Prompt
from validation.ops import OpSet

_SCHEDULERS = {"HeliosScheduler": HeliosScheduler, "HeliosDMDScheduler": HeliosDMDScheduler}


def check(checkpoint: Path, ops: OpSet, sites: Iterable[str] | None = None) -> tuple[Site, ...]:
    """The sites that `sites.mount` will choose for a checkpoint; reads only its small files.

    Raises:
        UsageError: a file of the checkpoint is missing, or the sites cannot be mounted.
    """
    _require_files(checkpoint)
    _pyramid(checkpoint)
    return select_sites(sites_of(read_json(checkpoint / "transformer" / "config.json")), ops, sites)


def check_prompts(checkpoint: Path, prompts: Iterable[Prompt]) -> None:
    """Raise UsageError if the checkpoint's pipeline cannot sample a prompt; reads only small files."""
    stages, distilled = _pyramid(checkpoint)
    multiple = 16 * 2 ** (stages - 1)
    for prompt in prompts:
        for name in ("height", "width"):
            if getattr(prompt, name) % multiple:
                raise UsageError(
                    f"prompt {prompt.name}: {name} is {getattr(prompt, name)}, expected a multiple of {multiple}: "
                    f"{checkpoint} is a pyramid of {stages} stages"
                )
        if distilled and prompt.guidance_scale > 1:
            raise UsageError(
                f"prompt {prompt.name}: guidance_scale is {prompt.guidance_scale:g}, expected 1: "
                f"{checkpoint} is distilled and takes no guidance"
            )


def load(
    checkpoint: Path, dtype: torch.dtype, device: torch.device | str, free_bytes: int | None = None
) -> HeliosPipeline | HeliosPyramidPipeline:
    """Load a Helios pipeline from a folder in diffusers' format: the transformer in `dtype`, the VAE in float32.

    The folder holds ``transformer/``, ``vae/`` and ``scheduler/``; ``text_encoder/`` and ``tokenizer/``
    may both be left out: prompts are then embedded by `embed_prompt`. Nothing is downloaded.

    Args:
        checkpoint: the folder.
        dtype: dtype of the transformer and the text encoder.
        device: where to sample.
        free_bytes: the device's free memory; None asks the device. If the parts take more than `offload.SHARE` of
            it, the blocks of transformer and text encoder stay in main memory and visit the device one by one.

    Raises:
        UsageError: a file is missing or damaged, holds another class, or lacks weights.
    """
    _require_files(checkpoint)
    stages, distilled = _pyramid(checkpoint)
    transformer = _pretrained(HeliosTransformer3DModel, checkpoint / "transformer", dtype)
    vae = _pretrained(AutoencoderKLWan, checkpoint / "vae", torch.float32)
    scheduler_class = _SCHEDULERS[read_json(checkpoint / "scheduler" / "scheduler_config.json")["_class_name"]]
    scheduler = scheduler_class.from_pretrained(checkpoint / "scheduler", local_files_only=True)
    tokenizer = text_encoder = None
    if (checkpoint / "text_encoder").is_dir():
        from transformers import AutoTokenizer, UMT5EncoderModel

        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
            text_encoder = UMT5EncoderModel.from_pretrained(
                checkpoint / "text_encoder", dtype=dtype, local_files_only=True
            )
        except Exception as error:
            raise UsageError(f"{checkpoint}: cannot load the text encoder: {one_line(error)}") from error
        if text_encoder.config.d_model != transformer.config.text_dim:
            raise UsageError(
                f"{checkpoint}: the text encoder is {text_encoder.config.d_model} wide, "
                f"expected {transformer.config.text_dim}, the transformer's text_dim"
            )
    if vae.config.z_dim != transformer.config.in_channels:
        raise UsageError(
            f"{checkpoint}: the VAE has z_dim {vae.config.z_dim}, "
            f"expected {transformer.config.in_channels}, the transformer's in_channels"
        )
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "vae": vae, "transformer": transformer}
    if stages == 1 and not distilled:
        pipeline = HeliosPipeline(**parts, scheduler=scheduler)
    else:
        zero_star = bool(_index(checkpoint).get("is_cfg_zero_star", False))
        pipeline = _Pyramid(**parts, scheduler=scheduler, is_distilled=distilled, is_cfg_zero_star=zero_star)
    pipeline.set_progress_bar_config(disable=True)
    device = torch.device(device)
    free = offload.free_bytes(device) if free_bytes is None else free_bytes
    if (
        free is None
        or offload.bytes_of(part for part in parts.values() if isinstance(part, nn.Module)) <= offload.SHARE * free
    ):
        return pipeline.to(device)
    vae.to(device)
    offload.place_layer_wise(transformer, transformer.blocks, device)
    if text_encoder is not None:
        offload.place_layer_wise(text_encoder, text_encoder.encoder.block, device)
    return pipeline


class _Pyramid(HeliosPyramidPipeline):  # type: ignore[misc]  # diffusers is untyped
    """diffusers' pyramid, with a block noise that can be drawn even if the covariance is singular.

    The noise added at the start of a stage has the covariance (1 + gamma) I - gamma J within each block of n
    latent pixels (J is all ones). Its least eigenvalue 1 + gamma - n gamma is 0 for the published gamma = 1/3 and
    blocks of four; in float32 it becomes -3e-8, and the Cholesky factorisation of diffusers 0.42.1 raises. The
    symmetric root is known in closed form: the eigenvectors are J's.
    """

    def sample_block_noise(
        self,
        batch_size: int,
        channel: int,
        num_frames: int,
        height: int,
        width: int,
        patch_size: tuple[int, ...] = (1, 2, 2),
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noise ``[batch_size, channel, num_frames, height, width]``, float32."""
        gamma, (_, rows, columns) = self.scheduler.config.gamma, patch_size
        shape = (batch_size, channel, num_frames, height // rows, rows, width // columns, columns)
        white = torch.randn(shape, generator=generator, device=generator.device if generator else device)
        mean = white.mean(dim=(4, 6), keepdim=True)
        least = max(1 + gamma - rows * columns * gamma, 0.0)
        noise: Tensor = (1 + gamma) ** 0.5 * (white - mean) + least**0.5 * mean
        return noise.reshape(batch_size, channel, num_frames, height, width).to(device)


def _index(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "model_index.json"
    return read_json(path) if path.is_file() else {}


def _pyramid(checkpoint: Path) -> tuple[int, bool]:
    """Number of stages of a checkpoint's pyramid (1: no pyramid), and whether it is distilled.

    Raises:
        UsageError: ``model_index.json`` exists and contradicts the scheduler.
    """
    config = read_json(checkpoint / "scheduler" / "scheduler_config.json")
    stages, distilled = int(config.get("stages", 3)), config["_class_name"] == "HeliosDMDScheduler"
    expected = {
        "_class_name": "HeliosPipeline" if stages == 1 and not distilled else "HeliosPyramidPipeline",
        "is_distilled": distilled,
    }
    for name, value in expected.items():
        came = _index(checkpoint).get(name, value)
        if came != value:
            raise UsageError(
                f"{checkpoint / 'model_index.json'}: {name} is {came}, expected {value}, "
                f"as the scheduler is a {config['_class_name']} of {stages} stage{'s' if stages > 1 else ''}"
            )
    return stages, distilled


def _require_files(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise UsageError(f"--checkpoint: no folder {checkpoint}, expected a Helios checkpoint in diffusers' format")
    expected_class = {
        "transformer/config.json": "HeliosTransformer3DModel",
        "vae/config.json": "AutoencoderKLWan",
        "scheduler/scheduler_config.json": " or ".join(_SCHEDULERS),
    }
    missing = [name for name in expected_class if not (checkpoint / name).is_file()]
    for part in ("transformer", "vae"):
        missing += [f"{part}/{name}" for name in _missing_weights(checkpoint / part)]
    if (checkpoint / "text_encoder").is_dir() != (checkpoint / "tokenizer").is_dir():
        missing.append("tokenizer/" if (checkpoint / "text_encoder").is_dir() else "text_encoder/")
    if missing:
        raise UsageError(
            f"{checkpoint} lacks {', '.join(missing)}, expected a Helios checkpoint in diffusers' format "
            "(transformer/, vae/, scheduler/, and text_encoder/ with tokenizer/ or neither)"
        )
    for name, class_name in expected_class.items():
        came = read_json(checkpoint / name).get("_class_name")
        if came not in class_name.split(" or "):
            raise UsageError(f"{checkpoint / name} is of class {came}, expected {class_name}")


def _missing_weights(part: Path) -> list[str]:
    whole, index = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
    if (part / whole).is_file():
        return []
    if not (part / index).is_file():
        return [f"{whole} (or {index})"]
    shards = read_json(part / index).get("weight_map", {})
    return [shard for shard in sorted(set(shards.values())) if not (part / shard).is_file()]


def _pretrained(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        loaded, info = model.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise UsageError(f"cannot load {folder}: {one_line(error)}") from error
    # diffusers leaves missing weights at random values, with a warning.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = ", ".join(str(key) for key in sorted(info[kind], key=str)[:3])
            raise UsageError(
                f"{folder} has {len(info[kind])} {kind.replace('_', ' ')} ({names}), "
                "expected the weights that its config.json describes"
            )
    return loaded.eval()
