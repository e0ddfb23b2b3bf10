"""Standard output and error of a command that go on when their reader has left or their disk is full."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Lasting:
    """A text stream that drops what it cannot write, and remembers why.

    Attributes:
        error: the first error of writing; None so far.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, unless an earlier write failed."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Flush, unless an earlier write failed."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.error = error

    def drop(self) -> None:
        """Lead what is still buffered to nowhere, for Python writes it again when it ends."""
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[Lasting]:
    """Standard output and error that outlast their readers; gives standard output, to ask for its error.

    A reader that has left (``| head``) is told to nobody: it has what it wanted.
    """
    out, error = Lasting(sys.stdout), Lasting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            yield out
        finally:
            out.flush()
            error.flush()
            for stream in (out, error):
                if stream.error is not None:
                    stream.drop()
