"""The table of opcodes, filled: by exact spelling, what is executed."""

from validation.compiled.ptx import (
    assert_ops,
    async_ops,
    atomic_ops,
    control_ops,
    convert_ops,
    double_ops,
    extended_ops,
    float_ops,
    integer_ops,
    memory_ops,
    move_ops,
    packed_ops,
)
from validation.compiled.ptx.table import OPCODES

# Each of these adds its opcodes when it is imported.
SECTIONS = (
    assert_ops,
    async_ops,
    atomic_ops,
    control_ops,
    convert_ops,
    double_ops,
    extended_ops,
    float_ops,
    integer_ops,
    memory_ops,
    move_ops,
    packed_ops,
)

__all__ = ["OPCODES", "SECTIONS"]
