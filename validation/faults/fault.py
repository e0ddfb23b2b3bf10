"""A planted fault: an op implementation with one known bug, and the checks that may catch it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from validation.ops import OpSet
from validation.record import Status

Op = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A wrong op.

    Attributes:
        name: unique, as the kill matrix prints it.
        op: the op it pretends to be.
        bug: what is wrong, in one sentence.
        caught_by: the verdicts that name this bug; any other failure is a surprise.
        function: the wrong op.
        gpu: only a GPU can show it.
    """

    name: str
    op: str
    bug: str
    caught_by: frozenset[Status]
    function: Op
    gpu: bool = False

    def op_set(self) -> OpSet:
        """The fault as an op set of one op."""
        return OpSet(f"fault:{self.name}", {self.op: self.function}, f"validation.faults:{self.name}")


FAULTS: dict[str, Fault] = {}


def fault(name: str, op: str, bug: str, *caught_by: Status, gpu: bool = False) -> Callable[[Op], Op]:
    """Register the decorated function as a fault."""

    def register(function: Op) -> Op:
        if name in FAULTS:
            raise ValueError(f"two faults are called {name!r}")
        FAULTS[name] = Fault(name, op, bug, frozenset(caught_by), function, gpu)
        return function

    return register
