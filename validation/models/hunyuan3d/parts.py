"""Where the parts of a Hunyuan3D-2 checkpoint are, and which sites its denoiser has; no weights are read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from validation.errors import UsageError
from validation.models.hunyuan3d.loading import denoiser_params, load_schedule, read_config
from validation.models.hunyuan3d.sites import PACKED, sites_of
from validation.models.mount import Site, select_sites
from validation.ops import OpSet


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of a checkpoint are.

    Attributes:
        denoiser: its folder, in the official layout.
        vae: the decoder's folder; may be the denoiser's.
        encoder: the image encoder's folder, official or saved by transformers; None: conditioned on formulas.
    """

    denoiser: Path
    vae: Path
    encoder: Path | None

    @property
    def folders(self) -> list[Path]:
        """The distinct folders."""
        return list(dict.fromkeys(folder for folder in (self.denoiser, self.vae, self.encoder) if folder is not None))


def find_parts(checkpoint: Path, image_encoder: Path | None = None) -> Parts:
    """Find the parts of a checkpoint; no weights are read.

    Args:
        checkpoint: a denoiser's folder such as ``hunyuan3d-dit-v2-0``, or a folder that contains exactly one. The
            decoder is the denoiser's own or, if it has none, the only one among its siblings.
        image_encoder: DINOv2's folder; None is the denoiser's own ``conditioner``, if it has one.

    Raises:
        UsageError: a folder or part is missing or ambiguous.
    """
    for option, folder in (("--checkpoint", checkpoint), ("--image-encoder", image_encoder)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{option}: no folder {folder}, expected a Hunyuan3D-2 checkpoint or a part of one")
    denoiser = _the_only(checkpoint, "a denoiser", "model")
    denoiser_params(denoiser)
    load_schedule(denoiser)
    own = read_config(denoiser)
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
    config = read_config(folder)
    if section == "vae":
        # A decoder with its own folder: one in a denoiser's folder is used with that denoiser only.
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
    available = sites_of(denoiser_params(parts.denoiser))
    return select_sites(available, ops, names), packed
