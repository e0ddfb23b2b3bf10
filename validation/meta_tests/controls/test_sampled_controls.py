"""Right and wrong in a sampled model, small; ``python -m validation.controls --model helios`` runs them all."""

import dataclasses
import json
from pathlib import Path

import pytest

from validation import controls
from validation.controls import separation
from validation.controls.__main__ import main
from validation.device import select
from validation.errors import UsageError
from validation.meta_tests.sampled_models import TINY, with_small_vae
from validation.models.helios import faults
from validation.samples.planted import Planted
from validation.samples.request import Request


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    shared = {"height": 32, "width": 48, "frames": 33, "steps": 3, "guidance_scale": 1.0}
    prompts = [{"name": "ball", "text": "a red ball", "seed": seed} for seed in range(6)]
    path.write_text(json.dumps({**shared, "prompts": prompts}))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The floors are those of the checkpoint of this name.
    return with_small_vae(tmp_path_factory.mktemp("checkpoint") / TINY.name)


GATES = {
    "swapped_scale_shift_in_one_block": ("teacher-forced", "norm1 block 1"),
    "gate_dropped_in_the_last_block": ("teacher-forced", "gate block 2 feed-forward"),
    "ragged_rows_wrong": ("teacher-forced", "norm1 block 0"),
    "frame_modulation_shifted": ("teacher-forced", "norm1 block 0"),
    "rope_halves_swapped": ("teacher-forced", "rope block 0 q"),
    "black_frame": ("floors", ""),
    "dropped_frame": ("frames", ""),
    "grey_tile": ("floors", ""),
}


def test_each_fault_is_caught_by_its_gate_and_what_is_right_passes(
    checkpoint: Path, prompts: Path, cache: Path
) -> None:
    spoiled = [name for name in GATES if faults.FAULTS[name].ops is None]
    request = Request(select(gpu=False), checkpoint, prompts=prompts, cache=cache)
    # The others show in the latents: no video is decoded.
    latents = dataclasses.replace(request, until="latents")
    names = ["reference", "chunked", *(name for name in GATES if name not in spoiled)]
    separations = [*separation.separate("helios", names, latents), *separation.separate("helios", spoiled, request)]
    assert len(separations) == 2 + len(GATES)
    for found in separations:
        assert found.expected, separation.line(found)
        if found.name in GATES:
            gate, place = GATES[found.name]
            assert gate in found.failed
            if found.teacher is not None:
                numbers = found.teacher.numbers
                assert f"{numbers['first_site']} {numbers['first_place']}" == place
                assert found.band is not None
                assert found.band.status.failed
        else:
            assert (found.failed, found.inconclusive) == ((), ())


def test_the_table_has_a_line_for_each_control(
    checkpoint: Path, prompts: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--checkpoint", str(checkpoint), "--prompts", str(prompts), "--cache", str(cache)]
    assert main(["--model", "helios", "division", "grey_tile", "eps_times_10", *told]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["division", "grey_tile", "eps_times_10"]
    assert "as it must" in lines[2]
    assert "shown" in lines[4]
    assert lines[5].startswith("shown: no verdict is asked for. At unit variance")
    assert lines[-1] == "0 verdicts are not as they must be"


def test_a_fault_that_passed_turns_the_command_red(
    checkpoint: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(prompts.read_text())
    one = tmp_path / "prompts.json"
    one.write_text(json.dumps({**content, "prompts": content["prompts"][:1], "steps": 1}))
    harmless = Planted("Nothing is wrong.", frozenset({"floors"}), spoil=lambda sample, _model: sample)
    monkeypatch.setitem(faults.FAULTS, "grey_tile", harmless)
    told = ["--checkpoint", str(checkpoint), "--prompts", str(one), "--cache", str(tmp_path)]
    assert main(["--model", "helios", "grey_tile", *told]) == 1
    assert "1 verdicts are not as they must be: grey_tile" in capsys.readouterr().out


def test_controls_are_op_sets_by_name() -> None:
    select(gpu=False)
    for name, fault in {**faults.FAULTS, **faults.SHOWN}.items():
        if fault.ops is None:
            with pytest.raises(UsageError, match=f"unknown control '{name}'"):
                faults.op_set(name)
        else:
            assert faults.op_set(name).origin == f"validation.models.helios.faults:{name}"
    assert set(separation.names("helios")) == {*controls.NAMES, *faults.FAULTS, *faults.SHOWN}
    with pytest.raises(UsageError, match="unknown control 'nothing'"):
        next(separation.separate("helios", ["nothing"], Request(select(gpu=False))))


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "helios", "--cases", "5"]) == 2
    assert "expected none of them with --model" in capsys.readouterr().err
    assert main(["--model", "helios", "--replays", "2"]) == 2
    assert "--replays: 2, expected at least 4" in capsys.readouterr().err
    for model in ("helios", "hunyuan3d"):
        assert main(["--model", model, "--replays", "0"]) == 2
        assert "--replays: 0" in capsys.readouterr().err
