"""``validate bench ops`` and ``validate bench denoise``: timings."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from validation.commands import FAILED, PASSED, Command, progress
from validation.errors import UsageError

if TYPE_CHECKING:
    from validation.cases.workloads import Workload


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())


def _ops(options: argparse.Namespace) -> int:
    from validation.device import select
    from validation.files import require_writable

    device = select(options.gpu)
    from validation.bench import counters, ops, ops_results, selection
    from validation.bench.timing import GpuTimer

    found = selection.chosen(options.op, options.model)
    stamp = _stamp()
    if not (options.gpu or options.merge):
        return _count(options, found, stamp)
    names = ops.chosen_arms(options.arm)
    if options.merge:
        rows, where = ops_results.read(options.merge)
        paths = ops_results.write(rows, where, options.out, stamp)
    else:
        require_writable(options.out)
        timer = GpuTimer()
        progress("counting, for the bounds")
        bounds = dict(zip(found, counters.bounds_on(device.name, found), strict=True))
        rows, where = [], ops_results.about(timer, device.name)
        for row in ops.run(found, timer, whole=True, names=names, rounds=options.rounds, progress=progress):
            row.bound = bounds[row.workload]
            rows.append(row)
            # Written after each row, so that results survive a run that is cut short.
            paths = ops_results.write(rows, where, options.out, stamp)
    print(ops_results.table(rows))
    print("results:", *paths)
    return FAILED if any(row.failed for row in rows) else PASSED


def _count(options: argparse.Namespace, found: "Sequence[Workload]", stamp: str) -> int:
    from validation.bench import counters, ops_results
    from validation.bench.ops_results import OURS
    from validation.files import require_writable

    names = counters.chosen_arms(options.arm)
    require_writable(options.out)
    print(ops_results.without_gpu(found), flush=True)
    rows = counters.count(found, names=names, progress=progress)
    paths = counters.write(rows, options.out, f"counters-{stamp}")
    print("\n" + counters.table(rows))
    print("results:", *paths)
    return FAILED if any(OURS in row.left_out for row in rows) else PASSED


def _denoise(options: argparse.Namespace) -> int:
    if options.drift != "none" and options.replays < 4:
        raise UsageError(f"--replays: {options.replays}, expected at least 4 (--drift none leaves the drift out)")
    if options.profile and not options.gpu:
        raise UsageError("--profile: kernels are seen on a GPU only, expected --gpu as well")
    import torch

    from validation.device import select
    from validation.files import require_writable
    from validation.ops import load_op_set

    device = select(options.gpu)
    from validation.bench import denoise, denoise_report
    from validation.bench.denoise_results import Result

    ops = load_op_set(options.ops)
    if not (options.gpu or options.tiny):
        print(denoise.without_gpu(options.model, ops, options.checkpoint))
        return PASSED
    require_writable(options.out)
    stamp = _stamp()

    def keep(result: Result) -> list[Path]:
        return denoise_report.write(result, device.name, options.out, stamp, profile=options.profile)

    try:
        result = denoise.benchmark(
            options.model,
            ops,
            device.torch,
            tiny=options.tiny,
            checkpoint=options.checkpoint,
            names=options.arm,
            steps=options.steps,
            rounds=options.rounds,
            decodes=options.decodes,
            drift=options.drift,
            replays=options.replays,
            cache=options.cache,
            keep=keep,
            progress=progress,
        )
    except torch.OutOfMemoryError as error:
        said = next(iter(str(error).splitlines()), "")
        raise UsageError(f"--model {options.model}: the path before the fusions does not fit: {said}") from error
    print(denoise_report.table(result))
    print("results:", *keep(result))
    return FAILED if result.failed else PASSED


COMMANDS = (
    Command(
        "bench ops",
        "every op at every workload of the real models",
        "Times each op at each site of Helios and Hunyuan3D-2, and at shapes that neither has, beside the\n"
        "eager reference, torch.compile of it, PyTorch's norms and other libraries' kernels, and a copy of as many\n"
        "bytes. Results are written after each workload, and --merge makes one of those of several calls. Without\n"
        "--gpu nothing is timed: kernels are compiled for sm_80, sm_90 and sm_100, and what they ask of memory and of\n"
        "the schedulers is counted, with the bounds that follow for A100, H100, H200 and B200. Exit status 1 if an op\n"
        "of ours fails; to fall short of a goal is no failure.",
        _ops,
        epilog="",
    ),
    Command(
        "bench denoise",
        "a whole denoiser's step, before the fusions and after",
        "Times a step of Helios or Hunyuan3D-2 at full size, random weights, in arms that take turns: the\n"
        "path before the fusions, the sites of the change upstream, all sites, compact modulation, CUDA graphs,\n"
        "torch.compile; beside each its drift verdict, launches, memory and the bytes that it must move. Without\n"
        "--gpu: the bytes alone; nothing is timed. Exit status 1 if an arm of the op set fails, its drift included.",
        _denoise,
        epilog="",
        samples=True,
    ),
)
