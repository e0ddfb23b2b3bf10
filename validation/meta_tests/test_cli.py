"""The command line: exit statuses, one clear line for bad input, and nothing left behind."""

import json
import math
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from validation import cli, options
from validation.device import Device
from validation.meta_tests import in_a_fork
from validation.record import read_run
from validation.verdict import Status

OP = "layer_norm_scale_shift"
ROOT = Path(__file__).resolve().parents[2]

SWAPPED = """
import reference_ops

def layer_norm_scale_shift(x, shift, scale, *args, **kwargs):
    return reference_ops.layer_norm_scale_shift(x, scale, shift, *args, **kwargs)
"""


# The op with the fewest corners: a quick sweep of it takes 3 s, one of OP 8 s.
SMALL = "split_rotary_embedding"
SMALL_SWAPPED = """
import reference_ops

def split_rotary_embedding(x, cos, sin):
    return reference_ops.split_rotary_embedding(x, sin, cos)
"""

ROW = {"shape": [4], "dtype": "float32", "strides": [1], "offset": 0}
CASE = {
    "op": OP,
    "tensors": {
        "x": {"shape": [1, 2, 4], "dtype": "bfloat16", "strides": [8, 4, 1], "offset": 0, "storage": "x"},
        "shift": ROW | {"storage": "shift"},
        "scale": ROW | {"storage": "scale"},
    },
    "flags": {"eps": 1e-6, "casting_mode": "float32"},
    "values": "normal",
    "seed": 0,
}


def test_a_right_op_set_passes_and_leaves_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["parity", "--op", SMALL, "--profile", "quick", "--out", "run"]
    status = cli.main([*arguments, "--json", "out.json", "--junit", "out.xml"])
    assert status == cli.PASSED
    environment, records = read_run(here / "run")
    assert environment.device == "interpreter"
    assert len(records) > 100
    assert SMALL in (here / "run" / "report.html").read_text()
    data = json.loads((here / "out.json").read_text())
    assert len(data["records"]) == len(records)
    assert data["environment"]["seed"] == 0
    assert ET.parse(here / "out.xml").getroot().tag == "testsuites"
    assert "report.html" in capsys.readouterr().out


