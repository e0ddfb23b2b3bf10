"""A run over sampled videos is killed, and the same command goes on."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from validation.meta_tests import in_a_fork
from validation.meta_tests.sampled_models import with_small_vae
from validation.record import Record, read_run
from validation.samples.store import TAKEN

PROMPTS, KILLED = 6, 3


def words(folder: Path, cache: str, out: str) -> list[str]:
    options = {
        "--ops": "validation.controls:division",
        "--checkpoint": folder / "checkpoint",
        "--prompts": folder / "prompts.json",
        "--sites": "norm1",
        "--replays": 4,
        "--cache": folder / cache,
        "--out": folder / out,
    }
    return ["quality", "--model", "helios", *(str(word) for option in options.items() for word in option)]


def outcome(folder: Path) -> list[Record]:
    """The records without times and memory."""
    _, records = read_run(folder)
    kept = [{name: v for name, v in record.numbers.items() if not name.endswith("_mib")} for record in records]
    return [dataclasses.replace(r, seconds={}, numbers=numbers) for r, numbers in zip(records, kept, strict=True)]


def test_finished_arms_of_a_killed_run_are_read_back_and_the_outcome_is_the_same_to_the_bit(tmp_path: Path) -> None:
    shared = {"height": 32, "width": 48, "frames": 33, "steps": 2, "guidance_scale": 1.0}
    prompts = [{"name": "ball", "text": "a red ball", "seed": seed} for seed in range(PROMPTS)]
    (tmp_path / "prompts.json").write_text(json.dumps({**shared, "prompts": prompts}))
    with_small_vae(tmp_path / "checkpoint")

    command = [sys.executable, "-m", "validation", *words(tmp_path, "cache", "killed")]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    with killed.stderr:
        for line in killed.stderr:
            if f"seed {KILLED}: candidate" in line:
                killed.send_signal(signal.SIGKILL)
                break
    assert killed.wait() == -signal.SIGKILL

    runs = [
        in_a_fork.run("run_cli", *words(tmp_path, *where), folder=tmp_path)
        for where in (("cache", "again"), ("another cache", "whole"))
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    again, whole = (run.stderr for run in runs)
    taken = [line for line in again.splitlines() if TAKEN in line]
    for seed in range(PROMPTS):
        for arm in ("reference", "repetition", "candidate", "truth"):
            finished = seed < KILLED or (seed == KILLED and arm in ("reference", "repetition"))
            assert any(f"seed {seed}: {arm}, " in line for line in taken) is finished, again
    assert TAKEN not in whole
    assert outcome(tmp_path / "again") == outcome(tmp_path / "whole")
    assert len(outcome(tmp_path / "again")) == PROMPTS + 2
    for file in sorted((tmp_path / "whole").rglob("*.npz")):
        same = tmp_path / "again" / file.relative_to(tmp_path / "whole")
        with np.load(file) as first, np.load(same) as second:
            assert first["frames"].tobytes() == second["frames"].tobytes()
    # A finished run leaves none behind: the next one measures again.
    assert not list((tmp_path / "cache" / "arms").rglob("*.safetensors"))
