"""A launch that follows a plan equals the op's own launch; planted faults are what plans must not overlook."""

import os
import subprocess
import sys
from pathlib import Path

from validation.meta_tests.launch_plans import DRAWN, FAULTS
from validation.ops import reference_op_names

ROOT = Path(__file__).parents[3]


def compare(*arguments: str) -> list[str]:
    """The lines that `launch_plans` prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "validation.meta_tests.launch_plans", *arguments]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_planned_launches_are_those_of_the_op_itself() -> None:
    """Kernel, grid, every argument and the results of each case, also with other alignments and other strides."""
    lines = compare()
    assert [line.partition(":")[0] for line in lines] == [*reference_op_names()], "\n".join(lines)[:4000]
    for line in lines:
        words = line.split()
        cases, followed = int(words[1]), int(words[3])
        assert cases >= DRAWN
        assert followed > 2 * cases


def test_what_a_plan_overlooks_is_seen() -> None:
    found = {fault: int(count) for fault, _, count in (line.partition(": ") for line in compare("--plant", "qk_norm"))}
    assert [*found] == [*FAULTS]
    assert all(found.values()), found
