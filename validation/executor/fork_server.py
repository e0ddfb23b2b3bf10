"""A process that has imported what a child needs, and forks one at each request.

Torch and Triton take a second to import, the fork three milliseconds; a candidate that dies in
each of its cases costs its cases alone. The server itself calls no op, so it has no thread that a fork would lose but
OpenBLAS's, which prepares for forks; and it never touches CUDA, which a fork would not survive.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from validation.executor import child
from validation.executor.protocol import STATUS, Handed

LONGEST_FOLDER = 1 << 16


def _serve(control: socket.socket, parent: int) -> None:
    """Fork children until the parent has hung up and the last of them has ended."""
    child.die_with(parent)
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
        folder, descriptors, _, _ = socket.recv_fds(control, LONGEST_FOLDER, len(Handed._fields))
        if not folder:
            sources.remove(control)
            continue
        handed = Handed(*descriptors)
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A candidate that writes everywhere must not reach what is not the child's.
            for descriptor in (woken, wake, handed.ended, control.detach(), *ended.values()):
                os.close(descriptor)
            _be_child(os.fsdecode(folder), handed, server)
        ended[process] = handed.ended
        for descriptor in handed[:-1]:
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


def _be_child(folder: str, handed: Handed, server: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (handed.stderr, 1), (handed.stderr, 2)):
            os.dup2(source, target)
        os.close(null)
        os.close(handed.stderr)
        os.chdir(folder)
        child.serve(handed.requests, handed.replies, handed.trace, server)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
