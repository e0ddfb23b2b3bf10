"""``--results-only``: numbers and memory are judged, manners are not asked for."""

from pathlib import Path

import pytest

from validation import cli
from validation.record import Level, read_run
from validation.verdict import Status

# Right, but it takes anything, and no empty tensor.
WITHOUT_MANNERS = """
import torch
import reference_ops

def split_rotary_embedding(x, cos, sin):
    if not x.numel():
        raise RuntimeError("no empty tensors")
    try:
        return reference_ops.split_rotary_embedding(x, cos, sin)
    except Exception:
        return x
"""
WRONG = WITHOUT_MANNERS.replace("(x, cos, sin)\n    except", "(x, sin, cos)\n    except")


@pytest.fixture
def ops(here: Path) -> Path:
    (here / "mine.py").write_text(WITHOUT_MANNERS)
    (here / "wrong.py").write_text(WRONG)
    return here


def test_code_without_manners_passes_on_its_results_and_fails_on_its_manners(
    ops: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["parity", "--ops", "mine.py", "--no-isolate", "--profile", "quick"]
    assert cli.main([*told, "--out", "manners"]) == cli.FAILED
    failed = {record.status for record in read_run(ops / "manners")[1] if record.status.failed}
    assert failed == {Status.RUNTIME_ERROR, Status.BAD_INPUT_ACCEPTED}
    capsys.readouterr()
    assert cli.main([*told, "--results-only", "--out", "results"]) == cli.PASSED
    environment, records = read_run(ops / "results")
    assert environment.options["results-only"] is True
    assert all(0 not in spec["shape"] for r in records if r.level is Level.OP for spec in r.case["tensors"].values())
    checks = {record.check for record in records if record.level is Level.RUN}
    assert not checks & {"bad input", "requires grad"}
    (whole,) = (record for record in records if record.level is Level.RUN)
    assert "--results-only" in whole.repro
    assert whole.numbers["corners_missed"] == 0


def test_a_wrong_result_fails_all_the_same(ops: Path) -> None:
    told = ["parity", "--ops", "wrong.py", "--no-isolate", "--profile", "quick", "--results-only", "--out", "run"]
    assert cli.main(told) == cli.FAILED
    statuses = {record.status for record in read_run(ops / "run")[1] if record.status.failed}
    assert Status.INCORRECT_NUMERICAL in statuses
