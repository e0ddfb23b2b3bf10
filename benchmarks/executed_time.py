"""Processor time of a call: interpreted, compiled and executed, and executed with races looked for.

    python benchmarks/executed_time.py [--rounds N] [OP ...]

Prints for the real models' workloads of each op (with few tokens, as on the CPU) the median of the rounds in
milliseconds, what executing takes of the interpreter's time, and how many times as long it takes with races. The three
take turns in each round: a process that interprets, and one that executes. Nothing is compiled or translated while a
clock runs.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--serve", choices=("interpreted", "executed"), help=argparse.SUPPRESS)
    parser.add_argument(
        "ops", nargs="*", metavar="OP", default=["layer_norm_scale_shift", "qk_norm", "residual_gate_add"]
    )
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve)
        return
    interpreted, executed = (_Server(how) for how in ("interpreted", "executed"))
    print(f"{'workload':<60}{'interpreted':>12}{'executed':>10}{'ratio':>7}{'with races':>12}{'ratio':>7}")
    for op in arguments.ops:
        names = interpreted.ask(f"workloads {op}").split("\t")
        assert names == executed.ask(f"workloads {op}").split("\t")
        for n, name in enumerate(names):
            asked = [(interpreted, f"call {n}"), (executed, f"call {n}"), (executed, f"races {n}")]
            times: list[list[float]] = [[], [], []]
            for turn in range(arguments.rounds + 1):
                for each, (server, request) in zip(times, asked, strict=True):
                    took = float(server.ask(request))
                    if turn:  # the first one compiles
                        each.append(1000 * took)
            first, second, third = map(statistics.median, times)
            row = f"{op}: {name}"[:59]
            print(f"{row:<60}{first:>12.1f}{second:>10.1f}{second / first:>7.2f}{third:>12.1f}{third / second:>7.2f}")


class _Server:
    def __init__(self, how: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, request: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(request, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().rstrip("\n")


def _serve(how: str) -> None:
    from validation.device import select

    select(compiled="sm_90" if how == "executed" else None)
    import fused_ops
    from validation.cases.tensors import materialise
    from validation.compiled.ptx import executing
    from validation.judge.expected import absent
    from validation.parity.workloads import workloads

    calls: list[Callable[[], Any]] = []
    for line in sys.stdin:
        what, argument = line.split()
        if what == "workloads":
            found = [(workload.name, workload.make(False)) for workload in workloads(argument)]
            calls = []
            for _, case in found:
                kwargs = materialise(case).kwargs
                kwargs |= absent(case, kwargs)
                calls.append(functools.partial(getattr(fused_ops, argument), **kwargs))
            print("\t".join(name for name, _ in found), flush=True)
            continue
        with executing.how(races=what == "races"):
            began = time.process_time()
            calls[int(argument)]()
            print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
