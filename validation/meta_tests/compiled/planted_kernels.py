"""Kernels that are wrong on purpose, each beside the right one; compiled and run in a process without the interpreter.

python -m validation.meta_tests.compiled.planted_kernels    # prints what each planted fault gives, as JSON
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.compiled.ptx.errors import Violation
from validation.compiled.ptx.executing import executing, how
from validation.compiled.ptx.launch import Launch, run_launch
from validation.compiled.ptx.machine import Outcome


@triton.jit
def double_rows(x, y, D, stride, HINT: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = 2 x; HINT claims that the stride is a multiple of 8, without MASKED every program writes all its rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    base = row * stride
    if HINT:
        base = tl.multiple_of(base, [8])
    mask = (column < D)[None, :] & (row < ROWS + 1)[:, None]
    write = mask if MASKED else (column < D)[None, :] & (row >= 0)[:, None]
    at = base[:, None] + column[None, :]
    value = tl.load(x + at, mask=mask, other=0.0)
    tl.store(y + at, (value.to(tl.float32) * 2).to(tl.bfloat16), mask=write)


@triton.jit
def weighted(x, w, y, D, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """y = w x; without MASKED the weight is read past its end."""
    column = tl.arange(0, BLOCK)
    mask = column < D
    weight = tl.load(w + column, mask=mask, other=0.0) if MASKED else tl.load(w + column)
    at = tl.program_id(0) * D + column
    tl.store(y + at, tl.load(x + at, mask=mask, other=0.0) * weight, mask=mask)


@triton.jit
def constant_mask(x, y, D, CLAIM: tl.constexpr, BLOCK: tl.constexpr):
    """Copies rows; CLAIM says that the mask changes at multiples of 8 only."""
    column = tl.arange(0, BLOCK)
    mask = column < D
    if CLAIM:
        mask = tl.max_constancy(mask, [8])
    tl.store(y + column, tl.load(x + column, mask=mask, other=0.0), mask=mask)


@triton.jit
def copy_rows(x, y, D, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Copies rows; row numbers times widths pass 2^31."""
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    tl.store(y + row * D + column, tl.load(x + row * D + column))


@triton.jit
def swap_blocks(x, D: tl.constexpr, BARRIER: tl.constexpr):
    """Exchanges blocks of 128 elements in place, through global memory: threads read what others wrote."""
    at = tl.program_id(0) * D + tl.arange(0, D)
    tl.store(x + at, tl.load(x + at) * 2)
    if BARRIER:
        tl.debug_barrier()
    value = tl.load(x + tl.program_id(0) * D + (tl.arange(0, D) ^ 128))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + at, value)


@triton.jit
def shift_rows(x, D: tl.constexpr):
    """Each program overwrites in place what the one before it reads."""
    at = tl.program_id(0) * D + tl.arange(0, D)
    tl.store(x + at, tl.load(x + at + D))


def _double(*, hint: bool, masked: bool) -> None:
    stride = 1020 if masked else 1024  # one is no multiple of 8
    x, y = (torch.ones(3 * stride, dtype=torch.bfloat16) for _ in range(2))
    double_rows[(2,)](x, y, 1008, stride, hint, masked, 2, 1024)
    assert (y[:1008] == 2).all()


def _weighted(*, masked: bool) -> None:
    x, w, y = torch.ones(2, 200), torch.full((200,), 3.0), torch.zeros(2, 200)
    weighted[(2,)](x, w, y, 200, masked, 256)
    assert (y == 3).all()


def _constant(*, claim: bool) -> None:
    x, y = torch.ones(1020, dtype=torch.bfloat16), torch.zeros(1020, dtype=torch.bfloat16)
    constant_mask[(1,)](x, y, 1020, claim, 1024, num_warps=1)


def _far(*, wide: bool) -> None:
    rows, D = (1 << 31) // 1024 + 8, 1024
    x, y = (torch.empty(rows, D, dtype=torch.bfloat16) for _ in range(2))  # 4.3 GB of addresses, never touched
    copy_rows[(rows,)](x, y, D, wide, 1024)


def _swap(*, barrier: bool) -> None:
    x = torch.arange(4 * 1024, dtype=torch.float32)
    swap_blocks[(4,)](x, 1024, barrier, num_warps=4)


def _shift(*, programs: int) -> None:
    shift_rows[(programs,)](torch.zeros(5 * 1024), 1024)


FAULTS: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "right double": (lambda: _double(hint=False, masked=True), {}),
    "false multiple_of": (lambda: _double(hint=True, masked=True), {}),
    "no row mask": (lambda: _double(hint=False, masked=False), {}),
    "right weight": (lambda: _weighted(masked=True), {}),
    "weight past its end": (lambda: _weighted(masked=False), {}),
    "right mask": (lambda: _constant(claim=False), {}),
    "false max_constancy": (lambda: _constant(claim=True), {}),
    "right far rows": (lambda: _far(wide=True), {"last": True}),
    "int32 offsets": (lambda: _far(wide=False), {"last": True}),
    "right exchange": (lambda: _swap(barrier=True), {"races": True}),
    "exchange without a barrier": (lambda: _swap(barrier=False), {"races": True}),
    "right in place": (lambda: _shift(programs=1), {"races": True}),
    "in place between programs": (lambda: _shift(programs=4), {"races": True}),
}


def _run(name: str) -> list[Violation]:
    call, runs_how = FAULTS[name]

    def last(launch: Launch) -> Outcome:
        return run_launch(launch, ctas=range(launch.grid[0] - 4, launch.grid[0]))

    last_alone = last if "last" in runs_how else None
    with how(races="races" in runs_how), executing("sm_90", run=last_alone) as runs:
        call()
    return runs.violations


def barriers() -> dict[str, list[Violation]]:
    """A LayerNorm as it is, and with each of its barriers taken out of the PTX: no output changes."""
    import fused_ops

    found: dict[str, list[Violation]] = {}

    def without(number: int | None) -> Callable[[Launch], Outcome]:
        def run(launch: Launch) -> Outcome:
            parts = launch.ptx.split("bar.sync \t0;")
            assert len(parts) == 6, len(parts)
            kept = ["bar.sync \t0;" if n != number else "" for n in range(len(parts) - 1)]
            ptx = "".join(part + bar for part, bar in zip(parts, [*kept, ""], strict=True))
            return run_launch(dataclasses.replace(launch, ptx=ptx), races=True)

        return run

    x, scale, shift = torch.randn(2, 5, 5120).bfloat16(), torch.randn(2, 5, 5120), torch.randn(2, 5, 5120)

    def layer_norm(number: int | None = None) -> tuple[Tensor, list[Violation]]:
        with executing("sm_90", run=without(number)) as runs:
            y = fused_ops.layer_norm_scale_shift(x, scale, shift)
        return y, runs.violations

    right, found["right barriers"] = layer_norm()
    for number in range(5):
        y, found[f"barrier {number}"] = layer_norm(number)
        assert torch.equal(y, right), number
    return found


def main() -> None:
    """Print the violations of every planted fault."""
    found = {name: _run(name) for name in FAULTS} | barriers()
    print(json.dumps({name: [dataclasses.asdict(v) for v in some] for name, some in found.items()}))


if __name__ == "__main__":
    main()
