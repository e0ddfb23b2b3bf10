"""Command lines in processes of their own, forked from one that has imported the suite: 2 s less each."""

import subprocess
import sys
from pathlib import Path

import pytest

from validation import cli, plugin  # noqa: F401
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.meta_tests.device import executed_faults


def run(function: str, *arguments: str, folder: Path, interpreted: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a function of this module; returns how it ended and what it wrote.

    Args:
        function: its name.
        arguments: of it.
        folder: its current folder.
        interpreted: whether Triton's interpreter is on, as it is in pytest's own process.
    """
    without = () if interpreted else ("TRITON_INTERPRET",)
    return start_call(Order(__name__, function, arguments, str(folder), {}), without=without).ended()


def run_pytest(*arguments: str) -> None:
    """``python -m pytest ARGUMENTS``."""
    sys.exit(pytest.main([*arguments]))


def run_executed_faults() -> None:
    """As `executed_faults.main`."""
    executed_faults.main()


def run_cli(*arguments: str) -> None:
    """``validate ARGUMENTS``."""
    sys.exit(cli.main([*arguments]))
