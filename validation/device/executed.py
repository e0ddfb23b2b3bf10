"""Compiled kernels on the CPU: what a process needs so that their PTX is executed."""

import os
import sys

from validation.compiled.ptx import executing
from validation.compiled.ptx.target import EXECUTED
from validation.device import autotuned


def enable(target: str, *, races: bool) -> None:
    """Compile kernels for a target from now on, and execute their PTX on the CPU.

    An autotuned kernel is launched with the configuration whose turn it is (`executing.How`).

    Args:
        target: to compile for.
        races: look for races in every launch.

    Raises:
        ValueError: the target has no PTX.
        RuntimeError: Triton's interpreter is on: there is nothing to compile.
    """
    if target not in EXECUTED:
        raise ValueError(f"{target}, expected one of {', '.join(EXECUTED)}")
    on = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if on or ("triton" in sys.modules and sys.modules["triton"].knobs.runtime.interpret):
        raise RuntimeError("TRITON_INTERPRET is set, expected it unset: kernels would not be compiled")
    executing.execute_launches(target)
    executing.always(races=races)
    autotuned.take(lambda configs: configs[executing.current().turn % len(configs)])
