"""A process that imports a module when it is first asked for, and forks a child that calls a function in it.

Torch and Triton take a second to import, which a fork saves. The server itself calls
nothing, so it has no thread that a fork would lose but OpenBLAS's, which prepares for forks; and it never touches CUDA,
which a fork would not survive.

A child is asked for over a SOCK_SEQPACKET socket: one message, the JSON of an `Order`, with the descriptors `Handed`
and those of the function; it is answered by the process id. How the child ended comes as `STATUS` down ``ended``.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

LONGEST_ORDER = 1 << 16
MOST_DESCRIPTORS = 16
# A child's status as `os.waitpid` gives it.
STATUS = struct.Struct("i")
# Option of Linux' prctl: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


class Order(NamedTuple):
    """What a child does: ``function`` of ``module``, called with ``arguments`` and the descriptors, in a folder."""

    module: str
    function: str
    arguments: Sequence[str]
    folder: str
    settings: dict[str, str]  # of its environment, beside the server's


class Handed(NamedTuple):
    """A child's standard descriptors, and the one where its end is told."""

    stdin: int
    stdout: int
    stderr: int
    ended: int


def die_with(parent: int) -> None:
    """End this process when its parent ends: one that spins would run forever."""
    # Strictly, when the thread that started this process ends: the suite starts it only in its main thread.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it has already ended
        sys.exit(1)


def _serve(control: socket.socket, parent: int) -> None:
    """Fork children until the parent has hung up and the last of them has ended."""
    die_with(parent)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored signal would not wake the loop
    ended: dict[int, int] = {}
    server = os.getpid()
    sources: list[socket.socket | int] = [control, woken]
    while control in sources or ended:
        ready, _, _ = select.select(sources, [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 1 << 16)
        _tell_ends(ended)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, LONGEST_ORDER, MOST_DESCRIPTORS)
        if not message:
            sources.remove(control)
            continue
        order, handed = Order(*json.loads(message)), Handed(*descriptors[: len(Handed._fields)])
        with contextlib.suppress(Exception):  # the child fails at it too, and says so
            if order.module not in sys.modules:
                importlib.import_module(order.module)
                gc.freeze()  # no child looks through what it does not free
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A candidate that writes everywhere must not reach what is not the child's.
            for descriptor in (woken, wake, handed.ended, control.detach(), *ended.values()):
                os.close(descriptor)
            _be_child(order, handed, descriptors[len(handed) :], server)
        ended[process] = handed.ended
        for descriptor in descriptors:
            if descriptor != handed.ended:
                os.close(descriptor)
        control.send(str(process).encode())


def _tell_ends(ended: dict[int, int]) -> None:
    while ended:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        descriptor = ended.pop(process)
        with contextlib.suppress(BrokenPipeError):  # the parent does not wait for it any more
            os.write(descriptor, STATUS.pack(status))
        os.close(descriptor)


def _be_child(order: Order, handed: Handed, descriptors: Sequence[int], server: int) -> NoReturn:
    code: object = 1
    try:
        os.setsid()
        die_with(server)
        for target, source in enumerate(handed[:3]):
            os.dup2(source, target)
        for source in handed[:3]:
            os.close(source)
        os.chdir(order.folder)
        os.environ.update(order.settings)
        getattr(importlib.import_module(order.module), order.function)(*order.arguments, *descriptors)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
