import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from validation.errors import UsageError
from validation.files import require_writable
from validation.media.metrics import FramesDifferError, compare, psnr
from validation.media.video import VideoError, difference, read_video, to_uint8, write_video

Floats = npt.NDArray[np.float32]


def clip(frames: int = 9, height: int = 40, width: int = 72) -> Floats:
    """A smooth moving pattern in [0, 1]."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, height, width, 3)), indexing="ij")
    pattern: Floats = (0.5 + 0.4 * np.sin(0.1 * x + 0.07 * y + 0.3 * t + c)).astype(np.float32)
    return pattern


def test_psnr_is_the_decibels_of_the_pooled_error() -> None:
    reference = clip()
    candidate = reference + np.float32(0.01)
    assert psnr(reference, candidate, 1.0) == pytest.approx(40.0, abs=1e-3)
    candidate[0] += 0.2
    pooled = (8 * 0.01**2 + 0.21**2) / 9
    assert psnr(reference, candidate, 1.0) == pytest.approx(-10 * math.log10(pooled), abs=1e-3)
    expected = peak_signal_noise_ratio(reference.astype(float), candidate.astype(float), data_range=1.0)
    assert psnr(reference, candidate, 1.0) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_uint8_does_not_wrap() -> None:
    black, white = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    assert psnr(white, black, 255) == psnr(black, white, 255) == pytest.approx(0.0)


def test_identical_videos_are_infinitely_close() -> None:
    found = compare(clip(), clip(), 1.0)
    assert found.psnr == found.psnr_worst_frame == found.psnr_worst_tile == found.psnr_temporal == math.inf
    assert found.psnr_per_frame == [math.inf] * 9
    assert found.ssim_mean == found.ssim_worst_frame == pytest.approx(1.0)


def test_ssim_is_scikit_images_with_gaussian_weights() -> None:
    reference = clip()
    candidate = reference + np.random.default_rng(0).normal(0, 0.05, reference.shape).astype(np.float32)
    found = compare(reference, candidate, 1.0)
    expected = structural_similarity(
        reference[3],
        candidate[3],
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert found.ssim_per_frame[3] == pytest.approx(float(expected), abs=1e-6)
    assert found.ssim_mean == pytest.approx(np.mean(found.ssim_per_frame))


def test_one_black_frame_in_81_hides_in_the_mean_but_not_in_the_worst_frame() -> None:
    reference = clip(frames=81)
    candidate = reference.copy()
    candidate[41] = 0
    found = compare(reference, candidate, 1.0)
    assert found.ssim_mean > 0.98
    assert found.worst_frame == found.worst_ssim_frame == 41
    assert found.psnr_worst_frame < 10
    assert found.ssim_worst_frame < 0.1


@pytest.mark.parametrize(("row", "column", "tile"), [(0, 0, (4, 0, 0)), (33, 66, (4, 32, 64)), (5, 40, (4, 0, 32))])
def test_the_worst_tile_is_found_also_at_ragged_edges(row: int, column: int, tile: tuple[int, int, int]) -> None:
    reference = clip()
    candidate = reference.copy()
    candidate[4, row : row + 4, column : column + 4] += 0.5
    found = compare(reference, candidate, 1.0)
    assert found.worst_tile == tile
    height, width = min(32, 40 - tile[1]), min(32, 72 - tile[2])
    assert found.psnr_worst_tile == pytest.approx(-10 * math.log10(16 * 0.25 / (height * width)), abs=1e-3)
    assert found.psnr_worst_tile < found.psnr_worst_frame < found.psnr


def test_temporal_difference_sees_flicker_and_not_an_offset() -> None:
    reference = clip()
    offset = compare(reference, reference + np.float32(0.125), 1.0)
    assert offset.psnr_temporal > 100
    flicker = reference.copy()
    flicker[::2] += 0.125
    assert compare(reference, flicker, 1.0).psnr_temporal == pytest.approx(-20 * math.log10(0.125), abs=0.1)
    assert math.isnan(compare(reference[:1], reference[:1], 1.0).psnr_temporal)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("in_both", [False, True])
def test_a_value_that_is_not_finite_is_never_close(bad: float, in_both: bool) -> None:
    reference = clip()
    candidate = reference.copy()
    candidate[5, 3, 40, 1] = bad
    if in_both:
        reference[5, 3, 40, 1] = bad
    found = compare(reference, candidate, 1.0)
    assert found.worst_frame == found.worst_ssim_frame == 5
    assert found.worst_tile == (5, 0, 32)
    for value in (found.psnr, found.psnr_worst_frame, found.psnr_worst_tile, found.ssim_worst_frame):
        assert math.isnan(value)
    assert math.isnan(found.psnr_temporal)
    assert found.psnr_per_frame[4] == math.inf


def test_videos_of_other_count_or_size_are_not_compared() -> None:
    with pytest.raises(FramesDifferError, match="candidate has 8 frames, expected 9"):
        compare(clip(), clip()[:-1], 1.0)
    with pytest.raises(FramesDifferError, match=r"shape \[9, 40, 71, 3\], expected \[9, 40, 72, 3\]"):
        compare(clip(), clip(width=71), 1.0)
    with pytest.raises(FramesDifferError):
        psnr(clip(), clip()[0], 1.0)


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (1, 10, 16, 3), (16, 16, 3)])
def test_frames_that_cannot_be_judged_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[T, H, W, C\]"):
        compare(np.zeros(shape), np.zeros(shape), 1.0)


@pytest.mark.parametrize("suffix", [".npz", ".mkv"])
def test_lossless_files_give_back_every_bit(tmp_path: Path, suffix: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (7, 31, 45, 3), dtype=np.uint8)
    path = tmp_path / "made" / f"clip{suffix}"
    write_video(path, frames)
    assert np.array_equal(read_video(path, (7, 31, 45)), frames)


def test_mp4_is_h264_for_browsers(tmp_path: Path) -> None:
    frames = to_uint8(clip(frames=20))
    path = tmp_path / "clip.mp4"
    write_video(path, frames, fps=8)
    about = iio.immeta(path, plugin="FFMPEG")
    assert (about["codec"], about["fps"], about["size"]) == ("h264", 8.0, (72, 40))
    assert about["pix_fmt"].startswith("yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert psnr(frames, read_video(path, (20, 40, 72)), 255) > 30


@pytest.mark.parametrize("suffix", [".npz", ".mkv", ".mp4"])
def test_another_count_or_size_is_an_error_and_never_trimmed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, to_uint8(clip()))
    with pytest.raises(VideoError, match="has 9 frames of 40 x 72, expected 10 of 40 x 72"):
        read_video(path, (10, 40, 72))
    with pytest.raises(VideoError, match="has 9 frames of 40 x 72, expected 9 of 64 x 96"):
        read_video(path, (9, 64, 96))


@pytest.mark.parametrize("suffix", [".npz", ".mkv", ".mp4"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
def test_a_file_cut_short_is_an_error(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, to_uint8(clip(frames=33)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(VideoError, match="is damaged"):
        read_video(path)


def test_files_that_are_no_videos_are_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no file .*none\.mp4"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(VideoError, match="is damaged"):
        read_video(tmp_path / "text.mp4")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(VideoError, match="is damaged"):
        read_video(tmp_path / "other.npz")
    np.savez(tmp_path / "float.npz", frames=clip())
    with pytest.raises(VideoError, match="holds float32"):
        read_video(tmp_path / "float.npz")
    with pytest.raises(ValueError, match=r"ends in '\.gif', expected one of: \.npz, \.mkv, \.mp4|ends in '\.gif'"):
        read_video(tmp_path / "clip.gif")


@pytest.mark.parametrize(
    ("frames", "name", "reason"),
    [
        (clip(), "clip.npz", "frames are float32"),
        (np.zeros((0, 16, 16, 3), np.uint8), "clip.npz", "expected uint8"),
        (np.zeros((2, 16, 16), np.uint8), "clip.mp4", "expected uint8"),
        (np.zeros((2, 15, 16, 3), np.uint8), "clip.mp4", "15 x 16, expected even sides for mp4"),
        (np.zeros((2, 16, 16, 3), np.uint8), "clip.avi", "ends in '.avi'"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(
    tmp_path: Path, frames: npt.NDArray[np.uint8], name: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        write_video(tmp_path / "made" / name, frames)
    assert not (tmp_path / "made").exists()


def test_unwritable_folders_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="is a file, expected a folder"):
            require_writable(folder)
        with pytest.raises(UsageError, match="cannot write"):
            write_video(folder / "clip.npz", to_uint8(clip()))
    require_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_difference_is_amplified_by_the_stated_factor() -> None:
    reference = np.full((4, 16, 16, 3), 0.5, np.float32)
    candidate = reference + np.float32(1 / 256)
    shown, factor = difference(reference, candidate)
    assert (factor, shown.min(), shown.max()) == (256, 255, 255)
    candidate[0, 0, 0, 0] = 1.0  # one value in 3072 may saturate
    assert difference(reference, candidate)[1] == 256
    candidate[0] = 1.0
    assert difference(reference, candidate)[1] == 2
    assert difference(reference, reference)[0].max() == 0
    candidate[1, 0] = np.nan
    assert difference(reference, candidate)[0][1, 0].min() == 255


def test_to_uint8_rounds_to_nearest() -> None:
    values = np.array([0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.7, -0.3, np.nan], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255, 0, 0]
