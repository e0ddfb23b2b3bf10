"""Errors that end a command with one line instead of a traceback."""


class UsageError(Exception):
    """The caller asked for something that cannot be done; the message says what was expected.

    The command line prints it and exits with 2; pytest turns it into its own usage error (exit 4).
    """


class Terminated(KeyboardInterrupt):  # an interruption
    """SIGTERM, which interrupts as Ctrl-C does, also where that is ignored (``nohup``)."""


class CannotExpress(Exception):  # noqa: N818  # no error: an answer
    """An adapter's library has no call for these arguments; the message says which of them.

    The judge gives such a case the status ``NOT_EXPRESSED``.
    """


class NotExecutedError(Exception):
    """A compiled kernel does what the suite does not execute; the message names the opcode and the source line.

    The judge gives such a case the status ``NOT_EXECUTED``.
    """
