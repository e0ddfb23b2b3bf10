"""Kernels whose counts are known, counted; run in a process without the interpreter."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from validation.bench import selection
from validation.bench.counting import arguments_of
from validation.bench.traffic import traffic
from validation.compiled.counters.launch import Counters, count
from validation.compiled.counters.watch import CTA_SHIFT, SECTOR, Watch
from validation.compiled.ptx.executing import execute_launches
from validation.compiled.ptx.launch import Launch, bound_launch
from validation.compiled.ptx.machine import Outcome, run

N = 4096


@triton.jit
def copied(x, y, STRIDE: tl.constexpr, TWICE: tl.constexpr, BLOCK: tl.constexpr):
    """y = x, of every STRIDE-th element of x; read a second time behind a barrier if TWICE."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at * STRIDE)
    if TWICE:
        tl.debug_barrier()
        value += tl.load(x + at * STRIDE, volatile=True)
    tl.store(y + at, value)


@triton.jit
def summed(x, w, y, n, BLOCK: tl.constexpr):
    """y = the sum of a row of x times w, which every program reads."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * n + at, mask=at < n, other=0.0) * tl.load(w + at, mask=at < n, other=0.0)
    tl.store(y + row, tl.sum(value, 0))


@triton.jit
def repeated(x, y, n, RAGGED: tl.constexpr = False):
    """y = a sum over n blocks of 32 elements, or in the first programs over fewer."""
    if RAGGED:
        n = tl.minimum(n, 1 + tl.program_id(0))
    value = tl.zeros((32,), tl.float32)
    for k in range(n):
        value += tl.load(x + k * 32 + tl.arange(0, 32))
    tl.store(y + tl.program_id(0), tl.sum(value, 0))


def _counted(call: Callable[[], Any], also: Callable[[Launch], object] = lambda _: None) -> Counters:
    """The counters of the one launch that a call makes; `also` is told of the launch."""
    found: list[Counters] = []

    def instead(launch: Launch) -> Outcome:
        found.append(count(launch, "sm_90"))
        also(launch)
        return Outcome((), ())

    end = execute_launches("sm_90", run=instead)
    try:
        call()
    finally:
        end()
    (one,) = found
    return one


def _copy(stride: int = 1, twice: bool = False, size: int = N) -> Counters:
    x, y = torch.empty(size * stride), torch.empty(size)
    return _counted(lambda: copied[(size // 1024,)](x, y, stride, twice, 1024))


def known() -> None:
    """Print the counters of copies and sums."""
    x, w, y = torch.empty(100, 2000), torch.empty(2000), torch.empty(100)
    found = {
        "copy": _copy(),
        "stride 8": _copy(8),
        "twice": _copy(twice=True),
        "large": _copy(size=100 * N),
        "sum": _counted(lambda: summed[(100,)](x, w, y, 2000, 2048)),
        "table": _counted(lambda: summed[(100,)](x, torch.empty(1_000_000), y, 2000, 2048)),
        "loop": _counted(lambda: repeated[(100,)](x, y, 50)),
        "ragged": _counted(lambda: repeated[(100,)](x, y, 50, RAGGED=True)),
    }
    print(json.dumps({name: one.to_dict() for name, one in found.items()}))


def _exactly(launch: Launch) -> dict[str, int]:
    """Counts of every CTA of a launch."""
    program, parameters, memory = bound_launch(launch, addresses_alone=True)
    watch = Watch()
    run(program, launch.grid, parameters, memory, shared_bytes=launch.shared_bytes, counting=watch)
    lower = (1 << CTA_SHIFT) - 1
    spaces = {
        name: sum(getattr(site, what) for site in watch.sites.values() if (site.space == "shared") == shared)
        for name, what, shared in (
            ("requests", "requests", False),
            ("sectors", "moved", False),
            ("needed", "needed", False),
            ("wavefronts", "moved", True),
        )
    }
    return {
        **spaces,
        "read_bytes": SECTOR * len(np.unique(watch.read & lower)),
        "written_bytes": SECTOR * len(np.unique(watch.written & lower)),
        "instructions": sum(watch.warps[n] * len(block) for n, block in enumerate(program.kernel.blocks)),
    }


def sampled() -> None:
    """Print the counters of some ops at their smallest workload, by some of the CTAs and by all of them."""
    import fused_ops

    found: dict[str, list[dict[str, Any]]] = {}
    for op in ("layer_norm_scale_shift", "qk_norm", "residual_gate_add", "rotary_embedding"):
        case = min((one.make(True) for one in selection.chosen([op])), key=lambda case: traffic(case).total)
        call = partial(getattr(fused_ops, op), **arguments_of(case))
        launches: list[Launch] = []
        counted = _counted(call, also=launches.append).to_dict()
        counted["instructions"] = sum(counted["instructions"].values())
        found[op] = [counted, *map(_exactly, launches)]
    print(json.dumps(found))
