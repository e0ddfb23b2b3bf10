"""The child's side of an isolated executor: it runs `InProcess`, one request after another."""

import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from validation.cases.case import Case
from validation.cases.errors import bad_calls, good_case
from validation.device import launches, select
from validation.device.private import triton_module
from validation.errors import UsageError
from validation.executor.in_process import InProcess
from validation.executor.protocol import Defect
from validation.forking.server import die_with
from validation.judge.signature import signature_of
from validation.judge.verdict import judge_call
from validation.ops import load_op_set, reference_op, reference_op_names

if os.environ.get("TRITON_INTERPRET") == "1":
    # A fork server imports this module, and its children find there what is imported here: 0.1 s less each.
    triton_module("triton.runtime.interpreter")


def serve(requests: int, replies: int, trace: int, counts: int) -> None:
    """Answer the request lines until there are no more.

    Args:
        requests: file descriptor of the requests.
        replies: file descriptor for the answers.
        trace: file descriptor to write the stack to on a fatal signal.
        counts: file descriptor of the memory in which to count what the interpreter launches.
    """
    faulthandler.enable(trace)
    # The parent handles Ctrl-C. A KeyboardInterrupt here was raised by the candidate (`tracebacks.is_interrupt`).
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (requests, replies, trace, counts):
        os.set_inheritable(descriptor, False)  # a process that the candidate starts would keep the pipes open

    def reply(request: dict[str, Any], work: Callable[[dict[str, Any]], Any]) -> None:
        try:
            text = json.dumps({"answer": work(request), "number": request["number"]})
        except UsageError as error:
            text = json.dumps({"usage_error": str(error), "number": request["number"]})
        except BaseException as error:  # a candidate's own exception is in the answer
            text = json.dumps({"defect": dataclasses.asdict(Defect.of(error)), "number": request["number"]})
        os.write(replies, text.encode() + b"\n")

    lines = (json.loads(line) for line in os.fdopen(requests, "rb"))
    answer_to: list[Callable[[dict[str, Any]], Any]] = []
    reply(next(lines), lambda start: answer_to.append(_loaded(start, counts)))
    printing = ""
    for request in lines:
        if request["printed"] and request["printed"] != printing:
            printing = request["printed"]
            _print_to(printing)
        reply(request, answer_to[0])


def _print_to(path: str) -> None:
    """Lead what this process prints to a file, or to nowhere if that cannot be written."""
    for name in (path, os.devnull):
        with contextlib.suppress(OSError):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(file)
            return


def _loaded(start: dict[str, Any], counts: int) -> Callable[[dict[str, Any]], Any]:
    """Select the device and load the op set; returns the function that answers all other requests."""
    device = select(**start["device"])
    # Unless it was forked, the first judged case imports Triton's runtime and torch._dynamo, which takes some three
    # seconds: do it here, so that it does not count against the candidate.
    op = reference_op_names()[0]
    judge_call(good_case(signature_of(op)), reference_op(op), device.torch)
    if not device.gpu:
        launches.count_programs(launches.Counts(counts))
    sys.path[:] = start["path"]
    executor = InProcess(load_op_set(start["ops"]), device)

    def answer_to(request: dict[str, Any]) -> Any:
        if "calls" in request:
            return dataclasses.asdict(executor.repeated(Case.from_dict(request["case"]), request["calls"]))
        if "case" in request:
            return dataclasses.asdict(executor.judge(Case.from_dict(request["case"]), grad=request["grad"]))
        named = {bad.name: bad for bad in bad_calls(signature_of(request["op"]))}
        return executor.not_refused(named[request["bad_call"]])

    return answer_to


if __name__ == "__main__":
    *_descriptors, _parent = map(int, sys.argv[1:])
    die_with(_parent)
    serve(*_descriptors)
