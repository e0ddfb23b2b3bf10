"""A reference op that raises, or computes another function, is not the candidate's failure."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from validation.errors import UsageError
from validation.judge.expected import Expected, Target
from validation.judge.oracle import WrongTruthError
from validation.ops import tracebacks

T = TypeVar("T")


class ReferenceFailedError(Exception):
    """The reference op raised; the text says what and where."""


def of_reference(compute: Callable[[], T]) -> T:
    """What a function returns that calls the reference op alone.

    Raises:
        ReferenceFailedError: it raised.
        WrongTruthError: what it computes is not the op's formula.
        UsageError, torch.AcceleratorError, MemoryError: as raised, for these are not the reference's doing.
    """
    try:
        return compute()
    except (UsageError, torch.AcceleratorError, MemoryError, ReferenceFailedError, WrongTruthError):
        raise
    except Exception as error:
        said, place = tracebacks.said(error)[:300], tracebacks.of_error(error)
        raise ReferenceFailedError(f"the reference op raised {type(error).__name__}: {said}{place}") from error


def checked_target(expected: Expected) -> Callable[[tuple[Tensor, ...]], tuple[tuple[Tensor, Target], ...]]:
    """`Expected.target`, which may call the reference op on the candidate's outputs.

    If that raises, the reference's own outputs tell whose doing it was: `ReferenceFailedError` if they raise too.
    """

    def target(outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Target], ...]:
        try:
            return expected.target(outputs)
        except Exception:
            of_reference(lambda: expected.target(expected.baseline))
            raise

    return target
