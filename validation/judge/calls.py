"""How a case calls its candidate: by position or by keyword, with or without the flags that equal their default.

The contract fixes names, order and defaults of an op's parameters, and models call the ops by position, without the
flags that they leave alone. So half of the cases pass positional-or-keyword arguments by position, in the reference's
order, and half leave out the flags that equal their default. The case's seed decides both, so a case is called in the
same way wherever it is judged, the second calls of `validation.judge.same_bits` included.

A candidate that takes its arguments by keyword alone, under other names or without a default is no drop-in: each
case whose call does not fit its signature is a ``RUNTIME_ERROR`` that says how it was called and what was expected.
The fix is to wrap it in a function with the op's signature, as the adapters do.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.ops import reference_op


class _Name(str):
    """An argument that messages print by its name."""

    __slots__ = ()
    __repr__ = str.__str__


@dataclasses.dataclass(frozen=True)
class Call:
    """The form of one call.

    Attributes:
        op: the op's name.
        by_position: pass positional-or-keyword arguments by position. An absent optional one that precedes a
            given one is passed as its default.
        defaults_left_out: leave out the flags that equal their default.
    """

    op: str
    by_position: bool
    defaults_left_out: bool

    @classmethod
    def of(cls, case: Case) -> Self:
        """The form that the case's seed draws."""
        lot = zlib.crc32(f"{case.seed}/{case.op}/call".encode())
        return cls(case.op, lot & 1 == 1, lot & 2 == 2)

    def split(self, kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Split all arguments, by name, into positional and keyword arguments."""
        parameters = inspect.signature(reference_op(self.op)).parameters
        given = dict(kwargs)
        if self.defaults_left_out:
            for name, parameter in parameters.items():
                value = given.get(name)
                if isinstance(value, bool | int | float | str) and value == parameter.default:
                    del given[name]
        if not self.by_position:
            return [], given
        positional = [name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        while positional and positional[-1] not in given:
            positional.pop()
        return [given.pop(name, parameters[name].default) for name in positional], given


def as_callers_do(case: Case, candidate: Callable[..., Any]) -> Callable[..., Any]:
    """A function of keyword arguments that calls a candidate in the form of the case.

    It raises a TypeError where the candidate's signature does not take that call.
    """
    form = Call.of(case)

    def call(**kwargs: Any) -> Any:
        args, rest = form.split(kwargs)
        _check_signature(case, candidate, args, rest)
        return candidate(*args, **rest)

    return call


def _check_signature(case: Case, candidate: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
    try:
        # Not the signature of a function that it wraps: a wrapper may adapt the arguments.
        signature = inspect.signature(candidate, follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        parameters = inspect.signature(reference_op(case.op)).parameters.values()
        bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
        raise TypeError(f"{described(case)}: {error}; expected the signature {case.op}{bare}") from error


def described(case: Case) -> str:
    """The call of a case, as messages print it: ``scale_shift(x, shift, scale, casting_mode='input')``."""
    parameters = inspect.signature(reference_op(case.op)).parameters
    names = {name.partition(".")[0] for name in case.tensors}
    required = {name: None for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    args, kwargs = Call.of(case).split(required | {name: _Name(name) for name in names} | dict(case.flags))
    words = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{case.op}({', '.join(words)})"


def requiring_grad(candidate: Callable[..., Any]) -> Callable[..., Any]:
    """The candidate, called with each floating-point tensor as an ``nn.Parameter`` of the same memory."""

    def with_grad(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.nn.Parameter(value)
        return value

    def call(*args: Any, **kwargs: Any) -> Any:
        return candidate(*map(with_grad, args), **{name: with_grad(value) for name, value in kwargs.items()})

    return call
