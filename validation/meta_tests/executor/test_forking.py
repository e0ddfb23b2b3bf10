"""Functions called in forked processes: what they read, print and leave, and how they end."""

import os
import sys
import time
from pathlib import Path

import pytest

from validation.forking import forked
from validation.forking.server import Order

WITHOUT = ("VARIABLE_OF_NOBODY",)  # a server of our own, which a test may kill


def echo(*arguments: str) -> None:
    print(len(sys.stdin.read()), *arguments, Path.cwd(), os.environ["SET"])


def fail(how: str) -> None:
    print("said on stderr", file=sys.stderr)
    if how == "killed":
        sys.stderr.flush()
        os.kill(os.getpid(), 9)
    sys.exit(how)


def say_nothing() -> None:
    os._exit(7)


def wait() -> None:
    print("begun", flush=True)
    time.sleep(1000)


def start(function: str, *arguments: str, module: str = "", text: str = "", folder: str = "/") -> forked.Call:
    order = Order(module or "validation.meta_tests.executor.test_forking", function, arguments, folder, {"SET": "here"})
    return forked.start_call(order, text, without=WITHOUT)


def test_a_call_reads_prints_and_has_its_folder_and_settings(tmp_path: Path) -> None:
    calls = [start("echo", str(n), text="x" * n, folder=str(tmp_path)) for n in (0, 1, 3_000_000)]
    assert [call.output() for call in calls] == [f"{n} {n} {tmp_path} here\n" for n in (0, 1, 3_000_000)]
    assert "SET" not in os.environ


def test_a_call_that_fails_says_why() -> None:
    for function, arguments, words in (
        ("fail", ["in words"], "said on stderr"),
        ("fail", ["killed"], "said on stderr"),
        ("say_nothing", [], "the process exited with status 7"),
        ("no_such_function", [], "AttributeError: .*'no_such_function'"),
    ):
        with pytest.raises(RuntimeError, match=words):
            start(function, *arguments).output()
    with pytest.raises(RuntimeError, match=r"No module named 'validation\.nowhere'"):
        start("main", module="validation.nowhere").output()
    with pytest.raises(RuntimeError, match="No such file or directory: '/nowhere'"):
        start("echo", folder="/nowhere").output()


def test_a_server_that_is_killed_takes_its_calls_along_and_is_replaced() -> None:
    call = start("wait")
    server = forked.servers[WITHOUT]
    server.process.kill()
    with pytest.raises(RuntimeError, match="the process was killed by SIGKILL"):
        call.output()
    assert start("echo", "again").output().startswith("0 again")
    assert forked.servers[WITHOUT] is not server


def test_a_call_that_is_not_wanted_any_more_is_ended_and_leaves_no_descriptor() -> None:
    start("echo").output()
    before = len(list(Path("/proc/self/fd").iterdir()))
    call = start("wait")
    call.end()
    assert call.child.returncode == -9
    with pytest.raises(ProcessLookupError):
        os.kill(call.child.pid, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
