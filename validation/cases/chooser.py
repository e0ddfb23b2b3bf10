"""Named choices, drawn or forced.

Every discrete choice of a case goes through `Chooser.pick` under a name, so that a corner (see `corners`) can be
forced by fixing some choices, and Hypothesis shrinks towards the first option of each. All choices except those of
`VALUES` form the compile key: one compiled kernel computes all cases that share them. So the width, and then the
batch, frames and tokens together, are chosen in two steps (`Chooser.member`): the class, which Triton and the kernels'
blocks distinguish, is part of the key; the member of that class is not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import hypothesis.strategies as st

from validation.cases.case import TensorSpec

T = TypeVar("T")

# Choices that compile no kernel of their own: tensors' contents, numbers that kernels take as floats, and the width
# within its class.
VALUES = frozenset({"values", "literals", "eps", "scale_constant", "width.member"})


_integers = functools.cache(st.integers)  # to make a strategy takes longer than to draw from it


class Chooser:
    """Draws named choices, some of them forced.

    Attributes:
        key: the choices made so far, by name, without those of `VALUES`.
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
        """One of the options, or the choice forced under that name (rare options only occur forced or hinted).

        A name that was picked before keeps its choice.

        Raises:
            ValueError: the forced choice is not among the options.
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
        """A member of a class; the class is a choice under that name, the member is not.

        All classes are equally likely, or with ``by_size`` in proportion to their members.
        """
        options = [c for c, members in classes.items() for _ in members] if by_size else list(classes)
        members = classes[self.pick(name, options)]
        return members[self.integer(0, len(members) - 1)]

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        number: int = low if low == high else self._draw(_integers(low, high))
        return number

    def literals(self, spec: TensorSpec) -> tuple[float, ...]:
        """One value in [-64, 64] for each element, drawn by Hypothesis so that it shrinks."""
        width: Literal[16, 32] = 32 if spec.dtype == "float32" else 16
        numbers = st.floats(width=width, allow_nan=False, allow_infinity=False, min_value=-64.0, max_value=64.0)
        drawn: list[float] = self._draw(st.lists(numbers, min_size=spec.numel, max_size=spec.numel))
        return tuple(drawn)
