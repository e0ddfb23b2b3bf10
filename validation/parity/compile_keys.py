"""How many kernels a GPU would compile for a sweep, counted without one.

    python -m validation.parity.compile_keys [--free N] [--seed N] [--no-pool] [OP ...]

The launchers of ``fused_ops`` are called with tensors of the sweep's shapes, strides, offsets and dtypes; Triton
itself makes the key under which it would look for a compiled kernel, and is stopped there. The count has the keys of

* the first call of every case;
* the further calls of `judge.same_bits`: for each key of a first call, every check that any of its cases may get. So
  for the drawn cases the number is the most that a sweep compiles, whichever checks are due.

Triton compiles one kernel for each key that is missing from its cache on disk (``TRITON_CACHE_DIR``), which keeps
the kernels of earlier runs.

This needs a process without Triton's interpreter: `count` starts one.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from validation.cases import strategies
from validation.cases.case import Case
from validation.cases.pool import draw_cases
from validation.compiled import aot
from validation.compiled.ptx.target import compile_for
from validation.device import Device
from validation.device.private import triton_module
from validation.errors import UsageError
from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.judge import same_bits
from validation.judge.expected import outputs_of
from validation.judge.second_calls import FirstCall
from validation.judge.signature import signature_of
from validation.ops import check_op_name, reference_op_names
from validation.parity.plan import Plan
from validation.parity.profiles import Profile

# Elements of a case beyond which its memory is not written, and beyond which it is not allocated (whole workloads, rows
# beyond 2^31 elements: up to 9 GB). A call that is not made counts as a kernel of its own.
MOST_WRITTEN, MOST_MADE = 2**20, 2**30

# Checks that repeat the first call's arguments, only on a GPU.
ON_GPU = frozenset({"side stream", "graph replay"})


@dataclasses.dataclass(frozen=True)
class Count:
    """The kernels of a sweep.

    Attributes:
        op: its name.
        cases: the number of cases.
        first: kernels of their first calls.
        checks: further kernels that the same-bits checks may need.
    """

    op: str
    cases: int
    first: int
    checks: int

    @property
    def kernels(self) -> int:
        """The sum of both."""
        return self.first + self.checks


def count(ops: Sequence[str] = (), *, free: int, seed: int, pool: bool = True) -> list[Count]:
    """Count the kernels of a sweep of each op with 2 cases a corner and ``free`` others.

    Args:
        ops: the ops' names; none: all ops.
        free: number of cases beside those of the corners.
        seed: determines all cases.
        pool: False counts ``free`` cases drawn without a pool instead.

    Raises:
        RuntimeError: the counting process failed; the message ends with its stderr.
    """
    arguments = ["--json", "--free", str(free), "--seed", str(seed), *ops, *([] if pool else ["--no-pool"])]
    order = Order("validation.parity.compile_keys", "main", arguments, str(Path.cwd()), {})
    try:
        lines = start_call(order, without=("TRITON_INTERPRET",)).output().splitlines()
    except RuntimeError as error:
        raise RuntimeError(f"counting failed: {error}") from None
    return [Count(**json.loads(line)) for line in lines]


def _cases(op: str, free: int, seed: int, *, pool: bool) -> Iterator[Case]:
    if not pool:
        yield from draw_cases(strategies.cases(signature_of(op)), seed=seed, count=free)
        return
    plan = Plan.of(op, Device("sm_90", "cuda"), Profile("counted", 2, free), seed)
    yield from (planned.case for planned in plan.cases())


def _count_here(op: str, drawn: Iterable[Case], seen: set[str]) -> Count:
    """`count` for one op's cases, in this process; Triton's hook adds the keys of each call to ``seen``."""
    import fused_ops

    candidate = getattr(fused_ops, op)
    cases, uncalled, first, further = 0, Counter[str](), set[str](), set[str]()
    for case in drawn:
        cases += 1
        elements = max(spec.extent for spec in case.tensors.values())
        if elements > MOST_WRITTEN:
            uncalled["checks"] += len(set(same_bits.due(case, "cuda")).intersection(same_bits.OTHER_KERNEL))
        if elements > MOST_MADE:
            uncalled["first"] += 1
            continue
        arguments = aot.unwritten(case)
        seen.clear()
        with torch.no_grad():
            result = candidate(**arguments.kwargs)
        checks = set(same_bits.due(case, "cuda")) if seen <= first else set(_possible(case))
        first |= seen
        if elements > MOST_WRITTEN:
            continue
        call = FirstCall(
            case=case,
            candidate=candidate,
            make=lambda case=case: aot.unwritten(case),  # type: ignore[misc]
            arguments=arguments,
            outputs=outputs_of(result),
            returned=(),
            kernels=False,
            even=False,
            failed=lambda _: None,
            judged_as=lambda *_: None,
            device="cpu",
        )
        seen.clear()
        for name in checks - ON_GPU:
            same_bits.CHECKS[name](call)
        further |= seen
    return Count(op, cases, len(first) + uncalled["first"], len(further - first) + uncalled["checks"])


def _possible(case: Case) -> Iterator[str]:
    """The checks that this case, or another with its compile key, may get."""
    yield from same_bits.due(case, "cuda")
    yield from (name for name in same_bits.affordable(case) if same_bits.applies(name, case, "cuda"))


def main(*argv: str) -> None:
    """Count in this process and print one line an op."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--free", type=int, default=2000, metavar="N", help="cases beside those of the corners")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="all cases follow from it")
    parser.add_argument("--no-pool", action="store_true", help="--free cases drawn freely, and no others")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("ops", nargs="*", metavar="OP", help="of these alone (default: all)")
    arguments = parser.parse_args(argv)
    if arguments.free < 0:
        parser.error(f"--free: {arguments.free}, expected an integer >= 0")
    try:
        for op in arguments.ops:
            check_op_name(op)
    except UsageError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    compile_for("sm_90")
    seen: set[str] = set()

    def stop(*, key: str, **_: Any) -> bool:
        seen.add(key)
        return True

    triton_module("triton.knobs").runtime.jit_cache_hook = stop
    for op in arguments.ops or reference_op_names():
        counted = _count_here(op, _cases(op, arguments.free, arguments.seed, pool=not arguments.no_pool), seen)
        if arguments.json:
            print(json.dumps(dataclasses.asdict(counted)), flush=True)
        else:
            print(f"{op:40}{counted.cases:6} cases{counted.first:5} + {counted.checks:3} kernels", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
