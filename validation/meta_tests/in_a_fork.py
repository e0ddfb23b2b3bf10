"""Command lines in processes of their own, forked from one that has imported the suite: 2 s less each."""

import subprocess
import sys
from pathlib import Path

import pytest

from validation import cli, plugin  # noqa: F401
from validation.forking.forked import start_call
from validation.forking.server import Order


def run(function: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a function of this module, its current folder given; returns how it ended and what it wrote."""
    return start_call(Order(__name__, function, arguments, str(folder), {})).ended()


def run_pytest(*arguments: str) -> None:
    """``python -m pytest ARGUMENTS``."""
    sys.exit(pytest.main([*arguments]))


def run_cli(*arguments: str) -> None:
    """``validate ARGUMENTS``."""
    sys.exit(cli.main([*arguments]))
