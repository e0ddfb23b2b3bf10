import json
import math
from pathlib import Path

import pytest
import torch

from validation.drift.cache import PromptBand, hash_latents
from validation.errors import UsageError
from validation.files import default_folder, hash_files

IDENTITY = {"checkpoint": "abc", "prompt": {"name": "ball", "seed": 0}}
TRUTH = [torch.ones(2), torch.zeros(2)]


def kept(folder: Path) -> PromptBand:
    band = PromptBand(folder, IDENTITY)
    assert band.begin(TRUTH)
    band.put("lossless", 0, [0.25, math.inf])
    band.put("close", 3, [0.5, 1.0])
    return band


def test_finished_replays_are_found_again(tmp_path: Path) -> None:
    kept(tmp_path)
    told: list[str] = []
    band = PromptBand(tmp_path, IDENTITY, told.append)
    assert band.begin(TRUTH)
    assert band.get("lossless", 0) == [0.25, math.inf]
    assert band.get("close", 3) == [0.5, 1.0]
    assert band.get("close", 0) is None
    assert told == []
    assert [path.suffix for path in band.path.parent.iterdir()] == [".json"]  # no temporary file is left


def test_another_identity_is_another_file(tmp_path: Path) -> None:
    kept(tmp_path)
    for other in ({**IDENTITY, "checkpoint": "abd"}, {**IDENTITY, "prompt": {"name": "ball", "seed": 1}}):
        assert PromptBand(tmp_path, other).get("lossless", 0) is None


def test_distances_to_another_truth_are_dropped(tmp_path: Path) -> None:
    kept(tmp_path)
    band = PromptBand(tmp_path, IDENTITY)
    assert not band.begin([torch.ones(2), torch.full((2,), -0.0)])  # other bits
    assert band.get("lossless", 0) is None


@pytest.mark.parametrize("damage", ["cut", "number", "format", "binary", "list"])
def test_a_damaged_file_is_reported_and_made_again(tmp_path: Path, damage: str) -> None:
    path = kept(tmp_path).path
    text = path.read_text()
    match damage:
        case "cut":
            path.write_text(text[: len(text) // 2])
        case "number":
            path.write_text(text.replace("0.25", "0.26"))
        case "format":
            path.write_text(json.dumps({**json.loads(text), "format": 2}))
        case "binary":
            path.write_bytes(b"\xff\x00\xfe")
        case "list":
            path.write_text("[1]")
    told: list[str] = []
    band = PromptBand(tmp_path, IDENTITY, told.append)
    assert band.get("lossless", 0) is None
    assert len(told) == 1
    assert f"the cached band {path} is damaged" in told[0]
    band.begin(TRUTH)
    band.put("lossless", 0, [1.0])
    assert PromptBand(tmp_path, IDENTITY).get("lossless", 0) == [1.0]


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    band = PromptBand(tmp_path / "file", IDENTITY)
    band.begin(TRUTH)
    with pytest.raises(UsageError, match=r"--cache: cannot write .*expected a writable folder"):
        band.put("lossless", 0, [1.0])


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/fused-op-validation")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "fused-op-validation"


def test_a_content_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "part" / "deep").mkdir(parents=True)
    weights = tmp_path / "part" / "deep" / "weights"
    weights.write_bytes(b"1")
    first = hash_files([tmp_path / "part"])
    assert hash_files([tmp_path / "part"]) == first
    weights.write_bytes(b"2")
    assert hash_files([tmp_path / "part"]) != first
    weights.write_bytes(b"1")
    weights.rename(weights.with_name("others"))
    assert hash_files([tmp_path / "part"]) != first
    with pytest.raises(UsageError, match=r"cannot read .*nowhere"):
        hash_files([tmp_path / "nowhere"])


def test_a_latents_hash_sees_bits_shapes_and_dtypes() -> None:
    base = hash_latents([torch.zeros(2, 2)])
    assert hash_latents([torch.zeros(2, 2)]) == base
    others = [torch.full((2, 2), -0.0), torch.zeros(4), torch.zeros(2, 2, dtype=torch.int32)]
    assert len({base, *(hash_latents([t]) for t in others)}) == 4
