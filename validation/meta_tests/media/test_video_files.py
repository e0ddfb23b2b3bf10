"""Kept videos of two runs against each other, through the command."""

import re
from pathlib import Path

import numpy as np
import pytest

from validation import cli
from validation.media.video import UInt8Frames, write_video
from validation.meta_tests.report.test_report import video

FRAMES: UInt8Frames = video(6, 32, 48)


def run(folder: Path, candidate: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    write_video(folder / "reference.npz", FRAMES)
    status = cli.main(["compare", str(folder / "reference.npz"), str(folder / candidate)])
    return status, "".join(capsys.readouterr())


def test_what_is_right_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "same.mkv", FRAMES)
    status, text = run(tmp_path, "same.mkv", capsys)
    assert (status, text) == (cli.PASSED, "PASSED (bit-exact): all 6 frames are equal bit for bit\n")
    near = FRAMES.copy()
    near[2, 3, 4] ^= 1
    write_video(tmp_path / "near.npz", near)
    status, text = run(tmp_path, "near.npz", capsys)
    assert status == cli.PASSED
    assert text.startswith("PASSED: PSNR ")
    assert "worst frame 2 " in text


@pytest.mark.parametrize(
    ("name", "frames", "fps", "reason"),
    [
        ("short.npz", FRAMES[:5], 16, "candidate has 5 frames, expected 6"),
        ("short.mkv", FRAMES[:5], 16, "candidate has 5 frames, expected 6"),
        ("small.npz", FRAMES[:, :16], 16, r"candidate frames have shape \[6, 16, 48, 3\], expected \[6, 32, 48, 3\]"),
        ("slow.npz", FRAMES, 8, "candidate has 8 frames a second, expected 16"),
        ("gone.npz", None, 16, "no file .*gone.npz, expected a video"),
        ("black.npz", np.zeros_like(FRAMES), 16, "past the gate: psnr "),
    ],
)
def test_what_is_wrong_fails_and_is_never_trimmed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    frames: UInt8Frames | None,
    fps: int,
    reason: str,
) -> None:
    if frames is not None:
        write_video(tmp_path / name, frames, fps)
    status, text = run(tmp_path, name, capsys)
    assert status == cli.FAILED
    assert text.startswith("BELOW_FLOOR: " if name == "black.npz" else "INCORRECT_FRAMES: ")
    assert re.search(reason, text)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_file_cut_short_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float) -> None:
    for suffix in (".npz", ".mkv"):
        path = tmp_path / f"cut{suffix}"
        write_video(path, FRAMES)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        status, text = run(tmp_path, path.name, capsys)
        assert status == cli.FAILED
        assert text.startswith("INCORRECT_FRAMES: ")


def test_another_kind_of_file_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(tmp_path, "a.gif", capsys)
    assert status == cli.USAGE
    assert "ends in '.gif', expected one of: .npz, .mp4, .mkv" in text


def test_frames_too_small_for_ssim_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "small.npz", FRAMES[:, :10])
    status = cli.main(["compare", str(tmp_path / "small.npz"), str(tmp_path / "small.npz")])
    assert status == cli.USAGE
    assert re.search(r"reference: .*small.npz: frames have shape \[6, 10, 48, 3\]", capsys.readouterr().err)
