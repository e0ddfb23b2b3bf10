"""The condition of Hunyuan3D-2 from a picture: the tokens of DINOv2, computed with transformers.

This follows the official pipeline (``ImageProcessorV2`` and ``DinoImageEncoder`` of hy3dgen):

* The background is where alpha is 0; removing it is left to the user. A picture without alpha is all subject.
* The subject's bounding box, without its last row and column, is scaled so that its longer side is 85 % of the
  picture's longer side, centred in a square, and laid on white. The square becomes 512 pixels wide.
* DINOv2 gets it at its own size (518) by bilinear interpolation with antialiasing, minus ImageNet's mean and divided
  by its deviation, and runs in the denoiser's dtype. The context is the last hidden state, class token first: 1370
  tokens. The unconditional context is zeros.

Resampling uses Pillow and PyTorch here, OpenCV and torchvision there: pixels differ by a few grey levels.
Both arms get the same context.
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from validation.errors import UsageError
from validation.files import read_json
from validation.models.hunyuan3d.loading import read_config

SIZE = 512
BORDER = 0.15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PREFIX = "conditioner.main_image_encoder.model."


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """A picture to make a shape from, with the sampling settings.

    Attributes:
        name: short, for file names: lower-case letters, digits and hyphens.
        image: the file's path. digest: digest of its content.
        seed: of the noise. steps: denoising steps. guidance_scale: classifier-free guidance, or the model's input.
        octree_resolution: cells along an edge of the grid on which the field is decoded.
    """

    name: str
    image: str
    digest: str
    seed: int
    steps: int
    guidance_scale: float
    octree_resolution: int

    @property
    def text(self) -> str:
        """The prompt in words."""
        return f"image {Path(self.image).name}"

    @classmethod
    def read(cls, path: Path, *, steps: int, guidance_scale: float, octree_resolution: int) -> Self:
        """Read a picture as a prompt with seed 0.

        Raises:
            UsageError: the file is not a picture, or has no subject.
        """
        prepare_image(path)
        name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "image"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(name, str(path), digest, 0, steps, guidance_scale, octree_resolution)


def prepare_image(path: Path, size: int = SIZE, border: float = BORDER) -> Tensor:
    """Centre a picture's subject in a white square: float32 ``[1, 3, size, size]`` in [0, 1].

    Raises:
        UsageError: no such file, not a picture, or nothing in it is opaque.
    """
    try:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("RGBA"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UsageError(f"--image: cannot read {path}: {error}, expected a picture") from error
    rows, columns = np.nonzero(pixels[..., 3])
    if not len(rows) or not np.ptp(rows) or not np.ptp(columns):
        raise UsageError(
            f"--image: {path} has no subject: {len(rows)} of {pixels[..., 3].size} pixels are not transparent, "
            "expected a subject of more than one row and column"
        )
    subject = pixels[rows.min() : rows.max(), columns.min() : columns.max()]
    edge = max(pixels.shape[:2])
    height, width = subject.shape[:2]
    scale = int(edge * (1 - border)) / max(height, width)
    resized = _resized(subject, max(1, int(height * scale)), max(1, int(width * scale)))
    square = np.zeros((edge, edge, 4), np.uint8)
    top, left = (edge - resized.shape[0]) // 2, (edge - resized.shape[1]) // 2
    square[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    alpha = square[..., 3:].astype(np.float32) / 255
    flat = (square[..., :3] * alpha + 255 * (1 - alpha)).clip(0, 255).astype(np.uint8)
    final = np.asarray(Image.fromarray(flat).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(final.astype(np.float32) / 255).permute(2, 0, 1).unsqueeze(0)


def _resized(pixels: Any, height: int, width: int) -> Any:
    """Resize ``[H, W, 4]`` channel by channel: Pillow would weight the colours by alpha."""
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    channels = (Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(4))
    return np.stack([np.asarray(channel.resize((width, height), how)) for channel in channels], axis=-1)


class ImageEncoder:
    """DINOv2 with its preprocessing: ``encoder(path) -> context [1, T, C]`` in the model's dtype.

    Attributes:
        model: a ``Dinov2Model``.
        image_size: pixels along its input's edge. use_cls_token: whether the class token is part of the context.
        mean, std: of a pixel's channels.
        size, border: arguments of `prepare_image`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        use_cls_token: bool = True,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        size: int = SIZE,
        border: float = BORDER,
    ) -> None:
        self.model, self.image_size, self.use_cls_token = model, image_size, use_cls_token
        self.mean, self.std, self.size, self.border = mean, std, size, border

    @torch.no_grad()
    def __call__(self, path: Path) -> Tensor:
        """See the class. UsageError as in `prepare_image`."""
        edge = (self.image_size, self.image_size)
        pixels = prepare_image(path, self.size, self.border)
        # In float32: PyTorch lacks this interpolation for float16 on the CPU.
        pixels = functional.interpolate(pixels, edge, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in (self.mean, self.std))
        hidden: Tensor = self.model(((pixels - mean) / std).to(next(self.model.parameters()))).last_hidden_state
        return hidden if self.use_cls_token else hidden[:, 1:]