def test_a_wrong_file_fails_and_its_repro_line_works_in_a_new_process(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(SMALL_SWAPPED)
    status = cli.main(["parity", "--ops", "mine.py", "--profile", "quick", "--out", "run"])
    assert status == cli.FAILED
    out, err = capsys.readouterr()
    assert "does not provide: layer_norm, " in err
    assert "INCORRECT_NUMERICAL" in out
    _, records = read_run(here / "run")
    failed = [record for record in records if record.status.failed]
    # The line of what has no case is the sweep's, which takes 10 s.
    assert shlex.split(failed[-1].repro) == ["validate", "parity", "--op", SMALL, "--ops", "mine.py"]
    shown = [record for record in failed if record.case and record.status is Status.INCORRECT_NUMERICAL]
    command = shlex.split(shown[-1].repro)
    assert command[:2] == ["validate", "repro"]
    again = subprocess.run([sys.executable, "-m", "validation.cli", *command[1:]], capture_output=True, text=True)
    assert again.returncode == cli.FAILED, again.stderr
    assert "INCORRECT_NUMERICAL" in again.stdout
    # The kept file is repeated with the op set that failed, unless another is named.
    (path,) = (here / "run" / "failures").glob("*numerical.json")
    capsys.readouterr()
    assert cli.main(["repro", str(path)]) == cli.FAILED
    assert f"{SMALL}  mine  " in capsys.readouterr().out
    assert cli.main(["repro", str(path), "--ops", "fused_ops"]) == cli.PASSED


SLOW = """
import time
import reference_ops

def layer_norm_scale_shift(x, *args, **kwargs):
    time.sleep(60.0)
"""


def test_a_repeat_line_keeps_the_time_limit_and_where_it_ran(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "slow.py").write_text(SLOW)
    options = ["--ops", "slow.py", "--case-seconds", "2"]
    assert cli.main(["repro", json.dumps(CASE), *options]) == cli.FAILED
    out = capsys.readouterr().out
    assert "TIMEOUT" in out
    assert shlex.split(out.splitlines()[-1])[4:] == options
    (here / "mine.py").write_text(SWAPPED)
    assert cli.main(["repro", json.dumps(CASE), "--ops", "mine.py", "--no-isolate"]) == cli.FAILED
    assert capsys.readouterr().out.endswith("--ops mine.py --no-isolate\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flags": {"casting_mode": "odd"}}, "casting_mode is 'odd'"),
        ({"flags": {"eps": math.nan}}, "flags.eps is nan, expected a number that is finite"),
        ({"flags": {"slope": 1.0}}, "unexpected keyword argument 'slope'"),
        ({"op": "layer_norm"}, "layer_norm does not take it: TypeError"),
        ({"literals": {"shift": [10**400, 0, 0, 0]}}, "literals.shift has 1000"),
    ],
)
def test_a_case_that_its_op_does_not_take_is_a_usage_error(
    change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["repro", json.dumps(CASE | change)]) == cli.USAGE
    err = capsys.readouterr().err
    assert err.startswith("validate: case: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_repro_of_a_right_case_passes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["repro", json.dumps(CASE)]) == cli.PASSED
    (here / "case.json").write_text(json.dumps(CASE))
    assert cli.main(["repro", "case.json"]) == cli.PASSED
    assert "PASSED" in capsys.readouterr().out


def test_no_case_with_a_bfloat16_tensor_is_judged_where_the_interpreter_gets_bfloat16_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even if only the modulation is bfloat16."""
    monkeypatch.setattr("validation.device.selection._selected", Device("interpreter", "cpu", ("rounds up",)))
    x = {"shape": [1, 2, 4], "dtype": "float32", "strides": [8, 4, 1], "offset": 0, "storage": "x"}
    row = ROW | {"dtype": "bfloat16"}
    tensors = {"x": x, "shift": row | {"storage": "shift"}, "scale": row | {"storage": "scale"}}
    assert cli.main(["repro", json.dumps(CASE | {"tensors": tensors})]) == cli.USAGE
    out, err = capsys.readouterr()
    assert (out, err) == ("", "validate: bfloat16 cannot be judged: rounds up\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("parity --ops no.such.module", "cannot import no.such.module"),
        ("parity --ops no_such_file.py", "no file no_such_file.py"),
        ("parity --ops json", "defines none of the ops"),
        ("parity --ops broken.py", "SyntaxError"),
        ("parity --ops not_a_function.py", "expected a function"),
        ("parity --op no_such_op", "unknown op 'no_such_op'"),
        ("parity --op layer_norm --ops mine.py", "does not provide layer_norm"),
        ("parity --profile odd", "--profile: invalid choice: 'odd'"),
        ("parity --require best", "--require: invalid choice: 'best'"),
        ("parity --seed -1", "--seed: -1, expected an integer >= 0"),
        ("parity --gpu", "sees no usable GPU"),
        ("parity --case-seconds 0", "--case-seconds: 0, expected a number above 0"),
        ("parity --out occupied", "expected a writable folder"),
        ("parity --out old", "holds a run already"),
        ("parity --json no/such/folder.json", "--json: cannot write no/such/folder.json"),
        ("quality --model odd", "unknown model 'odd'"),
        ("quality --checkpoint empty", "empty"),
        ("quality --checkpoint nowhere", "nowhere"),
        ("quality --prompts nowhere.json", "cannot read nowhere.json"),
        ("quality --replays 3", "--replays: 3, expected at least 4"),
        ("quality --require perfect", "invalid choice: 'perfect'"),
        ("quality --ops mine.py --sites nowhere", "unknown site 'nowhere'"),
        ("repro {", "not JSON"),
        ("repro {}", "no 'op'"),
        ("repro missing.json", "expected the JSON text"),
        ("report nowhere", "has no environment.json"),
        ("report empty", "has no environment.json"),
        ("report damaged", "not a record"),
        ("", "COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(SWAPPED)
    (here / "broken.py").write_text("def (")
    (here / "not_a_function.py").write_text(f"{OP} = 3")
    (here / "occupied").write_text("a file, not a folder")
    for folder in ("empty", "old", "damaged"):
        (here / folder).mkdir()
    (here / "old" / "records.jsonl").touch()
    (here / "damaged" / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (here / "damaged" / "records.jsonl").write_text("{}\n")
    before = sorted(str(path) for path in here.rglob("*") if "__pycache__" not in str(path))
    assert cli.main(shlex.split(arguments)) == cli.USAGE
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert says in err
    assert "Traceback" not in err
    assert sorted(str(path) for path in here.rglob("*") if "__pycache__" not in str(path)) == before


ENVIRONMENT = dict.fromkeys(
    ("started", "command", "device", "cpu", "python", "torch", "triton", "cuda", "diffusers", "commit", "profile"), ""
) | {"seed": 0}


def test_exit_statuses() -> None:
    assert cli.exit_status([Status.PASSED, Status.PASSED]) == 0
    assert cli.exit_status([Status.PASSED, Status.BIASED, Status.INCONCLUSIVE]) == 1
    assert cli.exit_status([Status.PASSED, Status.INCONCLUSIVE]) == 3
    assert cli.exit_status([]) == 1


def test_pytest_takes_the_same_options_and_refuses_the_same(here: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        command = ["-q", "-c", str(root / "pyproject.toml"), "--rootdir", str(root)]
        paths = [str(root / "validation" / "test_parity.py")]
        return in_a_fork.run("run_pytest", *command, *arguments, *paths, folder=here)

    (here / "mine.py").write_text(SMALL_SWAPPED)
    wrong = run("-m", "parity", "--validate-ops", "mine.py", "--validate-profile", "quick", "-p", "no:cacheprovider")
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert "INCORRECT_NUMERICAL" in wrong.stdout
    assert "validate repro" in wrong.stdout
    no_gpu = run("-m", "parity", "--gpu")
    assert no_gpu.returncode == 4
    assert "sees no usable GPU" in no_gpu.stderr
    unknown = run("-m", "parity", "--validate-op", "odd")
    assert unknown.returncode == 4
    assert "unknown op 'odd'" in unknown.stderr
    missing = run("-m", "parity", "--validate-ops", "nowhere.py")
    assert missing.returncode == 4
    assert "--validate-ops: no file nowhere.py" in missing.stderr


def test_pytest_has_every_option_of_a_session_but_junit_with_a_prefix(pytestconfig: pytest.Config) -> None:
    names = {option.name for command in ("run", "parity", "quality") for option in options.options_of(command)}
    assert {option.name for option in options.options_of("pytest")} == names - {"junit"}
    assert {"model", "image", "octree-resolution", "until"} < names
    assert pytestconfig.getoption("--gpu") is False
    for option in options.options_of("pytest"):
        pytestconfig.getoption(options.plugin_name(option))  # raises where there is none
