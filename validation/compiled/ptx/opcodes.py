"""The table of opcodes, filled: by exact spelling, what is executed."""

# Each of these adds its opcodes when it is imported.
from validation.compiled.ptx import (  # noqa: F401
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

__all__ = ["OPCODES"]
