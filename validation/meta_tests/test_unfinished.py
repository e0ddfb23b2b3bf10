"""Runs that are cut, disks that are full and readers that leave: told in one line, and never as PASSED."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from validation import cli
from validation.device import select
from validation.files import append_line
from validation.meta_tests import in_a_fork
from validation.parity.plan import Plan
from validation.parity.profiles import PROFILES
from validation.record import Environment, Level, Record, Run, read_run
from validation.report.unfinished import left_of
from validation.run_plan import CLOSED, NO_PLAN, PLAN, RunPlan, RunState
from validation.verdict import Status

FIRST, SECOND = "rms_norm", "split_rotary_embedding"

# The first op tells that it was called; the second one ends what calls it in its 60th call, if asked to.
CUT = """
import os
from pathlib import Path

import reference_ops

CALLED = Path("called")
calls = 0


def rms_norm(x, weight=None, eps=1e-6, *, casting_mode="float32"):
    CALLED.touch()
    return reference_ops.rms_norm(x, weight, eps, casting_mode=casting_mode)


def split_rotary_embedding(x, cos, sin):
    global calls
    calls += 1
    if calls == 60 and "CUT_BY" in os.environ:
        os.kill(os.getpid(), int(os.environ["CUT_BY"]))
    if "WRONG" in os.environ:
        return reference_ops.split_rotary_embedding(x, sin, cos)
    return reference_ops.split_rotary_embedding(x, cos, sin)
