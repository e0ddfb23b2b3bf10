"""Which ops exist, and the op sets that offer them."""

from validation.ops.registry import (
    ENTRY_POINT_GROUP,
    Op,
    OpSet,
    check_op_name,
    load_op_set,
    op_set_from,
    reference_op,
    reference_op_names,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "Op",
    "OpSet",
    "check_op_name",
    "load_op_set",
    "op_set_from",
    "reference_op",
    "reference_op_names",
]
