"""The record of what only a GPU shows: its commands, and resuming where it was stopped. Needs no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import reference_ops
from validation import cli

ROOT = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def record() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_record", ROOT / "benchmarks" / "gpu_record.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look for the module of a class there.
    sys.modules["gpu_record"] = module
    spec.loader.exec_module(module)
    return module


def test_every_op_and_both_models_have_their_parts(record: Any, tmp_path: Path) -> None:
    parts = list(record.parts(record.STEPS, reference_ops.OP_NAMES, "default", tmp_path, tmp_path))
    names = [part.name for part in parts]
    assert len(names) == len(set(names)) == 5 * len(reference_ops.OP_NAMES) + 8
    for part in parts:
        words = part.command[part.command.index("validation") + 1 :]
        if part.name == "ops table":
            words = (*words, "results.json")
        arguments = cli._parser().parse_args(words)
        assert part.name == "ops table" or arguments.gpu
        if arguments.command == "bench" and arguments.bench == "denoise":
            from validation.bench import denoise
            from validation.ops import load_op_set

            denoiser = denoise.denoiser_of(arguments.model)("tiny", "cpu", weights=False)
            assert denoise.chosen_arms(denoiser, load_op_set("reference_ops"), arguments.arm)


@pytest.mark.parametrize("step", ["parity", "faults", "ops", "memcheck"])
def test_the_commands_ask_for_a_gpu_and_nothing_that_the_command_line_refuses(
    record: Any, step: str, tmp_path: Path
) -> None:
    part = next(record.parts([step], ["layer_norm"], "default", tmp_path, tmp_path))
    command = part.command[part.command.index(sys.executable) :]
    done = subprocess.run(command, env=os.environ | dict(part.environment), capture_output=True, text=True)
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stdout
    else:
        assert "no usable GPU" in done.stderr
        assert done.returncode == cli.USAGE


def test_the_parts_are_listed_without_a_gpu(tmp_path: Path) -> None:
    words = ["--list", "--steps", "faults", "denoise", "--op", "rms_norm", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_record.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *denoise = done.stdout.splitlines()
    assert first.startswith("faults rms_norm: ")
    assert len(denoise) == 6
    assert "--arm 'all sites'" in denoise[0]
    assert "denoise helios torch.compile, its drift" in denoise[2]
    assert not list(tmp_path.iterdir())


def python(record: Any, name: str, code: str) -> Any:
    return record.Part(name, (sys.executable, "-c", code))


def test_it_goes_on_where_it_was_stopped(record: Any, tmp_path: Path) -> None:
    path, runs = tmp_path / "out" / "record.json", tmp_path / "runs"
    count = f"open({str(runs)!r}, 'a').write('x')"
    good, bad = python(record, "good", f"{count}; print('well')"), python(record, "bad", "raise SystemExit(1)")
    absent = record.Part("absent", ("no-such-tool", "--gpu"))

    def go_on(*parts: Any, seconds: float = 60, commit: str = "abc", **options: Any) -> int:
        limits: dict[str, Any] = {"limit": 30.0, "until": time.monotonic() + seconds} | options
        status: int = record.go_on(path, {"commit": commit}, lambda: iter(parts), **limits)
        return status

    assert go_on(good, bad, absent) == 1
    kept = json.loads(path.read_text())["parts"]
    assert [kept[name]["status"] for name in ("good", "bad", "absent")] == [0, 1, None]
    assert kept["good"]["printed"] == "well\n"
    assert "not on the PATH" in kept["absent"]["reason"]
    assert go_on(good, commit="abc+") == 0
    assert go_on(good, absent) == 3
    assert runs.read_text() == "x"
    assert go_on(good, again=True) == go_on(good, commit="def") == 0
    assert runs.read_text() == "xxx"
    assert go_on(good, python(record, "bad", "pass"), commit="def") == 0
    assert json.loads(path.read_text())["parts"]["bad"]["status"] == 0
    assert go_on(good, python(record, "late", "pass"), seconds=-1, commit="def") == 3


def test_a_part_that_failed_runs_again_though_its_run_folder_is_there(record: Any, tmp_path: Path) -> None:
    for step in ("parity", "faults", "memcheck", "racecheck"):
        part = next(record.parts([step], ["layer_norm"], "quick", tmp_path, tmp_path))
        assert part.command[part.command.index("--out") + 1] == str(part.folder)
    folder = tmp_path / "parity-rms_norm"
    code = f"import pathlib; pathlib.Path({str(folder)!r}).mkdir(parents=True); raise SystemExit(1)"
    part = record.Part("fails", (sys.executable, "-c", code), folder=folder)
    assert [record.run(part, 30.0)["status"] for _ in range(2)] == [1, 1]
    assert "FileExistsError" not in record.run(part, 30.0)["printed"]


def test_a_part_that_hangs_is_stopped_with_what_it_started(record: Any, tmp_path: Path) -> None:
    path, alive = tmp_path / "record.json", tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    hangs = python(record, "hangs", code)
    until = time.monotonic() + 60
    assert record.go_on(path, {"commit": "abc"}, lambda: iter([hangs]), limit=2.0, until=until) == 1
    kept = json.loads(path.read_text())["parts"]["hangs"]
    assert (kept["status"], kept["printed"]) == (124, "begun\n")
    # If the whole call's time runs out first, the part is still to do and has not failed.
    until = time.monotonic() + 1
    assert record.go_on(path, {"commit": "def"}, lambda: iter([hangs]), limit=30.0, until=until) == 3
    assert json.loads(path.read_text())["parts"]["hangs"]["commit"] == "abc"
    time.sleep(3)
    assert not alive.exists()