"""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Processes that are started in the background ignore Ctrl-C, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_interrupts_where_ctrl_c_is_ignored(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "cut.py").write_text(CUT)
    monkeypatch.setenv("CUT_BY", str(int(signal.SIGTERM)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert cli.main([*words("run"), "--op", SECOND]) == cli.INCONCLUSIVE
    assert not (here / "run" / CLOSED).exists()


def words(out: str) -> list[str]:
    return ["parity", "--ops", "cut.py", "--no-isolate", "--profile", "quick", "--out", out]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not cut."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "cut.py").write_text(CUT)
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        assert cli.main(words("run")) == cli.PASSED
    assert "UNFINISHED" not in out.getvalue()
    return folder / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_cut_says_so_everywhere_and_goes_on(
    number: signal.Signals,
    whole: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "cut.py").write_text(CUT)
    monkeypatch.setenv("CUT_BY", str(int(number)))
    assert cli.main([*words("run"), "--junit", "out.xml", "--json", "out.json"]) == cli.INCONCLUSIVE
    out, err = capsys.readouterr()
    assert f"interrupted by {'SIGTERM' if number is signal.SIGTERM else 'Ctrl-C'}" in err
    assert "Traceback" not in err
    _, records = read_run(here / "run")
    cases = sum(record.subject == SECOND for record in records)
    planned = RunPlan.read(here / "run")
    assert planned is not None
    assert 0 < cases < planned.ops[SECOND]
    sentence = f"1 of 2 ops judged to the end; cut at {SECOND} {cases} of {planned.ops[SECOND]} cases"
    assert "UNFINISHED: The run was cut; " in out
    assert sentence in " ".join(out.split())
    page = (here / "run" / "report.html").read_text()
    assert sentence in page
    assert page.count("UNFINISHED</span>") == 2, "the run and the op that was cut"
    (told,) = ET.parse(here / "out.xml").getroot().iter("error")
    assert told.get("type") == "UNFINISHED"
    assert sentence in str(told.get("message"))
    data = json.loads((here / "out.json").read_text())
    assert (data["finished"], data["plan"]["ops"][SECOND]) == (False, planned.ops[SECOND])

    # `report` reads the same from the folder, and does not take it for a finished run.
    assert cli.main(["report", "run"]) == cli.PASSED
    assert sentence in " ".join(capsys.readouterr().out.split())

    monkeypatch.delenv("CUT_BY")
    (here / "called").unlink()
    assert cli.main(words("run")) == cli.PASSED
    assert f"judged to the end before the interruption: {FIRST}\n" in capsys.readouterr().err
    assert not (here / "called").exists()
    assert cli.main(["diff", str(whole), "run"]) == cli.PASSED
    assert "nothing changed" in capsys.readouterr().out
    # A finished run is not taken over.
    assert cli.main(words("run")) == cli.USAGE
    assert "holds a run already, which was finished" in capsys.readouterr().err


def test_a_failure_before_the_cut_is_the_exit_status(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "cut.py").write_text(CUT)
    monkeypatch.setenv("CUT_BY", str(int(signal.SIGINT)))
    monkeypatch.setenv("WRONG", "1")
    assert cli.main([*words("run"), "--op", SECOND]) == cli.FAILED
    assert not (here / "run" / CLOSED).exists()


def test_a_killed_run_reads_as_unfinished(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With SIGKILL nothing is left to do for the process: the folder alone must tell."""
    (here / "cut.py").write_text(CUT)
    command = [sys.executable, "-m", "validation", *words("run")]
    environment = {**os.environ, "CUT_BY": str(int(signal.SIGKILL)), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    with (here / "run" / "records.jsonl").open("a") as file:
        file.write('{"schema": 1, "level": "op", "subj')  # as if in the middle of a record
    assert cli.main(["report", "run"]) == cli.PASSED
    assert "UNFINISHED: The run was cut; 1 of 2 ops judged to the end" in capsys.readouterr().out
    # Another seed, or an edited file, is another run.
    assert cli.main([*words("run"), "--seed", "1"]) == cli.USAGE
    assert "which was cut and had other seed" in capsys.readouterr().err
    (here / "cut.py").write_text(CUT + "\n# edited\n")
    assert cli.main(words("run")) == cli.USAGE
    assert "which was cut and had other ops, cases or files" in capsys.readouterr().err


ENVIRONMENT = Environment("", "", "", "", "", "", "", "", "", "", 0, "quick")
RECORD = Record(Level.OP, FIRST, "mine", Status.PASSED, "tier", "fine", {"op": FIRST})


def test_a_run_is_finished_by_its_closing_record_and_as_many_records_as_it_says(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ENVIRONMENT, plan=RunPlan({FIRST: 2}))
    run.add(RECORD)
    assert left_of(run.state, run.records).unfinished
    assert left_of(RunState.read(run.folder), run.records).unfinished
    run.add(dataclasses.replace(RECORD, level=Level.RUN, numbers={"cases": 2}))
    run.close()
    assert not left_of(run.state, run.records).text
    assert not left_of(RunState.read(run.folder), run.records).text
    lost = left_of(RunState.read(run.folder), run.records[:1])
    assert lost.unfinished
    assert lost.text.endswith("1 of 2 records are there")


def test_models_and_faults_that_were_not_judged_are_named() -> None:
    plan = RunPlan({}, {"helios": ["a, seed 0", "b, seed 0"], "hunyuan3d": ["c, seed 0"]}, ("swapped, seed 0",))
    sample = dataclasses.replace(RECORD, level=Level.SAMPLE, subject="helios")
    assert left_of(RunState(plan, None), [sample]).text == (
        "the run was cut; cut at helios 1 of 2 samples; not begun: hunyuan3d; 0 of 1 planted faults judged"
    )


def test_an_older_run_without_a_plan_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run", ENVIRONMENT)
    run.add(RECORD)
    assert not (run.folder / PLAN).exists()
    assert cli.main(["report", str(run.folder)]) == cli.PASSED
    out = capsys.readouterr().out
    assert "PASSED: 1 op case passed." in out
    assert NO_PLAN in out
    assert NO_PLAN in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("profile", ["quick", "default"])
def test_the_planned_number_of_cases_is_that_of_the_sweep(profile: str) -> None:
    for op in (FIRST, SECOND, "qk_norm_rope", "scale_residual_layer_norm_scale_shift"):
        plan = Plan.of(op, select(gpu=False), PROFILES[profile], 3)
        assert plan.count() == sum(1 for _ in plan.cases())


# The first call of the op replaces the records by a device that is always full.
FULL = """
import os
from pathlib import Path

import reference_ops


def split_rotary_embedding(x, cos, sin):
    records = Path("run/records.jsonl")
    if not records.is_symlink():
        records.unlink()
        records.symlink_to("/dev/full")
    return reference_ops.split_rotary_embedding(x, cos, sin)
"""


def test_a_full_disk_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cut.py").write_text(FULL)
    assert cli.main(words("run")) == cli.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if "validate: " in line)
    assert line.startswith("validate: cannot write run/records.jsonl: No space left on device")
    assert "Traceback" not in err
    assert not (here / "run" / CLOSED).exists()


def test_a_line_that_does_not_fit_leaves_no_part_of_it(tmp_path: Path) -> None:
    """A limit on a file's size stops a write half way, as a disk does that fills up."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from validation.files import append_line\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "append_line(Path(sys.argv[1]), 'a' * 60)\n"
        "append_line(Path(sys.argv[1]), 'b' * 60)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lines")], capture_output=True, text=True)
    assert "UsageError: cannot write" in run.stderr
    assert (tmp_path / "lines").read_text() == "a" * 60 + "\n"
    append_line(tmp_path / "lines", "c")
    assert (tmp_path / "lines").read_text().splitlines() == ["a" * 60, "c"]


def test_a_folder_that_takes_no_files_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cut.py").write_text(CUT)
    # Nobody, root included, can make a folder there.
    assert cli.main(words("/proc/run")) == cli.USAGE
    assert (
        capsys.readouterr().err
        == "validate: cannot write to /proc/run: No such file or directory, expected a writable folder\n"
    )


PRINTS = """
import os

