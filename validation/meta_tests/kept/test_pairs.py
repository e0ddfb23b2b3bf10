"""Files of every kind, alone and in two folders, through the command."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import save_file

from validation import cli
from validation.kept.kinds import SUFFIXES
from validation.media.flicker import flicker
from validation.media.mesh import write_mesh
from validation.media.video import UInt8Frames, write_video
from validation.meta_tests.report.test_report import video
from validation.record import read_run

FRAMES: UInt8Frames = video(6, 32, 48)
LATENTS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
BALL = trimesh.creation.icosphere(subdivisions=3)


def noisy(frames: UInt8Frames) -> UInt8Frames:
    noise = np.random.default_rng(0).integers(-1, 2, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def write_array(path: Path, tensor: torch.Tensor) -> None:
    if path.suffix == ".npy":
        np.save(path, tensor.numpy())
    elif path.suffix == ".npz":
        np.savez(path, latents=tensor.numpy())
    elif path.suffix == ".pt":
        torch.save({"steps": [tensor]}, path)
    else:
        save_file({"latents": tensor}, path)


@pytest.fixture(name="folders")
def make_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """One right file of each kind on both sides."""
    monkeypatch.chdir(tmp_path)
    for side in ("a", "b"):
        folder = tmp_path / side
        (folder / "below").mkdir(parents=True)
        write_video(folder / "below" / "clip.npz", FRAMES)
        write_video(folder / "clip.mkv", FRAMES)
        iio.imwrite(folder / "still.png", FRAMES[0])
        for suffix in (".npy", ".npz", ".pt", ".safetensors"):
            write_array(folder / f"latents{suffix}", LATENTS)
        for suffix in (".glb", ".obj", ".stl"):
            write_mesh(folder / f"ball{suffix}", BALL)
        (folder / "notes.txt").write_text("no video")
    return tmp_path / "a", tmp_path / "b"


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = cli.main(["compare", *shlex.split(arguments), "--json", "results.json"])
    return status, capsys.readouterr().out.splitlines()


def results() -> dict[str, Any]:
    pairs = json.loads(Path("results.json").read_text())["pairs"]
    return {pair["name"]: pair for pair in pairs}


@pytest.mark.usefixtures("folders")
def test_equal_folders_pass_with_one_line_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run("a b", capsys)
    assert status == cli.PASSED
    assert len(lines) == 10 + 2
    assert all("PASSED (bit-exact): " in line for line in lines[:10])
    assert lines[10:] == ["10 pairs: 10 PASSED", "not compared, of no kind that can be: notes.txt"]
    held = json.loads(Path("results.json").read_text())
    assert (held["exit_status"], held["left_out"]) == (0, ["notes.txt"])
    assert {pair["kind"] for pair in held["pairs"]} == {"video", "image", "arrays", "mesh"}
    assert {Path(pair["name"]).suffix for pair in held["pairs"]} == {*SUFFIXES} - {".mp4"}


def test_each_pair_has_its_own_verdict_and_a_missing_one_fails(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    write_video(b / "below" / "clip.npz", noisy(FRAMES))
    write_video(b / "clip.mkv", np.ascontiguousarray(FRAMES[:, ::-1]))
    (b / "still.png").unlink()
    (a / "latents.pt").unlink()
    status, lines = run("a b", capsys)
    assert status == cli.FAILED
    found = {name: pair["status"] for name, pair in results().items() if pair["tier"] != "bit-exact"}
    assert found == {
        "below/clip.npz": "INCONCLUSIVE",
        "clip.mkv": "BROKEN_FRAMES",
        "still.png": "MISSING_FILE",
        "latents.pt": "MISSING_FILE",
    }
    assert any("the candidate has no still.png, which the reference has" in line for line in lines)
    assert any("the reference has no latents.pt, which the candidate has" in line for line in lines)
    assert lines[-2] == "10 pairs: 6 PASSED, 1 INCONCLUSIVE, 1 BROKEN_FRAMES, 2 MISSING_FILE"
    (a / "latents.pt").unlink(missing_ok=True)
    (b / "latents.pt").unlink()
    (a / "still.png").unlink()
    (b / "clip.mkv").write_bytes((a / "clip.mkv").read_bytes())
    assert run("a b", capsys)[0] == cli.INCONCLUSIVE


def test_a_file_of_floors_is_for_all_kinds_of_a_folder(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, b = folders
    write_video(b / "below" / "clip.npz", noisy(FRAMES))
    write_array(b / "latents.npy", LATENTS + 1e-6)
    write_mesh(b / "ball.stl", trimesh.creation.icosphere(subdivisions=3, radius=1.0001))
    bounds: dict[str, Any] = {
        "floors": {"psnr_worst_frame": 40},
        "ceilings": {"array_rms": 1e-5, "mesh_candidate_max": 1e-3},
    }
    Path("floors.json").write_text(json.dumps(bounds))
    assert run("a b --floors floors.json", capsys)[0] == cli.PASSED
    status, lines = run("a b --floors helios-trained", capsys)
    assert status == cli.INCONCLUSIVE
    assert sum("floor: helios-trained has none for arrays; " in line for line in lines) == 1
    assert lines[-2] == "10 pairs: 8 PASSED, 2 INCONCLUSIVE"
    for section, name, bound in (("ceilings", "array_rms", 1e-8), ("ceilings", "mesh_candidate_max", 1e-6)):
        Path("floors.json").write_text(json.dumps(bounds | {section: bounds[section] | {name: bound}}))
        status, lines = run("a b --floors floors.json", capsys)
        assert status == cli.FAILED
        assert sum(f"past the gate: {name} " in line for line in lines) == 1


def test_a_second_folder_measures_the_floor_of_each_pair(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, b = folders
    second = Path("c")
    second.mkdir()
    for size, status in ((2e-6, cli.PASSED), (4e-6, cli.FAILED)):
        write_array(second / "latents.npy", LATENTS + 1e-6)
        write_array(b / "latents.npy", LATENTS + size)
        assert run("a b --second-reference c", capsys)[0] == status
        pair = results()["latents.npy"]
        assert pair["bounds"] == "second reference"
        assert pair["numbers"]["ceiling_array_max"] > 1e-6


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_arrays(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_array(Path(f"a{suffix}"), LATENTS)
    nan, other = LATENTS.clone(), LATENTS.clone()
    nan[0, 0, 0], other[1, 2, 3] = torch.nan, other[1, 2, 3] + 0.5
    for changed, expected, says in (
        (LATENTS, "PASSED", "equal bit for bit"),
        (other, "INCONCLUSIVE", "greatest 0.5 in "),
        (nan, "INCORRECT_NONFINITE", "1 of 24 values of "),
        (LATENTS[:1], "INCORRECT_SHAPE", "has the shape [1, 3, 4], expected [2, 3, 4]"),
        (LATENTS.double(), "INCORRECT_DTYPE", "is torch.float64, expected torch.float32"),
    ):
        write_array(Path(f"b{suffix}"), changed.contiguous())
        _, (line,) = run(f"a{suffix} b{suffix}", capsys)
        assert line.startswith(expected)
        assert says in line
    numbers = {}
    write_array(Path(f"b{suffix}"), other)
    run(f"a{suffix} b{suffix}", capsys)
    numbers = results()[""]["numbers"]
    assert numbers["array_differing"] == pytest.approx(1 / 24)
    assert numbers["array_max"] == pytest.approx(0.5)
    assert numbers["array_rms"] == pytest.approx(0.5 / 24**0.5 / float(LATENTS.double().std(correction=0)), rel=1e-6)
    Path(f"b{suffix}").write_bytes(Path(f"a{suffix}").read_bytes()[:40])
    status, (line,) = run(f"a{suffix} b{suffix}", capsys)
    assert (status, line.split(":")[0]) == (cli.FAILED, "INCORRECT_STRUCTURE")


def test_bits_of_bfloat16_and_of_zero_differ_though_the_values_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    zero = torch.zeros(4, dtype=torch.bfloat16)
    save_file({"x": zero}, "a.safetensors")
    save_file({"x": -zero}, "b.safetensors")
    status, (line,) = run("a.safetensors b.safetensors", capsys)
    assert status == cli.INCONCLUSIVE
    assert "100 % of its values differ" in line
    save_file({"y": zero}, "b.safetensors")
    status, (line,) = run("a.safetensors b.safetensors", capsys)
    assert (status, line) == (
        cli.FAILED,
        "INCORRECT_STRUCTURE: candidate lacks the arrays: x; and has others: y; expected x",
    )


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".stl"])
def test_meshes(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_mesh(Path(f"a{suffix}"), BALL)
    write_mesh(Path(f"b{suffix}"), trimesh.creation.icosphere(subdivisions=3, radius=1.01))
    status, (line,) = run(f"a{suffix} b{suffix}", capsys)
    assert status == cli.INCONCLUSIVE
    assert line.startswith("INCONCLUSIVE: not judged against a measured floor, expected ")
    # 0.01 of a diagonal of 2 sqrt(3).
    assert results()[""]["numbers"]["mesh_candidate_rms"] == pytest.approx(0.01 / 12**0.5, rel=0.05)
    hole = trimesh.Trimesh(BALL.vertices, BALL.faces[1:], process=False)
    write_mesh(Path(f"b{suffix}"), hole)
    status, (line,) = run(f"a{suffix} b{suffix}", capsys)
    # An .stl has no edges that faces share.
    if suffix != ".stl":
        assert (status, line) == (
            cli.FAILED,
            "BELOW_FLOOR: past the gate: the mesh is not watertight, as the reference is",
        )
    for content in (b"", b"nothing"):
        Path(f"b{suffix}").write_bytes(content)
        status, (line,) = run(f"a{suffix} b{suffix}", capsys)
        assert (status, line.split(":")[0]) == (cli.FAILED, "DEGENERATE_MESH")


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    iio.imwrite("a.png", FRAMES[0])
    for picture, expected in (
        (FRAMES[0], "PASSED (bit-exact): the picture is equal bit for bit"),
        (noisy(FRAMES)[0], "INCONCLUSIVE: not judged against a measured floor"),
        (FRAMES[0][::-1], "BROKEN_FRAMES: upside down; "),
        (FRAMES[0][:16], "INCORRECT_FRAMES: candidate frames have shape [1, 16, 48, 3]"),
        (FRAMES[0][..., 0], "INCORRECT_FRAMES: candidate frames have shape [1, 32, 48, 1]"),
        (FRAMES[0, ..., 0].astype(np.uint16) * 257, "INCORRECT_FRAMES: b.png holds uint16 "),
    ):
        iio.imwrite("b.png", picture)
        _, lines = run("a.png b.png", capsys)
        assert lines[0].startswith(expected)


def test_flicker_is_the_energy_of_the_differences_of_successive_frames() -> None:
    still = np.repeat(FRAMES[:1], 6, axis=0)
    blinking = still.copy()
    blinking[1::2] += 2
    found = flicker(still, blinking, 255.0)
    assert found is not None
    assert (found.reference, found.candidate) == (0.0, 4.0)
    assert found.change == pytest.approx(10 * np.log10((4 + 1 / 6) / (1 / 6)))
    back, same = flicker(blinking, still, 255.0), flicker(FRAMES, FRAMES + 3, 255.0)
    assert back is not None
    assert back.change == -found.change
    assert same is not None
    assert same.change == pytest.approx(0, abs=1e-12)
    assert flicker(FRAMES[:1], FRAMES[:1], 255.0) is None
    floats = flicker(still / 255, blinking / 255, 1.0)
    assert floats is not None
    assert floats.change == pytest.approx(found.change)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nowhere b", "reference: no file or folder nowhere, expected a folder or a file that ends in one of: .npz, "),
        ("a nowhere", "candidate: no file or folder nowhere, expected a folder"),
        ("a a/clip.mkv", "candidate: a/clip.mkv is a file, expected a folder"),
        ("a/clip.mkv b", "candidate: b is a folder, expected a file"),
        ("a/notes.txt b/notes.txt", "reference: a/notes.txt ends in '.txt', expected one of: .npz, .mp4, .mkv, .png"),
        ("a/clip.mkv b/ball.stl", "candidate: b/ball.stl ends in '.stl', expected one of: .npz, .mp4, .mkv"),
        ("cut.mkv b/clip.mkv", "reference: cut.mkv is damaged"),
        ("cut.glb b/ball.glb", "reference: cut.glb is damaged"),
        ("text.npy b/latents.npy", "reference: text.npy is damaged"),
        ("empty b", "reference: empty has no file that ends in one of: .npz, "),
        (
            "a b --floors nowhere.json",
            "--floors: no file nowhere.json, expected a JSON file of bounds or one of: helios-",
        ),
        ("a b --floors helios", "--floors: no file helios, expected a JSON file of bounds or one of: helios-"),
        ("a b --floors odd.json", "--floors: odd.json: unknown name 'psnrr', expected some of: psnr, "),
        ("a b --floors cut.json", "--floors: cannot read cut.json"),
        ("a/ball.stl b/ball.stl --floors helios-trained", "--floors: helios-trained has no bound on these files"),
        (
            "a b --floors helios-trained --second-reference c",
            "--second-reference: no file or folder c, expected a folder",
        ),
        ("a b --floors helios-trained --second-reference a", "--second-reference: given beside --floors"),
        ("a b --second-reference a/clip.mkv", "--second-reference: a/clip.mkv is a file, expected a folder"),
        ("a/still.png near.png --second-reference cut.png", "--second-reference: cut.png: cut.png is damaged"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cut.mkv", "cut.glb", "cut.json", "cut.png"):
        Path(name).write_bytes(b"{ cut")
    np.save("text.npy", np.array(["text"]))
    iio.imwrite("near.png", noisy(FRAMES)[0])
    Path("empty").mkdir()
    Path("odd.json").write_text('{"floors": {"psnrr": 1}}')
    before = sorted(map(str, Path().rglob("*")))
    assert cli.main(["compare", *shlex.split(arguments), "--json", "results.json"]) == cli.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    # Of a folder the pairs before it are named as they are judged.
    assert err.splitlines()[-1].startswith(f"validate: {says}")
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_report_shows_every_pair(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folders
    write_video(b / "clip.mkv", np.ascontiguousarray(FRAMES[::-1]))
    iio.imwrite(a / "still.png", FRAMES[0, ..., 0])
    iio.imwrite(b / "still.png", noisy(FRAMES)[0, ..., 0])
    (b / "ball.glb").unlink()
    status, lines = run("a b --out out", capsys)
    assert (status, lines[-1]) == (cli.FAILED, "report: out/report.html")
    _, records = read_run(Path("out"))
    assert {record.subject: str(record.status) for record in records} == {
        name: pair["status"] for name, pair in results().items()
    }
    page = Path("out/report.html").read_text()
    assert "reversed (all 6 frames): MSE " in page
    assert "the candidate has no ball.glb, which the reference has" in page
    assert "No frames of" not in page
    assert page.count('class="player"') == 3
    for record in records:
        assert all((Path("out") / file).is_file() for file in record.artifacts.values())
    (clip,) = (record for record in records if record.subject == "clip.mkv")
    assert clip.repro == "validate compare a/clip.mkv b/clip.mkv"
    assert cli.main(["compare", "a", "b", "--out", "out"]) == cli.USAGE
    assert "--out: out holds a run already" in capsys.readouterr().err


def test_a_repeat_line_names_the_second_reference_of_its_pair(folders: tuple[Path, Path]) -> None:
    """Without it the repetition would be judged by no floor, and be another verdict."""
    _, b = folders
    second = b.parent / "c"
    shutil.copytree(b, second)
    write_video(second / "clip.mkv", noisy(FRAMES))
    write_video(b / "clip.mkv", (FRAMES // 2).astype(np.uint8))
    assert cli.main(["compare", "a", "b", "--second-reference", "c", "--out", "out"]) == cli.FAILED
    (clip,) = (record for record in read_run(Path("out"))[1] if record.subject == "clip.mkv")
    assert clip.repro == "validate compare a/clip.mkv b/clip.mkv --second-reference c/clip.mkv"
    assert cli.main(shlex.split(clip.repro)[1:]) == cli.FAILED


def test_the_help_text_names_every_suffix() -> None:
    (command,) = (command for command in cli.COMMANDS if command.name == "compare")
    assert set(re.findall(r"\.\w+", command.words[0][1])) == set(SUFFIXES)
