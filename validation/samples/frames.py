"""The rung of any model that makes a video: frames ``[T, H, W, C]``, compared as they leave the decoder."""

from typing import Any, ClassVar

import numpy as np

from validation.media import metrics
from validation.media.flicker import flicker
from validation.samples.rung import Measure, Rung, SampleError, as_number
from validation.verdict import Numbers, Series, Status


class Frames(Rung):
    """Frames in memory: PSNR and SSIM of the worst frame, the worst tile, the whole video and its motion.

    Attributes:
        data_range: distance between black and white.
    """

    name = "frames"
    check = "floors"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("psnr", "PSNR, all frames pooled", "dB", "high"),
        # The mean hides one black frame in 81.
        Measure("psnr_worst_frame", "PSNR, worst frame", "dB", "high", required=True),
        Measure("psnr_worst_tile", "PSNR, worst tile", "dB", "high"),
        Measure("psnr_temporal", "PSNR, temporal difference", "dB", "high"),
        Measure("ssim_mean", "SSIM, mean", "", "high"),
        Measure("ssim_worst_frame", "SSIM, worst frame", "", "high"),
    )
    data_range: ClassVar[float] = 1.0

    def require(self, made: Any) -> None:
        """INCORRECT_NONFINITE unless all values are finite."""
        if not np.isfinite(made).all():
            bad = np.flatnonzero(~np.isfinite(made).all(axis=(1, 2, 3)))
            reason = f"{len(bad)} of {len(made)} frames hold NaN or infinity, first frame {bad[0]}"
            raise SampleError(Status.INCORRECT_NONFINITE, "finite", reason)

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `Rung.compare`; INCORRECT_FRAMES where count or size differ, ValueError for frames below 11 pixels."""
        try:
            found = metrics.compare(reference, candidate, self.data_range)
        except metrics.FramesDifferError as error:
            raise SampleError(Status.INCORRECT_FRAMES, "frames", str(error)) from error
        frame, row, column = found.worst_tile
        numbers: Numbers = {
            "psnr": found.psnr,
            "psnr_worst_frame": found.psnr_worst_frame,
            "worst_frame": found.worst_frame,
            "psnr_worst_tile": found.psnr_worst_tile,
            "worst_tile": f"frame {frame}, rows {row} to {row + metrics.TILE - 1}, "
            f"columns {column} to {column + metrics.TILE - 1}",
            # A video of one frame has no motion to judge.
            "psnr_temporal": found.psnr_temporal if len(reference) > 1 else None,
            "ssim_mean": found.ssim_mean,
            "ssim_worst_frame": found.ssim_worst_frame,
            "worst_ssim_frame": found.worst_ssim_frame,
        }
        return numbers, {"psnr_per_frame": found.psnr_per_frame, "ssim_per_frame": found.ssim_per_frame}

    def words(self, numbers: Numbers) -> str:
        """One sentence with the measures."""
        return (
            f"PSNR {numbers['psnr']:.1f} dB, "
            f"worst frame {numbers['worst_frame']} {numbers['psnr_worst_frame']:.1f} dB, "
            f"worst tile {numbers['psnr_worst_tile']:.1f} dB; "
            f"SSIM {numbers['ssim_mean']:.4f}, worst {numbers['ssim_worst_frame']:.4f}"
        )

    def worst(self, numbers: Numbers) -> str:
        """The worst frame and the worst tile."""
        return f"worst frame {numbers['worst_frame']}; worst tile at {numbers['worst_tile']}"

    def same(self, made: Any) -> str:
        """See `Rung.same`: the number of frames."""
        return f"all {len(made)} frames are"


class FileFrames(Frames):
    """8-bit frames, as stored in files; with flicker."""

    data_range = 255.0
    measures = (*Frames.measures, Measure("flicker_change", "flicker, change of energy", "dB", "low"))

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `Frames.compare`; with the energies of `flicker`."""
        numbers, series = super().compare(reference, candidate)
        found = flicker(reference, candidate, self.data_range)
        if found is None:
            return numbers | {"flicker_change": None}, series
        energies = {"flicker_energy_reference": found.reference, "flicker_energy_candidate": found.candidate}
        return numbers | {"flicker_change": abs(found.change), **energies}, series

    def words(self, numbers: Numbers) -> str:
        """One sentence with the measures."""
        if numbers["flicker_change"] is None:
            return super().words(numbers)
        more = as_number(numbers["flicker_energy_candidate"]) > as_number(numbers["flicker_energy_reference"])
        return f"{super().words(numbers)}; flicker {numbers['flicker_change']:.2g} dB {'more' if more else 'less'}"
