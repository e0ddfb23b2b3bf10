"""The ``validate`` command."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from validation.commands import (
    EPILOG,
    FAILED,
    INCONCLUSIVE,
    INTERRUPTED,
    PASSED,
    USAGE,
    Command,
    again,
    bench,
    exit_status,
    explaining,
    predictions,
    run,
)
from validation.errors import Terminated, UsageError
from validation.extras import require_models
from validation.options import PROGRAM, add_options
from validation.output import lasting

__all__ = ["FAILED", "INCONCLUSIVE", "PASSED", "USAGE", "exit_status", "main"]

DESCRIPTION = """\
Is a fused op safe to land? One rule: the fused path may be no further from the truth than the path that it
replaces, measured, on inputs chosen to hurt.

  validate run                                the main job: parity, then quality, then a report to open
  validate parity --op layer_norm_scale_shift one op, over shapes, layouts, dtypes and value regimes
  validate parity --ops my_kernels.py         your own ops: a file or module that defines some of them
  validate quality --model helios             a whole sampled video, reference against fused
  validate faults                             planted bugs, each of which the suite must catch
  validate bench ops --gpu                    how fast each op is, beside the copy, the eager chain and others
  validate bench denoise --model helios --gpu how fast a whole denoiser is with them, beside each arm's drift
  validate explain --op rms_norm --ops my.py  where its arithmetic and ours first part, in words
  validate predict                            the bits that a GPU must give; validate confirm FILE --gpu compares them
  validate diff OLD_RUN NEW_RUN               two run folders: which verdicts, tiers, numbers and bits changed
  validate compare REFERENCE CANDIDATE        kept videos, images, arrays or meshes of two runs
  validate repro '{"op": ...}'                one case again, from a failure's last line
"""

COMMANDS = (*run.COMMANDS, *again.COMMANDS, *bench.COMMANDS, *predictions.COMMANDS, *explaining.COMMANDS)

# By the first word that several commands share: help text, description, and the metavar of the second word.
SHARED = {"bench": ("time ops or a denoiser", "Timings; they count on a GPU only.", "WHAT")}


class _Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of exiting, so that `main` prints one line and returns 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    below: dict[str, Callable[..., argparse.ArgumentParser]] = {}
    for command in COMMANDS:
        first, _, second = command.name.partition(" ")
        if second and first not in below:
            text, description, metavar = SHARED[first]
            shared = top.add_parser(first, help=text, description=description)
            below[first] = shared.add_subparsers(required=True, metavar=metavar).add_parser
        _add(command, below[first](second, **_texts(command)) if second else top.add_parser(first, **_texts(command)))
    return parser


def _add(command: Command, parser: argparse.ArgumentParser) -> None:
    for metavar, text in command.words:
        word, _, more = metavar.partition(" ")
        parser.add_argument(word.lower(), metavar=word, help=text, nargs="+" if more else None)
    add_options(parser, command.name)
    parser.set_defaults(command=command)


def _texts(command: Command) -> dict[str, Any]:
    return {
        "help": command.help,
        "description": command.description,
        "epilog": command.epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


# Of a disk that takes no more, and of one that may not be written.
NOWHERE_TO_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM interrupt as Ctrl-C does, so that it too leaves a report."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise Terminated("SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    from validation.files import default_folder

    # Otherwise Hypothesis creates its folder in the current directory.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(default_folder() / "hypothesis"))
    with _interrupted_by_sigterm(), lasting() as out:
        status = _run(argv)
        out.flush()
    if out.error is None or isinstance(out.error, BrokenPipeError):
        return status
    print(f"{PROGRAM}: cannot write to standard output: {out.error.strerror}", file=sys.stderr)
    return USAGE


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(argv)
        command: Command = vars(options).pop("command")
        if command.samples:
            require_models(f"{PROGRAM} {command.name}")
        return command.run(options)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        if error.errno not in NOWHERE_TO_WRITE:
            raise
        print(f"{PROGRAM}: cannot write {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
