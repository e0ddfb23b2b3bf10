"""The rungs of a sampled shape: field, mesh and views, and how two shapes are compared on each."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from validation.media import shape_metrics
from validation.media.field import ShapeError
from validation.media.mesh import require_surface
from validation.media.render import KINDS
from validation.samples.rung import Measure, Rung, SampleError, as_number
from validation.verdict import Numbers, Series, Status


@contextmanager
def named() -> Iterator[None]:
    """Re-raise a ShapeError as a SampleError."""
    try:
        yield
    except ShapeError as error:
        raise SampleError(Status(error.status), error.check, str(error), error.numbers) from error


class Field(Rung):
    """Logits on the grid: RMS, points that change sign, IoU."""

    name = "field"
    measures = (
        Measure("field_rms", "logits, RMS", "", "low"),
        Measure("field_flips", "points that change sides", "", "low"),
        Measure("field_max", "logits, greatest", "", "low"),
        Measure("field_iou", "IoU", "", "high"),
    )

    def require(self, made: Any) -> None:
        """See `require_surface`."""
        with named():
            require_surface(made)

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `shape_metrics.compare_fields`."""
        found = shape_metrics.compare_fields(reference, candidate)
        x, y, z = found.worst
        return {
            "field_rms": found.rms,
            "field_max": found.max,
            "field_worst": f"x {x}, y {y}, z {z}",
            "field_flips": found.flips,
            "field_iou": found.iou,
        }, {}

    def words(self, numbers: Numbers) -> str:
        """RMS and share of flipped points."""
        flips = 100 * as_number(numbers["field_flips"])
        return f"field RMS {numbers['field_rms']:.2g} logits, {flips:.2g} % changed sides"


class Mesh(Rung):
    """The surface: distances from points of each mesh to the other, volume, and whether it is closed."""

    name = "mesh"
    stage = "mesh"
    measures = (
        Measure("mesh_candidate_rms", "points to the other surface, RMS", "d", "low"),
        Measure("mesh_candidate_max", "points to the other surface, greatest", "d", "low"),
        Measure("mesh_reference_rms", "and back, RMS", "d", "low"),
        Measure("mesh_reference_max", "and back, greatest", "d", "low"),
        Measure("mesh_chamfer", "Chamfer, normalised", "d²", "low"),
        Measure("mesh_volume_change", "volume, change", "", "low"),
    )

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `shape_metrics.compare_meshes`."""
        meshes = shape_metrics.compare_meshes(reference, candidate)
        numbers: Numbers = {f"mesh_{name}": value for name, value in dataclasses.asdict(meshes).items()}
        volume, volume_candidate = meshes.volume_reference, meshes.volume_candidate
        numbers["mesh_volume_change"] = abs(volume_candidate - volume) / abs(volume) if volume else math.inf
        return numbers, {}

    def demands(self, numbers: Numbers) -> list[str]:
        """An open mesh is wrong, regardless of the gates, if the reference's is closed."""
        opened = numbers["mesh_watertight_reference"] and not numbers["mesh_watertight_candidate"]
        return ["the mesh is not watertight, as the reference is"] if opened else []

    def words(self, numbers: Numbers) -> str:
        """The RMS distance."""
        return f"surface {numbers['mesh_candidate_rms']:.2g} of the diagonal away (RMS)"


class Views(Rung):
    """Views from fixed cameras: PSNR and SSIM of the worst view and the worst tile, and silhouettes."""

    name = "views"
    stage = "render"
    measures = (
        *(
            Measure(f"{kind}_{name}", f"{kind}, {words}", unit, "high")
            for kind in KINDS
            for name, words, unit in (
                ("psnr_worst_view", "PSNR of the worst view", "dB"),
                ("psnr_worst_tile", "PSNR of the worst tile", "dB"),
                ("ssim_worst_view", "SSIM of the worst view", ""),
            )
        ),
        Measure("silhouette_iou_worst_view", "silhouette, IoU of the worst view", "", "high"),
    )

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `shape_metrics.compare_views`."""
        return shape_metrics.compare_views(reference, candidate).numbers(), {}

    def words(self, numbers: Numbers) -> str:
        """PSNR of the worst shaded view and of the worst tile."""
        view, tile = numbers["shaded_psnr_worst_view"], numbers["shaded_psnr_worst_tile"]
        return f"worst view {view:.1f} dB, worst tile {tile:.1f} dB"
