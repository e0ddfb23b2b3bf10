"""The rungs of a sampled shape: field, mesh and views, and how two shapes are compared on each."""

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
