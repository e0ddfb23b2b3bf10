"""Named choices, drawn or forced.

Every discrete choice of a case goes through `Chooser.pick` under a name, so that a corner (see `corners`) can be
forced by fixing some choices, and Hypothesis shrinks towards the first option of each. All choices but those of
`VALUES` together are the compile key: the cases that share them are computed by one compiled kernel. So the width,
and then the batch, frames and tokens together, are chosen in two steps (`Chooser.member`): the class, by what Triton
and the kernels' blocks tell apart, is part of the key; which member of that class is not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import hypothesis.strategies as st

from validation.cases.case import TensorSpec

T = TypeVar("T")

# Choices that compile no kernel of their own: what tensors hold, and numbers that kernels take as floats.
VALUES = frozenset({"values", "literals", "eps", "scale_constant"})


_integers = functools.cache(st.integers)  # to make a strategy takes longer than to draw from it


class Chooser:
    """Draws named choices, some of them forced.

    Attributes:
        key: what was chosen, by name, but for the choices of `VALUES`.
    """

    def __init__(
        self,
        draw: Callable[[st.SearchStrategy[Any]], Any],
        forced: Mapping[str, Any],
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self._draw, self._forced, self._hints = draw, forced, hints or {}
        self.key: dict[str, Any] = {}

    def pick(self, name: str, options: Sequence[T], rare: Sequence[T] = ()) -> T:
        """One of the options, or what is forced under that name (rare options come only so).

        What has been picked under that name before stays.
        """
        chosen: T
        if name in self.key:
            chosen = self.key[name]
        elif name in self._forced:
            chosen = self._forced[name]
            if chosen not in options and chosen not in rare:
                raise ValueError(f"{name} is forced to {chosen!r}, expected one of {[*options, *rare]}")
        elif name in self._hints and self._hints[name] in (*options, *rare):
            chosen = (options[0], *(self._hints[name],) * 3)[self.integer(0, 3)]
        else:
            chosen = options[self.integer(0, len(options) - 1)]
        if name not in VALUES:
            self.key[name] = chosen
        return chosen

    def member(self, name: str, classes: Mapping[Any, Sequence[T]], *, by_size: bool = False) -> T:
        """One of the members of a class; which class is a choice of that name, which member is none.

        Classes are as likely as one another, or ``by_size`` as they have members.
        """
        options = [c for c, members in classes.items() for _ in members] if by_size else list(classes)
        members = classes[self.pick(name, options)]
        return members[self.integer(0, len(members) - 1)]

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        number: int = low if low == high else self._draw(_integers(low, high))
        return number

    def literals(self, spec: TensorSpec) -> tuple[float, ...]:
        """Values for each element, drawn themselves so that they shrink."""
        width: Literal[16, 32] = 32 if spec.dtype == "float32" else 16
        numbers = st.floats(width=width, allow_nan=False, allow_infinity=False, min_value=-64.0, max_value=64.0)
        drawn: list[float] = self._draw(st.lists(numbers, min_size=spec.numel, max_size=spec.numel))
        return tuple(drawn)
