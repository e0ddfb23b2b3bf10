"""Modules of this folder that compile kernels run in a process of their own, without Triton's interpreter."""

from pathlib import Path

from validation.forking.forked import start_call
from validation.forking.server import Order

ROOT = Path(__file__).parents[3]


def printed_by(module: str, *arguments: str, text: str = "", function: str = "main") -> list[str]:
    """The lines that a function of a module of this folder prints, called with some arguments and a text on stdin."""
    order = Order(f"validation.meta_tests.compiled.{module}", function, arguments, str(ROOT), {})
    return start_call(order, text, without=("TRITON_INTERPRET",)).output().splitlines()
