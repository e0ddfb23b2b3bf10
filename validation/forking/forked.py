"""The parent's side: processes of ours, forked by a server that has imported what they need, or started anew."""

import atexit
import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from validation.files import PACKAGE
from validation.forking.server import STATUS, Handed, Order


class Process(Protocol):
    """A child, as `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; `subprocess.TimeoutExpired` after so many seconds."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless it has ended."""


class Forked:
    """A child of a fork server, which waits for it and tells how it ended."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """As `Process` says."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            told = os.read(self._ended, STATUS.size)
            os.close(self._ended)
            # Without a word the server was killed, and its children with it.
            self.returncode = os.waitstatus_to_exitcode(STATUS.unpack(told)[0]) if told else -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        """As `Process` says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        if self.returncode is None:
            os.kill(self.pid, number)


class Server:
    """A fork server of ours, with the environment that it was started in.

    Attributes:
        environment: of its children.
        process: the server itself.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = spawn("validation.forking.server", (theirs.fileno(),), environment=environment)
        atexit.register(self._end)

    def fork(self, order: Order, standard: tuple[int, int, int], descriptors: Sequence[int]) -> Forked:
        """Fork a child; an `OSError` if the server has died."""
        ended, told = os.pipe()
        try:
            handed = Handed(*standard, told)
            socket.send_fds(self._socket, [json.dumps(order).encode()], [*handed, *descriptors])
            answer = self._socket.recv(64)
            if not answer:
                raise ConnectionResetError(f"the fork server {how_it_ended(self.process.wait())}")
        except OSError:
            os.close(ended)
            raise
        finally:
            os.close(told)
        return Forked(int(answer), ended)

    def hang_up(self) -> None:
        """Ask for no more; it ends with its last child."""
        self._socket.close()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()


# One for each set of variables that its children do without.
servers: dict[tuple[str, ...], Server] = {}


def fork(
    order: Order, standard: tuple[int, int, int], descriptors: Sequence[int] = (), *, without: tuple[str, ...] = ()
) -> Forked:
    """Fork a child in a session of its own from a server with our environment, which starts if there is none.

    Args:
        order: what it does.
        standard: its stdin, stdout and stderr.
        descriptors: further arguments of the function.
        without: variables of our environment that the server, and so what it imports, does not have.
    """
    # pytest sets PYTEST_CURRENT_TEST before each test; no child reads it.
    left = {"PYTEST_CURRENT_TEST", *without, *order.settings}
    environment = {name: value for name, value in os.environ.items() if name not in left}
    server = servers.get(without)
    if server is not None and server.environment == environment:
        with contextlib.suppress(OSError):  # somebody killed it
            return server.fork(order, standard, descriptors)
    if server is not None:
        server.hang_up()
    servers[without] = Server(environment)
    return servers[without].fork(order, standard, descriptors)


def spawn(
    module: str,
    descriptors: tuple[int, ...],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> subprocess.Popen[bytes]:
    """Start a module as a new process in a session of its own; its arguments are the descriptors and our process id.

    Its output goes to stderr, and its stdin is empty: nobody would see a prompt.
    """
    # -P, and no empty element in PYTHONPATH: the current folder is the user's, and a select.py in it would be
    # imported for Python's.
    command = [sys.executable, "-P", "-m", module, *map(str, (*descriptors, os.getpid()))]
    folders = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=descriptors,
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *folders])},
        start_new_session=True,
    )


@dataclasses.dataclass(frozen=True)
class Call:
    """A function that runs in a forked child; `start_call` makes it."""

    child: Forked
    stdout: int
    stderr: int

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and close what it wrote to."""
        code = self.child.wait()
        printed, said = map(_read, (self.stdout, self.stderr))
        self._close()
        return subprocess.CompletedProcess(f"process {self.child.pid}", code, printed, said)

    def output(self) -> str:
        """What it printed, once it has ended.

        Raises:
            RuntimeError: it exited with a status other than 0 or died; the message is its stderr, or how it ended.
        """
        run = self.ended()
        if run.returncode:
            raise RuntimeError(run.stderr.strip() or f"the process {how_it_ended(run.returncode)}")
        return run.stdout

    def end(self) -> None:
        """End it and what it started; nobody wants its output any more."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGKILL)  # it has no group of its own yet if it was forked just now
        self.child.wait()
        self._close()

    def _close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)


def start_call(order: Order, text: str = "", *, without: tuple[str, ...] = ()) -> Call:
    """Call a function in a forked child, as in a process of its own: `text` is on its stdin."""
    stdin, stdout, stderr = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    try:
        with open(stdin, "w", closefd=False) as file:
            file.write(text)
        os.lseek(stdin, 0, os.SEEK_SET)
        return Call(fork(order, (stdin, stdout, stderr), without=without), stdout, stderr)
    except BaseException:
        os.close(stdout)
        os.close(stderr)
        raise
    finally:
        os.close(stdin)


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, errors="replace", closefd=False) as file:
        return file.read()


def how_it_ended(code: int) -> str:
    """A process's exit status as words, negative for a signal."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"
