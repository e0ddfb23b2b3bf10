"""A child process of an isolated executor: forked where kernels run on the CPU, started anew on a GPU."""

import atexit
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from validation.executor.protocol import STATUS, Handed
from validation.files import PACKAGE


class Process(Protocol):
    """What `validation.executor.worker` asks of a child, as `subprocess.Popen` has it."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; `subprocess.TimeoutExpired` after so many seconds."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless it has ended."""


def start(requests: int, replies: int, trace: int, folder: Path, *, fork: bool) -> Process:
    """Start a child in a session of its own, so that its children die with it.

    Its output goes to stderr, and its stdin is empty: nobody would see a prompt.

    Args:
        requests, replies, trace: its descriptors, as `validation.executor.child.serve` takes them.
        folder: its current folder.
        fork: whether to fork it from a process that has imported torch and Triton; CUDA does not survive a fork.
    """
    return _fork(requests, replies, trace, folder) if fork else _spawn("child", (requests, replies, trace), folder)


def _spawn(module: str, descriptors: tuple[int, ...], folder: Path | None = None) -> subprocess.Popen[bytes]:
    # -P, and no empty element in PYTHONPATH: the current folder is the user's, and a select.py in it would be
    # imported for Python's. The child takes over our sys.path once it has imported what it needs itself.
    command = [sys.executable, "-P", "-m", f"validation.executor.{module}", *map(str, (*descriptors, os.getpid()))]
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=descriptors,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *folders])},
        start_new_session=True,
    )


class _Forked:
    """A child of the fork server, which waits for it and tells how it ended."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            told = os.read(self._ended, STATUS.size)
            os.close(self._ended)
            # Without a word the server was killed, and its children with it.
            self.returncode = os.waitstatus_to_exitcode(STATUS.unpack(told)[0]) if told else -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        if self.returncode is None:
            os.kill(self.pid, number)


class _ForkServer:
    """A fork server of ours, with the environment that it was started in."""

    def __init__(self) -> None:
        self.environment = _environment()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _spawn("fork_server", (theirs.fileno(),))
        atexit.register(self._end)

    def fork(self, requests: int, replies: int, trace: int, folder: Path) -> _Forked:
        ended, told = os.pipe()
        try:
            socket.send_fds(self._socket, [os.fsencode(folder)], Handed(requests, replies, trace, 2, told))
            answer = self._socket.recv(64)
            if not answer:
                raise ConnectionResetError(f"the fork server ended with status {self._process.wait()}")
        except OSError:
            os.close(ended)
            raise
        finally:
            os.close(told)
        return _Forked(int(answer), ended)

    def hang_up(self) -> None:
        """Ask for no more; it ends with its last child."""
        self._socket.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


_server: _ForkServer | None = None


def _environment() -> dict[str, str]:
    # Set by pytest before each test; no child reads it.
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _fork(requests: int, replies: int, trace: int, folder: Path) -> Process:
    global _server
    if _server is not None and _server.environment == _environment():
        with contextlib.suppress(OSError):  # somebody killed it
            return _server.fork(requests, replies, trace, folder)
    if _server is not None:
        _server.hang_up()
    _server = _ForkServer()
    return _server.fork(requests, replies, trace, folder)
