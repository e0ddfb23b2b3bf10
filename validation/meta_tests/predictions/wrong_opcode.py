"""A command line in a process whose fused multiply-adds add 1 % too much: hardware that does otherwise."""

import dataclasses
import sys

import numpy as np

from validation import cli
from validation.compiled.ptx.opcodes import OPCODES
from validation.compiled.ptx.table import Elementwise

FMA = "fma.rn.f32"


def main(*arguments: str) -> None:
    """``validate ARGUMENTS``."""
    right = OPCODES[FMA]
    assert isinstance(right, Elementwise)
    OPCODES[FMA] = dataclasses.replace(right, function=lambda a, b, c: a * b + np.float32(1.01) * c)
    sys.exit(cli.main([*arguments]))