def load_image_encoder(folder: Path, dtype: torch.dtype, device: torch.device | str) -> ImageEncoder:
    """Load DINOv2 from a folder saved by transformers, or from an official denoiser's folder.

    The first holds ``config.json``, weights, and ``preprocessor_config.json`` (mean and deviation of the channels;
    ImageNet's if it is missing). The second has a ``conditioner`` in its ``config.yaml``, and keys that begin with
    ``conditioner.main_image_encoder.model.`` in its weights. Nothing is downloaded.

    Raises:
        UsageError: a file is missing or damaged, it is another encoder, or keys are missing or too many.
    """
    from transformers import Dinov2Config, Dinov2Model

    options: dict[str, Any] = {}
    try:
        if (folder / "config.json").is_file():
            kind = read_json(folder / "config.json").get("model_type")
            if kind != "dinov2":
                raise UsageError(f"{folder / 'config.json'}: model_type is {kind!r}, expected dinov2")
            model, info = Dinov2Model.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            if (folder / "preprocessor_config.json").is_file():
                read = read_json(folder / "preprocessor_config.json")
                options = {"mean": tuple(read["image_mean"]), "std": tuple(read["image_std"])}
        else:
            section = encoder_section(folder)
            kwargs = section["kwargs"]
            options = {"use_cls_token": kwargs.get("use_cls_token", True)} | _processor_options(folder)
            config = Dinov2Config.from_dict({**kwargs["config"], "image_size": kwargs["image_size"]})
            model, info = Dinov2Model.from_pretrained(
                None, config=config, state_dict=_weights(folder), dtype=dtype, output_loading_info=True
            )
    except UsageError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(f"cannot load the image encoder of {folder}: {type(error).__name__}: {text}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = ", ".join(str(key) for key in sorted(info[kind], key=str)[:3])
            raise UsageError(
                f"{folder} has {len(info[kind])} {kind.replace('_', ' ')} of the image encoder ({names}), "
                "expected the weights that its configuration describes"
            )
    return ImageEncoder(model.to(device).eval(), image_size=model.config.image_size, **options)


def encoder_section(folder: Path) -> dict[str, Any]:
    """The main image encoder of a denoiser's ``config.yaml``: ``type`` and ``kwargs``.

    Raises:
        UsageError: there is none, or it is not DINOv2 for a single picture.
    """
    path = folder / "config.yaml"
    conditioner = read_config(folder).get("conditioner")
    section = None
    if isinstance(conditioner, dict) and isinstance(conditioner.get("params"), dict):
        section = conditioner["params"].get("main_image_encoder")
    if not isinstance(section, dict) or not isinstance(section.get("kwargs"), dict):
        raise UsageError(f"{path} has no conditioner with a main_image_encoder, expected DINOv2 (or --image-encoder)")
    if section.get("type") != "DinoImageEncoder":
        raise UsageError(f"{path}: main_image_encoder is a {section.get('type')}, expected DinoImageEncoder")
    return section


def _processor_options(folder: Path) -> dict[str, Any]:
    section = read_config(folder).get("image_processor")
    params = section.get("params") if isinstance(section, dict) else None
    names = {"size": "size", "border_ratio": "border"}
    return {names[key]: value for key, value in (params or {}).items() if key in names and value is not None}


def _weights(folder: Path) -> dict[str, Tensor]:
    path = next((p for p in (folder / "model.fp16.safetensors", folder / "model.safetensors") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder} lacks model.fp16.safetensors (or model.safetensors), expected the official layout")
    try:
        with safe_open(path, "pt") as file:
            return {
                key.removeprefix(_PREFIX): file.get_tensor(key).clone()
                for key in file.keys()  # noqa: SIM118  # safetensors' file is no mapping
                if key.startswith(_PREFIX)
            }
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
