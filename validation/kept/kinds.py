"""The kinds of files that can be compared: how each is read, on which rung two are compared, and what is searched."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import imageio.v3 as iio
import numpy as np

from validation.kept.arrays import SUFFIXES as ARRAY_SUFFIXES
from validation.kept.arrays import ArrayFile, ArraysRung, read_arrays
from validation.media import findings, video
from validation.media.field import ShapeError
from validation.samples.frames import FileFrames
from validation.samples.rung import Rung
from validation.verdict import Status

Frames = video.UInt8Frames


class FileError(Exception):
    """A file cannot be compared.

    Attributes:
        status: of a candidate that is such a file.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Kind(ABC):
    """A kind of file.

    Attributes:
        name: for results.
        suffixes: of its files.
        missing: the status of a candidate that is no file of this kind.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    missing: ClassVar[Status]

    @property
    @abstractmethod
    def rung(self) -> Rung:
        """How two of them are compared."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """What the file holds.

        Raises:
            FileError: it is missing or damaged, or holds something else.
        """

    def require_same_form(self, _reference: Any, _candidate: Any) -> None:
        """Raise FileError where the two cannot be compared for another reason than `Rung.compare` names."""
        return

    @abstractmethod
    def same_bits(self, reference: Any, candidate: Any) -> str:
        """Subject and verb where the two are equal to the bit; "" where they are not."""

    def findings(self, _reference: Any, _candidate: Any) -> list[findings.Finding]:
        """What is wrong by name; nothing by default."""
        return []


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames, uint8 ``[T, H, W, C]``, and how many there are a second; None for an image."""

    frames: Frames
    rate: float | None = None


class Videos(Kind):
    """Videos as `validation.media.video` reads them."""

    name = "video"
    suffixes = video.SUFFIXES
    missing = Status.INCORRECT_FRAMES

    @functools.cached_property
    def rung(self) -> Rung:
        """PSNR, SSIM and flicker of 8-bit frames."""
        return _ClipRung()

    def read(self, path: Path) -> Clip:
        """See `Kind.read`."""
        try:
            return Clip(video.read_video(path), video.read_rate(path))
        except video.VideoError as error:
            raise FileError(self.missing, str(error)) from error

    def require_same_form(self, reference: Clip, candidate: Clip) -> None:
        """The rates must be equal."""
        if candidate.rate != reference.rate:
            reason = f"candidate has {candidate.rate:g} frames a second, expected {reference.rate:g}"
            raise FileError(Status.INCORRECT_FRAMES, reason)

    def same_bits(self, reference: Clip, candidate: Clip) -> str:
        """See `Kind.same_bits`."""
        same = np.array_equal(reference.frames, candidate.frames)
        return self.rung.same(reference) if same else ""

    def findings(self, reference: Clip, candidate: Clip) -> list[findings.Finding]:
        """See `validation.media.findings`."""
        return findings.find(reference.frames, candidate.frames)


class _ClipRung(FileFrames):
    def compare(self, reference: Any, candidate: Any) -> Any:
        return super().compare(reference.frames, candidate.frames)

    def require(self, _made: Any) -> None:
        """Integers are finite."""

    def same(self, made: Any) -> str:
        return super().same(made.frames) if len(made.frames) > 1 else "the picture is"


class Images(Videos):
    """8-bit PNG files: videos of one frame."""

    name = "image"
    suffixes = (".png",)

    def read(self, path: Path) -> Clip:
        """See `Kind.read`; grey, RGB or RGBA."""
        if not path.is_file():
            raise FileError(self.missing, f"no file {path}, expected an image")
        try:
            image = np.asarray(iio.imread(path, plugin="pillow", index=0))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise FileError(self.missing, f"{path} is damaged ({reason}), expected an image") from error
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
            held = f"{image.dtype} {list(image.shape)}"
            raise FileError(self.missing, f"{path} holds {held}, expected uint8 [H, W], [H, W, 3] or [H, W, 4]")
        return Clip(image[None])


class Arrays(Kind):
    """Latents and other tensors."""

    name = "arrays"
    suffixes = ARRAY_SUFFIXES
    missing = Status.INCORRECT_STRUCTURE

    @functools.cached_property
    def rung(self) -> Rung:
        """RMS, greatest difference, and share of values that are other ones."""
        return ArraysRung()

    def read(self, path: Path) -> ArrayFile:
        """See `Kind.read`."""
        try:
            return read_arrays(path)
        except ValueError as error:
            raise FileError(self.missing, str(error)) from error

    def same_bits(self, reference: ArrayFile, candidate: ArrayFile) -> str:
        """See `Kind.same_bits`."""
        return self.rung.same(reference) if reference.same_bits(candidate) else ""


class Meshes(Kind):
    """Triangle meshes."""

    name = "mesh"
    suffixes = (".glb", ".obj", ".stl")
    missing = Status.DEGENERATE_MESH

    @functools.cached_property
    def rung(self) -> Rung:
        """Distances between the two surfaces."""
        from validation.samples.meshes import Mesh

        return Mesh()

    def read(self, path: Path) -> Any:
        """See `Kind.read`; all parts of the file as one `trimesh.Trimesh`."""
        import trimesh

        from validation.media.mesh import require_solid

        if not path.is_file():
            raise FileError(self.missing, f"no file {path}, expected a mesh")
        try:
            mesh = trimesh.load(path, force="mesh", process=False)
            require_solid(mesh)
        except ShapeError as error:
            raise FileError(self.missing, f"{path}: {error}") from error
        except Exception as error:
            # trimesh's readers raise whatever their parsers do.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise FileError(self.missing, f"{path} is damaged ({reason}), expected a mesh") from error
        return mesh

    def same_bits(self, reference: Any, candidate: Any) -> str:
        """See `Kind.same_bits`."""
        pairs = ((reference.vertices, candidate.vertices), (reference.faces, candidate.faces))
        return "the mesh is" if all(np.array_equal(a, b) for a, b in pairs) else ""


KINDS: tuple[Kind, ...] = (Videos(), Images(), Arrays(), Meshes())
SUFFIXES = tuple(dict.fromkeys(suffix for kind in KINDS for suffix in kind.suffixes))


def kind_of(path: Path, others: Sequence[Kind] = KINDS) -> Kind | None:
    """The kind of a file; None where its suffix belongs to none. An .npz without uint8 ``frames`` holds arrays."""
    found = [kind for kind in others if path.suffix in kind.suffixes]
    if path.suffix != ".npz" or not path.is_file():
        return found[0] if found else None
    try:
        with np.load(path, allow_pickle=False) as data:
            is_video = "frames" in data.files and data["frames"].dtype == np.uint8 and data["frames"].ndim == 4
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return found[0]  # damaged: reading it says so
    return found[0] if is_video else found[-1]
