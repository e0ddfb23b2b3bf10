"""Command lines that judge a case or an op again."""

import shlex

from validation.cases.case import Case
from validation.executor import Executor


def case_command(case: Case, executor: Executor) -> str:
    """The command line that judges a case again."""
    origin = executor.ops.origin
    ops = [] if origin == "fused_ops" else ["--ops", origin]
    return shlex.join(["validate", "repro", case.to_json(), *ops, *executor.words, *executor.device.words])


def op_command(op: str, executor: Executor, *options: str) -> str:
    """The command line that judges an op again, with further options of ``validate parity``."""
    words = ["validate", "parity", "--op", op, "--ops", executor.ops.origin]
    return shlex.join([*words, *executor.words, *options, *executor.device.words])
