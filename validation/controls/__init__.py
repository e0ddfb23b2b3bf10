"""Correct op sets that the suite must never flag: the other half of the proof that a verdict can be trusted.

``python -m validation.controls`` judges them all and prints what was flagged, which should be nothing.
"""

from validation.controls.contract import checked
from validation.controls.variants import ARITHMETIC
from validation.errors import UsageError
from validation.ops import OpSet, load_op_set

# Name -> the op set that `load_op_set` finds.
OWN = {"reference": "reference_ops", "fused": "fused_ops"}
ADAPTERS = {"torch_native": "validation.adapters.torch_native", "torch_compile": "validation.adapters.torch_compile"}
NAMES = (*OWN, *ADAPTERS, *ARITHMETIC)


def op_set(name: str) -> OpSet:
    """A control as an op set: ``--ops validation.controls:NAME``. Device and kernels as in `load_op_set`.

    Raises:
        UsageError: there is no control of that name.
    """
    if name in OWN:
        return load_op_set(OWN[name])
    if name in ADAPTERS:
        functions = load_op_set(ADAPTERS[name]).functions
    elif name in ARITHMETIC:
        functions = ARITHMETIC[name]().functions()
    else:
        raise UsageError(f"unknown control {name!r}, expected one of: {', '.join(NAMES)}")
    guarded = {op: checked(op, function) for op, function in functions.items()}
    return OpSet(f"control:{name}", guarded, f"validation.controls:{name}")
