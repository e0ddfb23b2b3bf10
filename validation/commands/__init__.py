"""The commands of ``validate``, in several files; heavy imports wait until a command runs."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable

PASSED, FAILED, USAGE, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\
exit status: 0 all passed, 1 a verdict failed, 2 usage error or nowhere to write, 3 inconclusive or unfinished,
130 interrupted before anything was judged
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: one word, or two if several commands share the first (``bench ops``).
        help: its line in the list of commands.
        description: the text above its own help.
        run: takes the options and returns the exit status.
        words: positional arguments, as (metavar, help); one whose metavar ends with ``...`` may be several.
        epilog: the text below its help.
        samples: whether it samples models or judges samples, and so needs the extra ``models``.
    """

    name: str
    help: str
    description: str
    run: Callable[[argparse.Namespace], int]
    words: tuple[tuple[str, str], ...] = ()
    epilog: str = EPILOG
    samples: bool = False


def progress(text: str) -> None:
    """Print a line with the time to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def exit_status(statuses: Iterable[object], *, finished: bool = True) -> int:
    """The exit status of a run: a failure outweighs the rest, and a finished run without results fails.

    Args:
        statuses: of its records.
        finished: whether all of its plan was judged.
    """
    from validation.verdict import Status

    known = [Status(str(status)) for status in statuses]
    if any(status.failed for status in known) or (finished and not any(status.judged for status in known)):
        return FAILED
    return PASSED if finished and Status.INCONCLUSIVE not in known else INCONCLUSIVE
