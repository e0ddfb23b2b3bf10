"""Op sets made of other libraries' kernels, each imported only when it is asked for.

Select one with ``--ops validation.adapters.liger``, for example. An adapter maps an op's arguments to the library's
call and raises `CannotExpress` if the library has none: such a case is counted, not judged.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from validation.device.private import triton_module
from validation.errors import CannotExpress, UsageError

__all__ = ["CannotExpress", "interpreted", "one_program_each", "qk_norm_of", "required"]

# A program costs 2 ms under Triton's interpreter, and a sweep has cases of 70,000 rows.
MAX_INTERPRETED_PROGRAMS = 16_384


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter."""
    return bool(triton_module("triton.knobs").runtime.interpret)


def one_program_each(rows: int) -> None:
    """Check the number of rows before a kernel that takes one row per program.

    Raises:
        CannotExpress: there are so many rows that the interpreter would run for minutes.
    """
    if interpreted() and rows > MAX_INTERPRETED_PROGRAMS:
        raise CannotExpress("one program a row: too many rows for the interpreter")


def qk_norm_of(rms_norm: Callable[..., Tensor], why_not_inplace: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make ``qk_norm`` for a library whose RMSNorm writes to new memory: it calls that norm twice.

    Args:
        rms_norm: the adapter's RMSNorm.
        why_not_inplace: the message of `CannotExpress` for ``inplace=True``.
    """

    def qk_norm(
        q: Tensor, k: Tensor, q_weight: Any, k_weight: Any, *eps: float, inplace: bool = False, **options: Any
    ) -> tuple[Tensor, Tensor]:
        if inplace:
            raise CannotExpress(f"inplace=True: {why_not_inplace}")
        return rms_norm(q, q_weight, *eps, **options), rms_norm(k, k_weight, *eps, **options)

    return qk_norm


def required(module: str, package: str, install: str = "") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name.
        package: its name on PyPI.
        install: the words after ``pip install``, if they are not just the package's name.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UsageError(f"--ops: needs {package}: pip install {install or package}") from error
