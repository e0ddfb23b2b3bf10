"""Compiles every kernel of ``fused_ops`` ahead of time, without a GPU, and reads the compiler's output.

PTX, cubin and AMDGCN show what the interpreter cannot: the width of loads and stores, registers, spills,
roundings, whether subnormals are flushed. The launchers themselves are called, with CPU tensors of the real
models' widths and strides; only Triton's last step, the launch, is left out. So block sizes and specialisation
(which integer is 1 or divisible by 16, which pointer is 16-byte aligned) are those of a real launch by
construction.

Compilation runs in separate processes: with TRITON_INTERPRET set, ``triton.jit`` gives interpreted
functions, which cannot be compiled. They are forked from one that has imported `validation.compiled.forked`.
"""

import dataclasses
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import Arguments, keyword_arguments
from validation.compiled.kernel import Compiled
from validation.compiled.machine_code import read_amd, read_nvidia
from validation.compiled.model_calls import LAYOUTS, MODELS, WIDTHS, calls
from validation.compiled.ptx.target import TARGETS, compile_for
from validation.device.private import triton_module
from validation.forking.forked import Call, start_call
from validation.forking.server import Order
from validation.judge.expected import absent

# Processes at a time.
AT_ONCE = 2


def compile_kernels(
    targets: Sequence[str] = tuple(TARGETS),
    models: Sequence[str] = MODELS,
    layouts: Sequence[str] = LAYOUTS,
    options: Mapping[str, Any] | None = None,
) -> list[Compiled]:
    """Compile every call of `calls`, with one process for each target, two at a time.

    On one core a kernel takes about 0.25 s in an aligned layout, up to three times as long in others.

    Args:
        targets: names in `TARGETS`.
        models: models in `WIDTHS`.
        layouts: names in `LAYOUTS`.
        options: Triton's compile options that replace the launchers' (``{"enable_fp_fusion": False}``).

    Raises:
        RuntimeError: a kernel did not compile; the message ends with the compiler's.
    """

    request = {"models": [*models], "layouts": [*layouts], "options": {**(options or {})}}
    return [*_compile_elsewhere({"target": target, **request} for target in targets)]


def compile_cases(target: str, cases: Sequence[Case]) -> list[Compiled]:
    """Compile the kernels that the cases launch, on uninitialised memory; the results' model and layout are empty.

    Args:
        target: a name in `TARGETS`.
        cases: cases that each launch a kernel.

    Raises:
        RuntimeError: a kernel did not compile; the message ends with the compiler's.
    """
    return [*_compile_elsewhere([{"target": target, "cases": [case.to_json() for case in cases]}])]


def _compile_elsewhere(requests: Iterable[dict[str, Any]]) -> Iterator[Compiled]:
    # A new cache, so that what is read below was compiled now, by this version.
    with tempfile.TemporaryDirectory(prefix="triton-aot-") as cache:
        order = Order("validation.compiled.forked", "main", (), str(Path.cwd()), {"TRITON_CACHE_DIR": cache})
        running: deque[tuple[str, Call]] = deque()
        try:
            for request in requests:
                if len(running) == AT_ONCE:
                    yield from _compiled(*running.popleft())
                call = start_call(order, json.dumps(request), without=("TRITON_INTERPRET",))
                running.append((request["target"], call))
            while running:
                yield from _compiled(*running.popleft())
        finally:
            for _, call in running:
                call.end()


def _compiled(target: str, call: Call) -> Iterator[Compiled]:
    try:
        lines = call.output().splitlines()
    except RuntimeError as error:
        raise RuntimeError(f"compiling for {target} failed: {error}") from None
    return map(_from_json, lines)


def _from_json(line: str) -> Compiled:
    data = json.loads(line)
    for name in ("load_bits", "store_bits"):
        data[name] = {int(width): n for width, n in data[name].items()}
    return Compiled(**data)


def _compile_here(
    target: str,
    models: Sequence[str] = (),
    layouts: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    cases: Sequence[str] = (),
) -> Iterator[Compiled]:
    """Compile for one target in this process, in which the interpreter must be off."""
    compile_for(target)
    jit_function = triton_module("triton.runtime.jit").JITFunction
    launch, compiled = jit_function.run, []

    def compile_only(self: Any, *arguments: Any, warmup: bool, **keywords: Any) -> None:
        assert not warmup
        compiled.append(launch(self, *arguments, warmup=True, **{**keywords, **options}))

    jit_function.run = compile_only
    of_widths = (
        (op, width.model, layout, call)
        for width in WIDTHS
        if width.model in models
        for layout in layouts
        for op, call in calls(width, layout)
    )
    of_cases = ((case.op, "", "", _call_of(case)) for case in map(Case.from_json, cases))
    read = read_amd if target.startswith("gfx") else read_nvidia
    for op, model, layout, call in (*of_widths, *of_cases):
        call()
        kernel = compiled.pop()
        yield Compiled(
            op=op,
            model=model,
            layout=layout,
            target=target,
            shared_bytes=kernel.metadata.shared,
            warps=kernel.metadata.num_warps,
            fp_fusion=kernel.metadata.enable_fp_fusion,
            **read(kernel.asm),
        )


def _call_of(case: Case) -> Callable[[], Any]:
    import fused_ops

    return lambda: getattr(fused_ops, case.op)(**unwritten(case).kwargs)


def unwritten(case: Case) -> Arguments:
    """Uninitialised arguments of a case on the CPU; only an index is set, to zeros: ops read it before they launch."""
    sizes: dict[str, int] = {}
    for spec in case.tensors.values():
        sizes[spec.storage] = max(sizes.get(spec.storage, 0), spec.extent)
    memory, tensors = dict[str, Tensor](), dict[str, Tensor]()
    for name, spec in case.tensors.items():
        make = torch.zeros if name.endswith(".index") else torch.empty
        whole = memory.setdefault(spec.storage, make(sizes[spec.storage], dtype=spec.torch_dtype))
        tensors[name] = whole.as_strided(spec.shape, spec.strides, spec.offset)
    kwargs = keyword_arguments(case, tensors)
    return Arguments(kwargs | absent(case, kwargs), tensors, {})


def main() -> None:
    """Compile what the request on stdin asks for, in this process, and print one line a kernel."""
    for kernel in _compile_here(**json.load(sys.stdin)):
        print(json.dumps(dataclasses.asdict(kernel)), flush=True)


if __name__ == "__main__":
    main()