import reference_ops


def split_rotary_embedding(x, cos, sin):
    print("from Python " + "x" * 10_000)
    os.write(2, b"from below Python\\n")
    return reference_ops.split_rotary_embedding(x, cos, sin)
"""


def test_what_ops_print_is_kept_in_a_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "prints.py").write_text(PRINTS)
    assert cli.main(["parity", "--ops", "prints.py", "--profile", "quick", "--out", "run"]) == cli.PASSED
    out, err = capfd.readouterr()
    assert "from Python" not in out + err
    assert "from below" not in out + err
    assert len(out + err) < 5_000
    assert "what the ops printed is in run/printed.txt" in err
    printed = (here / "run" / "printed.txt").read_text()
    assert len(printed) > 1_000_000
    assert "from below Python\n" in printed


def a_report(folder: Path) -> list[str]:
    run = Run(folder / "run", ENVIRONMENT, plan=RunPlan({FIRST: 1}))
    for n in range(400):  # more than a pipe's buffer holds
        failed = dataclasses.replace(
            RECORD, level=Level.RUN, status=Status.BIASED, reason=f"{n} " + "long " * 100, check=str(n), case={}
        )
        run.add(failed)
    return [sys.executable, "-m", "validation", "report", str(run.folder)]


def test_a_reader_that_leaves_gets_what_it_wanted_and_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(a_report(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == cli.PASSED


def test_standard_output_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(a_report(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "validate: cannot write to standard output: No space left on device\n"
    assert done.returncode == cli.USAGE


def test_exit_statuses_of_unfinished_runs() -> None:
    assert cli.exit_status([], finished=False) == cli.INCONCLUSIVE
    assert cli.exit_status([Status.PASSED], finished=False) == cli.INCONCLUSIVE
    assert cli.exit_status([Status.PASSED, Status.BIASED], finished=False) == cli.FAILED
    assert cli.exit_status([Status.PASSED, Status.NOT_RUN]) == cli.PASSED
    assert cli.exit_status([Status.NOT_RUN, Status.NOT_EXPRESSED]) == cli.FAILED


STOPS = """
import reference_ops


def rms_norm(x, weight=None, eps=1e-6, *, casting_mode="float32"):
    return None


def split_rotary_embedding(x, cos, sin):
    return reference_ops.split_rotary_embedding(x, cos, sin)
"""


@pytest.mark.parametrize("stops", [True, False])
def test_a_session_of_pytest_is_finished_if_all_its_tests_ran(stops: bool, here: Path) -> None:
    (here / "stops.py").write_text(STOPS)
    root = Path(cli.__file__).parents[1]
    command = [
        "-q",
        "-c",
        str(root / "pyproject.toml"),
        "--rootdir",
        str(root),
        "-p",
        "no:cacheprovider",
        "-m",
        "parity",
    ]
    command += ["--validate-ops", "stops.py", "--validate-profile", "quick", "--validate-out", "run"]
    command += ["--no-validate-isolate", *(["-x"] * stops), str(root / "validation" / "test_parity.py")]
    done = in_a_fork.run("run_pytest", *command, folder=here)
    assert done.returncode == 1, done.stdout + done.stderr
    left = left_of(RunState.read(here / "run"), read_run(here / "run")[1])
    assert left.unfinished is stops
    assert ("UNFINISHED: The run was cut; 1 of 2 ops judged to the end; not begun:" in done.stdout) is stops
    assert (here / "run" / CLOSED).exists() is not stops


def test_ctrl_c_among_planted_faults_leaves_a_report_and_no_traceback(tmp_path: Path) -> None:
    """As a terminal does it: the whole group of processes is interrupted.

    With several seeds a sweep ends once its fault is caught: 8 s of processor time less until three are.
    """
    root = str(Path(cli.__file__).parents[1])
    command = [sys.executable, "-m", "validation", "faults", "--op", SECOND, "--seeds", "20"]
    command += ["--profile", "quick", "--out", "run"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        records = tmp_path / "run" / "records.jsonl"
        deadline = time.monotonic() + 300.0
        while not records.exists() or records.read_text().count("\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == cli.INCONCLUSIVE, out
    assert "interrupted by Ctrl-C" in out
    assert "UNFINISHED: The run was cut; " in out
    assert " planted faults judged" in out
    assert "Traceback" not in out
