"""Faults of frames that are planted must be named, and roundings must not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from validation import cli
from validation.media import findings
from validation.media.video import UInt8Frames, read_video, write_video
from validation.meta_tests.report.test_report import video

pytestmark = pytest.mark.unit

FRAMES: UInt8Frames = video(24, 64, 96)
ROWS, COLUMNS = slice(24, 40), slice(40, 72)


def noisy(frames: UInt8Frames, levels: int = 1, seed: int = 0) -> UInt8Frames:
    """Whole grey levels from -levels to levels, added to every value."""
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def with_tile(change: Callable[[UInt8Frames], UInt8Frames | int], frames: slice = slice(None)) -> UInt8Frames:
    made = FRAMES.copy()
    made[frames, ROWS, COLUMNS] = change(made[frames, ROWS, COLUMNS])
    return made


def levels(gain: float, shift: float) -> UInt8Frames:
    made: UInt8Frames = np.rint(FRAMES * gain + shift).clip(0, 255).astype(np.uint8)
    return made


# Name, the candidate, the finding's name, and what its reason must say.
PLANTED: tuple[tuple[str, UInt8Frames, str, str], ...] = (
    ("grey", np.full_like(FRAMES, 128), "uniform", "all 24 frames"),
    ("some_black", np.concatenate([FRAMES[:20], 0 * FRAMES[20:]]), "uniform", "frames 20 to 23 of 24"),
    ("upside_down", FRAMES[:, ::-1], "upside down", "all 24 frames"),
    ("mirrored", FRAMES[:, :, ::-1], "left and right flipped", "all 24 frames"),
    ("turned", FRAMES[:, ::-1, ::-1], "turned by 180 degrees", "all 24 frames"),
    ("reversed", FRAMES[::-1], "reversed", "all 24 frames"),
    ("half_frozen", FRAMES[np.minimum(np.arange(24), 12)], "frozen", "frames 13 to 23 of 24"),
    ("red_and_blue", FRAMES[..., ::-1], "red and blue swapped", "all 24 frames"),
    ("channels", FRAMES[..., [1, 2, 0]], "channels in the order green, blue, red", "all 24 frames"),
    ("upside_down_blue", FRAMES[:, ::-1, :, ::-1], "upside down, red and blue swapped", "all 24 frames"),
    ("late", FRAMES[[0, *range(23)]], "off by 1 frame", "1 frame earlier"),
    ("early", FRAMES[[*range(1, 24), 23]], "off by 1 frame", "1 frame later"),
    ("rolled", np.roll(FRAMES, 3, axis=0), "off by 3 frames", "3 frames earlier"),
    (
        "dropped_and_doubled",
        FRAMES[[*range(6), *range(7, 19), *range(18, 24)]],
        "frames dropped and doubled",
        "dropped: 6; doubled: 18",
    ),
    ("two_swapped", FRAMES[[*range(7), 8, 7, *range(9, 24)]], "frames out of order", "frames 7 to 8 of 24"),
    ("tile", with_tile(lambda tile: 255 - tile), "one part differs alone", "rows 24 to 39, columns 40 to 71"),
    ("one_tile_black", with_tile(lambda _: 0, slice(9, 10)), "one part differs alone", "frame 9 of 24"),
    ("limited", levels(219 / 255, 16), "limited range taken for full range", "all 24 frames"),
    ("full", levels(255 / 219, -16 * 255 / 219), "full range taken for limited range", "all 24 frames"),
    ("brighter", levels(1, 4), "level shift", "shift +4.0 grey levels"),
    ("contrast", levels(0.8, 30), "gain and level shift", "gain 0.8, shift +30.0 grey levels"),
    ("negative", 255 - FRAMES, "levels inverted", "gain -1"),
)


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize(("candidate", "name", "says"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_fault_is_named_and_nothing_else_is(candidate: UInt8Frames, name: str, says: str, noise: int) -> None:
    if name == "uniform":
        noise //= 2  # two levels of noise are no uniform colour
    found = findings.find(FRAMES, noisy(candidate, noise))
    assert [one.name for one in found] == [name]
    if noise == 0 or name != "gain and level shift":
        assert says in found[0].reason
    assert "\n" not in found[0].reason
    assert found[0].as_it_stands >= findings.MARGIN * found[0].undone


@pytest.mark.parametrize(("candidate", "name", "says"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_the_right_video_of_each_planted_one_has_none(candidate: UInt8Frames, name: str, says: str) -> None:
    """Each planted video as its own reference: what is found is a fault of the candidate, not of the picture."""
    assert findings.find(candidate, noisy(candidate)) == [], (name, says)


@pytest.mark.parametrize("levels", [0, 1, 2, 4])
def test_noise_has_no_finding(levels: int) -> None:
    """Beside a still scene, a flat one, a dark one, few frames and few pixels."""
    scenes = (
        FRAMES,
        np.repeat(FRAMES[:1], 24, axis=0),
        np.full_like(FRAMES, 128),
        FRAMES // 32,
        FRAMES[:1],
        FRAMES[:2, :11, :11],
        noisy(np.repeat(FRAMES[:1], 24, axis=0), seed=1),
        np.repeat(FRAMES[..., :1], 3, axis=3),
        FRAMES[:, :, :, :1],
    )
    for n, scene in enumerate(scenes):
        assert findings.find(scene, noisy(scene, levels, seed=10 + levels)) == [], n


def test_other_right_differences_have_no_finding() -> None:
    one_value = FRAMES.copy()
    one_value[3, 4, 5, 0] ^= 255
    cut_off = np.where(np.random.default_rng(0).random(FRAMES.shape) < 0.5, FRAMES, FRAMES - 1).astype(np.uint8)
    moved = FRAMES.copy()
    y, x = np.mgrid[:64, :96]
    disc = [(x - 96 * n / 24 - 1) ** 2 + (y - 32) ** 2 < 64 for n in range(24)]
    moved[np.stack(disc)] = (230, 180, 60)
    for candidate in (one_value, cut_off, FRAMES - 1, moved):
        assert findings.find(FRAMES, candidate) == []


def test_a_tile_of_another_place_in_each_frame_is_one_finding() -> None:
    made = FRAMES.copy()
    for t in range(24):
        made[t, 2 * t : 2 * t + 16, 3 * t : 3 * t + 16] = 255 - made[t, 2 * t : 2 * t + 16, 3 * t : 3 * t + 16]
    (found,) = findings.find(FRAMES, noisy(made))
    assert found.reason.endswith("without rows 0 to 15, columns 0 to 15 and 23 other places")
    # Growing, it is a thing of the picture.
    growing = FRAMES.copy()
    for t in range(24):
        growing[t, 8 : 20 + t, 8 : 24 + 2 * t] += 40
    assert findings.find(FRAMES, growing) == []


def test_the_loss_of_an_encoder_has_no_finding(tmp_path: Path) -> None:
    for noise in (0.0, 2.0):
        frames = video(24, 64, 96, noise=noise)
        write_video(tmp_path / "lossy.mp4", frames)
        lossy = read_video(tmp_path / "lossy.mp4")
        assert not np.array_equal(frames, lossy)
        assert findings.find(frames, lossy) == []
        assert [one.name for one in findings.find(frames, lossy[::-1])] == ["reversed"]


def test_the_margin_is_what_keeps_noise_from_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the nearest of all frames of a still scene is another one by chance: the tests above can fail."""
    still = np.repeat(FRAMES[:1], 24, axis=0)
    monkeypatch.setattr("validation.media.findings.order.MARGIN", 0.99)
    assert findings.find(still, noisy(noisy(still, 2), 2, seed=1))


