"""An op's arguments, grouped by role."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from validation.cases.roles import MODULATIONS, ROLES, WEIGHTS
from validation.cases.values import REGIMES
from validation.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Signature:
    """The arguments of an op, by role.

    Attributes:
        op: its name.
        names: its arguments' names, in order.
        required: those without a default.
    """

    op: str
    names: tuple[str, ...]
    required: frozenset[str]

    @classmethod
    def of(cls, op: str, function: Callable[..., Any]) -> "Signature":
        """Read an op's signature.

        Raises:
            UsageError: an argument has a name that no case can be made for.
        """
        parameters = inspect.signature(function).parameters
        unknown = set(parameters).difference(ROLES)
        if unknown:
            raise UsageError(
                f"op {op} has arguments {sorted(unknown)}, expected only names with a role: {sorted(ROLES)}"
            )
        required = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
        return cls(op, tuple(parameters), frozenset(required))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def family(self) -> str:
        """``modulated`` (x [B, L, D]), ``norm`` (x [..., D]), ``rotary``, ``split_rotary`` or ``qk``."""
        if "q" in self:
            return "qk"
        if "cos" in self:
            return "rotary" if "interleaved" in self else "split_rotary"
        return "modulated" if any(name in self for name in (*MODULATIONS, "residual")) else "norm"

    @property
    def modulations(self) -> tuple[str, ...]:
        """Which of shift, scale and gate it takes."""
        return tuple(name for name in MODULATIONS if name in self)

    @property
    def regimes(self) -> tuple[str, ...]:
        """The value regimes in which the op is judged."""
        left_out = set[str]()
        if not self.modulations:
            left_out |= {"zero_modulation", "some_zero", "some_equal"}
        if "eps" not in self:
            left_out.add("row_mean")
        if not {"scale", *WEIGHTS} & set(self.names):
            left_out.add("large_modulation")
        if not self.modulations or ("eps" in self and "residual" not in self):
            left_out.add("ties")  # a norm has none
        return tuple(name for name in REGIMES if name not in left_out)
