"""Finished arms on disk: which are read back, and which must not be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from validation.errors import UsageError
from validation.ops import OpSet, load_op_set
from validation.samples.rung import Sample
from validation.samples.store import ArmStore

LATENTS = [torch.arange(6.0).view(1, 3, 2) + step for step in range(2)]
DECODED = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 2, 4, 3)
OPS = load_op_set("reference_ops")
SECONDS, CALLS = {"denoise": 1.5, "decode": 0.25}, {"norm1": 4}


def read(latents: Any, decoded: Any, **measured: Any) -> Sample:
    return Sample(latents, {} if decoded is None else {"frames": decoded}, **measured)


def test_a_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ArmStore(tmp_path, {"model": "any"}, OPS)
    store.put("video", Sample(LATENTS, {}, None, SECONDS, 2**20, CALLS, 2), DECODED)
    store.put("nothing made", Sample(LATENTS), None)
    again = ArmStore(tmp_path, {"model": "any"}, OPS)
    found = again.get("video", read)
    assert found is not None
    assert np.array_equal(found.made["frames"], DECODED)
    assert all(torch.equal(a, b) for a, b in zip(found.latents, LATENTS, strict=True))
    assert (found.seconds, found.peak_bytes, found.calls, found.forwards) == (SECONDS, 2**20, CALLS, 2)
    empty = again.get("nothing made", read)
    assert empty is not None
    assert empty.made == {}
    again.clear()
    assert store.get("video", read) is None


def test_an_arm_of_another_run_or_a_damaged_one_is_not_found(tmp_path: Path) -> None:
    store = ArmStore(tmp_path, {"model": "any", "seed": 0}, OPS)
    store.put("video", Sample(LATENTS, seconds=SECONDS, calls=CALLS, forwards=2), DECODED)
    assert ArmStore(tmp_path, {"model": "any", "seed": 1}, OPS).get("video", read) is None
    other = OpSet("other", {op: function for op, function in OPS.functions.items() if op != "rms_norm"}, OPS.origin)
    assert ArmStore(tmp_path, {"model": "any", "seed": 0}, other).get("video", read) is None
    (file,) = store.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    assert store.get("video", read) is None


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "arms").write_text("a file")
    with pytest.raises(UsageError, match=r"--cache: cannot write .*expected a writable folder"):
        ArmStore(tmp_path, {}, OPS).put("shape", Sample(LATENTS), None)


def test_a_relative_path_is_another_op_set_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "kernels.py").write_text("from reference_ops import rms_norm as plain\ndef rms_norm(x): return x\n")
        monkeypatch.chdir(folder)
        found.append(ArmStore(tmp_path, {}, load_op_set("./kernels.py")).folder)
    assert found[0] != found[1]


def test_functions_made_on_the_fly_are_not_kept(tmp_path: Path) -> None:
    made = OpSet("made", {"rms_norm": lambda x: x}, "made")
    for ops, kept in ((made, False), (OpSet("made", made.functions, "module:made"), True)):
        store = ArmStore(tmp_path, {}, ops)
        store.put("shape", Sample(LATENTS))
        assert (store.get("shape", read) is not None) is kept
