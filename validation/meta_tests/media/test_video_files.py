"""Kept videos of two runs against each other, through the command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from validation import cli
from validation.media.video import UInt8Frames, write_video
from validation.meta_tests.report.test_report import video

FRAMES: UInt8Frames = video(6, 32, 48)


def run(folder: Path, candidate: str, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    write_video(folder / "reference.npz", FRAMES)
    status = cli.main(["compare", str(folder / "reference.npz"), str(folder / candidate), *options])
    return status, "".join(capsys.readouterr())


def noisy(levels: int, seed: int = 0) -> UInt8Frames:
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, FRAMES.shape)
    return (FRAMES + noise).clip(0, 255).astype(np.uint8)


def test_what_is_right_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "same.mkv", FRAMES)
    status, text = run(tmp_path, "same.mkv", capsys)
    assert (status, text) == (cli.PASSED, "PASSED (bit-exact): all 6 frames are equal bit for bit\n")
    near = FRAMES.copy()
    near[2, 3, 4] ^= 1
    write_video(tmp_path / "near.npz", near)
    status, text = run(tmp_path, "near.npz", capsys, "--floors", "helios-trained")
    assert status == cli.PASSED
    assert text.startswith("PASSED: PSNR ")
    assert "worst frame 2 " in text


def test_without_floors_of_its_own_a_video_that_differs_is_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "near.npz", noisy(1))
    status, text = run(tmp_path, "near.npz", capsys)
    assert status == cli.INCONCLUSIVE
    assert len(text.splitlines()) == 1
    assert text.startswith(
        "INCONCLUSIVE: not judged against a measured floor, expected --floors or --second-reference; PSNR "
    )


def test_floors_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floors = tmp_path / "floors.json"
    write_video(tmp_path / "near.npz", noisy(1))
    for floor, status in ((48, cli.PASSED), (52, cli.FAILED)):
        floors.write_text(json.dumps({"floors": {"psnr": floor, "psnr_worst_frame": floor, "ssim_mean": 0.5}}))
        found, text = run(tmp_path, "near.npz", capsys, "--floors", str(floors))
        assert found == status
        assert ("BELOW_FLOOR: past the gate: psnr " in text) == (status == cli.FAILED)
    floors.write_text(json.dumps({"floors": {"psnr_worst_frame": 1}, "ceilings": {"flicker_change": 1e-4}}))
    found, text = run(tmp_path, "near.npz", capsys, "--floors", str(floors))
    assert found == cli.FAILED
    assert "past the gate: flicker_change " in text


def test_a_second_reference_measures_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By eight times the squared error of two levels of noise, 2; of 4 levels it is 6.7, of 8 it is 24."""
    second = tmp_path / "second.npz"
    write_video(second, noisy(2))
    options = ("--second-reference", str(second))
    for levels, status in ((1, cli.PASSED), (4, cli.PASSED), (8, cli.FAILED)):
        write_video(tmp_path / "candidate.npz", noisy(levels, seed=1))
        found, text = run(tmp_path, "candidate.npz", capsys, *options)
        assert (found, text.startswith("BELOW_FLOOR: ")) == (status, status == cli.FAILED), text
    write_video(tmp_path / "third.npz", noisy(4, seed=2))
    assert run(tmp_path, "candidate.npz", capsys, *options, options[0], str(tmp_path / "third.npz"))[0] == cli.PASSED


def test_a_second_reference_that_measures_nothing_or_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "candidate.npz", noisy(1))
    write_video(tmp_path / "same.mkv", FRAMES)
    status, text = run(tmp_path, "candidate.npz", capsys, "--second-reference", str(tmp_path / "same.mkv"))
    assert status == cli.INCONCLUSIVE
    assert "the second reference is equal to the first and measures none" in text
    write_video(tmp_path / "wrong.npz", np.ascontiguousarray(FRAMES[::-1]))
    status, text = run(tmp_path, "candidate.npz", capsys, "--second-reference", str(tmp_path / "wrong.npz"))
    assert status == cli.USAGE
    assert re.search(r"--second-reference: .*wrong.npz is reversed \(all 6 frames\): .*, expected a right sample", text)


@pytest.mark.parametrize(
    ("name", "frames", "fps", "reason"),
    [
        ("short.npz", FRAMES[:5], 16, "candidate has 5 frames, expected 6"),
        ("short.mkv", FRAMES[:5], 16, "candidate has 5 frames, expected 6"),
        ("small.npz", FRAMES[:, :16], 16, r"candidate frames have shape \[6, 16, 48, 3\], expected \[6, 32, 48, 3\]"),
        ("slow.npz", FRAMES, 8, "candidate has 8 frames a second, expected 16"),
        ("gone.npz", None, 16, "no file .*gone.npz, expected a video"),
        ("black.npz", np.zeros_like(FRAMES), 16, "uniform; PSNR "),
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
    assert text.startswith("BROKEN_FRAMES: " if name == "black.npz" else "INCORRECT_FRAMES: ")
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
    for name, frames in (("small", FRAMES), ("other", noisy(1))):
        write_video(tmp_path / f"{name}.npz", frames[:, :10])
    assert cli.main(["compare", *[str(tmp_path / "small.npz")] * 2]) == cli.PASSED
    status = cli.main(["compare", str(tmp_path / "small.npz"), str(tmp_path / "other.npz")])
    assert status == cli.USAGE
    assert re.search(r"reference: .*small.npz: frames have shape \[6, 10, 48, 3\]", capsys.readouterr().err)
