"""A planted fault: an op implementation with one known bug, and the verdicts that rightly name it."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from validation.faults.right import RightOps
from validation.ops import OpSet
from validation.verdict import Status

Implementation = TypeVar("Implementation", bound=type[RightOps])


EVERYWHERE = frozenset({"interpreter", "compiled", "gpu"})
# There alone an op looks at the values of an index before it takes them.
INTERPRETED = frozenset({"interpreter"})
# There alone the suite looks at the addresses of loads.
ON_CPU = frozenset({"interpreter", "compiled"})
# What the interpreter does not have: vector accesses, threads, a grid with limits, approximate instructions.
NOT_INTERPRETED = frozenset({"compiled", "gpu"})


@dataclasses.dataclass(frozen=True)
class Fault:
    """A wrong op.

    Attributes:
        name: unique, as the kill matrix prints it.
        op: the op it pretends to be.
        bug: what is wrong, in one sentence.
        caught_by: the verdicts that name this bug; any other failure is a surprise.
        ops: the implementation, wrong in that op.
        on: the kinds of device that show it (`validation.device.Device.kind`).
    """

    name: str
    op: str
    bug: str
    caught_by: frozenset[Status]
    ops: type[RightOps]
    on: frozenset[str] = EVERYWHERE

    def op_set(self) -> OpSet:
        """The fault as an op set of one op, with nothing kept from earlier calls."""
        return OpSet(f"fault:{self.name}", {self.op: getattr(self.ops(), self.op)}, f"validation.faults:{self.name}")


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, op: str, bug: str, *caught_by: Status, on: frozenset[str] = EVERYWHERE
) -> Callable[[Implementation], Implementation]:
    """Register the decorated class as a fault of one op.

    Raises:
        ValueError: the name is taken, or no verdict is given.
    """

    def register(ops: Implementation) -> Implementation:
        if name in FAULTS:
            raise ValueError(f"two faults are called {name!r}")
        if not caught_by:
            raise ValueError(f"fault {name!r} says no verdict that may catch it")
        FAULTS[name] = Fault(name, op, bug, frozenset(caught_by), ops, on)
        return ops

    return register
