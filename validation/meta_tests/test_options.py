"""One table makes the command lines, pytest's options and the repeat lines."""

import argparse
import json
import shlex
from collections import Counter
from pathlib import Path

import pytest

from validation import cli, options

pytestmark = pytest.mark.unit


def test_no_command_has_two_options_of_one_name_and_each_option_has_a_command() -> None:
    commands = {command.name for command in cli.COMMANDS} | {"pytest"}
    for command in commands:
        counts = Counter(option.name for option in options.options_of(command))
        assert set(counts.values()) <= {1}, command
    for option in options.table():
        assert option.commands, option.name
        assert set(option.commands) <= commands, option.name


def test_a_repeat_line_leaves_defaults_out_and_is_read_back() -> None:
    line = options.repeat_line(
        "quality",
        always=("ops",),
        model="helios",
        ops="fused_ops",
        sites=("norm1", "norm2"),
        checkpoint=Path("a folder"),
        seed=0,
        replays=8,
        require=None,
        guidance=2.5,
        image=[Path("a.png"), Path("b.png")],
        gpu=True,
    )
    assert line == (
        "validate quality --model helios --ops fused_ops --sites norm1,norm2 --checkpoint 'a folder' --guidance 2.5 "
        "--image a.png --image b.png --gpu"
    )
    parser = argparse.ArgumentParser()
    options.add_options(parser, "quality")
    read = parser.parse_args(shlex.split(line)[2:])
    assert (read.sites, read.image, read.gpu) == (("norm1", "norm2"), [Path("a.png"), Path("b.png")], True)
    assert options.repeat_line("parity", isolate=False) == "validate parity --no-isolate"
    assert options.repeat_line("parity", seed=0, always=("seed",)) == "validate parity --seed 0"


def test_options_that_a_command_or_a_session_has_not_are_refused() -> None:
    with pytest.raises(TypeError, match="parity has no option replays"):
        options.repeat_line("parity", replays=4)
    with pytest.raises(TypeError, match="unknown options: profil, expected some of: model"):
        options.given(profil="quick")


def test_messages_name_pytest_s_options() -> None:
    said = options.as_pytest_says("--op: mine.py does not provide x, --ops --opx x--op --gpu")
    assert said == "--validate-op: mine.py does not provide x, --validate-ops --opx x--op --gpu"


def test_a_run_records_the_options_that_are_not_at_their_default(tmp_path: Path) -> None:
    given = options.given(ops="validation.adapters.torch_native", op=["rms_norm"], isolate=False, out=tmp_path, seed=0)
    assert options.chosen(given) == {
        "op": ["rms_norm"],
        "ops": "validation.adapters.torch_native",
        "isolate": False,
        "out": str(tmp_path),
    }
    others = options.given(sites=("norm1", "gate"), xfail=Path("known.txt"), steps=3, image=[Path("chair.png")])
    assert json.loads(json.dumps(options.chosen(others))) == {
        "sites": ["norm1", "gate"],
        "xfail": "known.txt",
        "steps": 3,
        "image": ["chair.png"],
    }