def test_averaging_large_frames_finds_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validation.media.findings.order._PRODUCTS", 2.0**20)
    monkeypatch.setattr("validation.media.findings.order._VALUES", 2**12)
    for candidate, name in ((FRAMES[::-1], "reversed"), (np.roll(FRAMES, 3, axis=0), "off by 3 frames")):
        assert [one.name for one in findings.find(FRAMES, noisy(candidate))] == [name]
    assert findings.find(FRAMES, noisy(FRAMES, 2)) == []


@pytest.mark.parametrize("wrong", [FRAMES[:5], FRAMES.astype(np.float32), FRAMES[0]])
def test_frames_of_another_form_are_refused(wrong: UInt8Frames) -> None:
    with pytest.raises(ValueError, match=r"candidate is .*, expected uint8 \[T, H, W, C\] = \[24, 64, 96, 3\]"):
        findings.find(FRAMES, wrong)


@pytest.mark.parametrize(("name", "candidate", "said"), [row[:3] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_fault_fails_the_command_without_floors(
    name: str, candidate: UInt8Frames, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "reference.npz", tmp_path / f"{name}.npz", tmp_path / "results.json"]
    write_video(paths[0], FRAMES)
    write_video(paths[1], np.ascontiguousarray(noisy(candidate)))
    assert cli.main(["compare", *map(str, paths[:2]), "--json", str(paths[2])]) == cli.FAILED
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"BROKEN_FRAMES: {said}; PSNR ")
    assert second.startswith(f"  {said} (")
    (pair,) = json.loads(paths[2].read_text())["pairs"]
    assert (pair["status"], [one["name"] for one in pair["findings"]]) == ("BROKEN_FRAMES", [said])
    assert pair["findings"][0]["reason"] == second.strip()
