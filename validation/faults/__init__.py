"""Planted faults: wrong ops, each of which the suite must catch, and the check that catches it."""

from importlib import import_module
from pkgutil import iter_modules

from validation.errors import UsageError
from validation.faults.fault import FAULTS, Fault
from validation.ops import OpSet

__all__ = ["FAULTS", "Fault", "load", "op_set"]


def load() -> dict[str, Fault]:
    """All faults by name. Imports kernels, so the device must have been selected before."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return FAULTS


def op_set(name: str) -> OpSet:
    """A fault as an op set: ``--ops "validation.faults:NAME"``.

    Raises:
        UsageError: there is no fault of that name.
    """
    if name not in load():
        raise UsageError(f"unknown fault {name!r}, expected one of: {', '.join(FAULTS)}")
    return FAULTS[name].op_set()
