"""The commands of ``validate``, in several files; heavy imports wait until a command runs."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable

PASSED, FAILED, USAGE, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = """\
exit status: 0 all passed, 1 a verdict failed, 2 usage error, 3 inconclusive, 130 interrupted
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: one word, or two if several commands share the first (``bench ops``).
        help: its line in the list of commands.
        description: the text above its own help.
        run: takes the options and returns the exit status.
        words: positional arguments, as (metavar, help).
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


def exit_status(statuses: Iterable[object]) -> int:
    """The exit status of a run: a failure outweighs an inconclusive result, and a run without results fails."""
    from validation.verdict import Status

    known = [Status(str(status)) for status in statuses]
    if all(status is Status.NOT_EXPRESSED for status in known) or any(status.failed for status in known):
        return FAILED
    return INCONCLUSIVE if Status.INCONCLUSIVE in known else PASSED
