"""Command lines that judge a case or an op again."""

from typing import Any

from validation.cases.case import Case
from validation.executor import Executor
from validation.options import DEFAULT_OPS, repeat_line


def case_command(*cases: Case, executor: Executor) -> str:
    """The command line that judges a case again, or several one after another in one process."""
    origin = executor.ops.origin
    return repeat_line(
        "repro",
        *(case.to_json() for case in cases),
        ops=None if origin == DEFAULT_OPS else origin,
        **executor.options,
        **executor.device.options,
    )


def op_command(op: str, executor: Executor, **options: Any) -> str:
    """The command line that judges an op again; ``options`` are further options of ``validate parity``."""
    return repeat_line(
        "parity",
        always=("ops", "seed"),
        op=[op],
        ops=executor.ops.origin,
        **executor.options,
        **options,
        **executor.device.options,
    )
