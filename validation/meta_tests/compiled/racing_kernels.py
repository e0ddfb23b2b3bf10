"""Kernels whose threads read what others overwrite: some are right and some are not.

python -m validation.meta_tests.compiled.racing_kernels    # prints what each gives, as JSON
"""

import importlib
import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from validation.compiled.ptx import harmless
from validation.compiled.ptx.executing import executing, how


@triton.jit
def add_to_scalar(x, value):
    """Every thread loads the element, and one stores it."""
    tl.store(x, tl.load(x) + value)


@triton.jit
def scale_row(x, D, BLOCK: tl.constexpr):
    """A row in place."""
    at = tl.program_id(0) * D + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < D
    tl.store(x + at, tl.load(x + at, mask=inside) * 3, mask=inside)


@triton.jit
def gelu_row(x, D, BLOCK: tl.constexpr):
    """A row in place, through a function with branches: of a thread whose value is discarded too."""
    at = tl.program_id(0) * D + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < D
    value = tl.load(x + at, mask=inside, other=0.0)
    tl.store(x + at, tl.math.erf(value) * value, mask=inside)


@triton.jit
def running_mean(x, mean, D, BLOCK: tl.constexpr):
    """As of a batch normalisation: a row's mean goes into an element that all threads load."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x + row * D + at, mask=at < D, other=0.0), 0)
    tl.store(mean + row, tl.load(mean + row) * 0.9 + total / D * 0.1)


@triton.jit
def first_of_row(x, y, BLOCK: tl.constexpr):
    """In place, and what a late thread reads of the row's first element goes into one element of y alone."""
    at = tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at) * 3)
    first = tl.load(x)
    tl.store(y + at, tl.where(at == BLOCK - 1, first, 1.0))


@triton.jit
def asked_for(x, y, VALUE: tl.constexpr, AFTER: tl.constexpr, BLOCK: tl.constexpr):
    """Where an element of another thread, before or after it is written, has one value. No other value shows."""
    at = tl.arange(0, BLOCK)
    other = tl.load(x + (at ^ 64))
    tl.store(x + at, at * 0.0 + 100.0)
    if AFTER:
        other = tl.load(x + (at ^ 64))
    tl.store(y + at, tl.where(other == VALUE, 1.0, 0.0))


@triton.jit
def neighbour_at_the_end(x, D, BLOCK: tl.constexpr):
    """Each program overwrites its row, and the last one reads the first row's last element."""
    row = tl.program_id(0)
    at = row * D + tl.arange(0, BLOCK)
    other = tl.load(x + D - 1)
    value = tl.load(x + at)
    tl.store(x + at, tl.where(row == tl.num_programs(0) - 1, value + other, value + 1))


@triton.jit
def counted_loop(x, y, BLOCK: tl.constexpr):
    """How often a thread goes round is what another one writes."""
    at = tl.arange(0, BLOCK)
    n = tl.load(x + BLOCK - 1)
    total = tl.zeros([BLOCK], tl.int32)
    while n > 0:
        total += at
        n -= 1
    tl.store(x + at, at)
    tl.store(y + at, total)


def _liger() -> None:
    rope_forward = importlib.import_module("liger_kernel.ops.rope").rope_forward
    q, k = torch.randn(2, 3, 2, 16), torch.randn(2, 3, 1, 16)
    angles = torch.randn(3, 16)
    rope_forward(q.transpose(1, 2), k.transpose(1, 2), angles.cos()[None], angles.sin()[None])


def _scale_row() -> None:
    x = torch.randn(3, 20)
    want = x * 3
    scale_row[(3,)](x, 20, 32)
    assert torch.equal(x, want)


def _gelu_row() -> None:
    x = torch.randn(2, 24) * 3
    want = torch.erf(x.double()) * x
    gelu_row[(2,)](x, 24, 32)
    assert (x - want).abs().max() < 1e-5


def _running_mean() -> None:
    x, mean = torch.ones(5, 100), torch.ones(5)
    running_mean[(5,)](x, mean, 100, 128)
    assert (mean - 1).abs().max() < 1e-6


def _add_to_scalar() -> None:
    x = torch.ones(1)
    add_to_scalar[(1,)](x, 2.0)
    assert x.item() == 3


RIGHT: dict[str, Callable[[], object]] = {
    "liger's rotation": _liger,
    "a scalar": _add_to_scalar,
    "a row smaller than the CTA": _scale_row,
    "a function with branches": _gelu_row,
    "a running mean": _running_mean,
}
WRONG: dict[str, Callable[[], object]] = {
    "one element of the result": lambda: first_of_row[(1,)](torch.randn(128), torch.zeros(128), 128),
    "what is written later": lambda: asked_for[(1,)](torch.ones(128), torch.zeros(128), 100.0, False, 128),
    "what was there before": lambda: asked_for[(1,)](torch.ones(128), torch.zeros(128), 1.0, True, 128),
    "one element of another program": lambda: neighbour_at_the_end[(3,)](torch.randn(3, 128), 128, 128),
    "the length of a loop": lambda: counted_loop[(1,)](
        torch.ones(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32), 128
    ),
}


def main() -> None:
    """Print the violations of each kernel in two modes of ``.approx``, and those by the letter."""
    torch.cuda.current_device = lambda: 0  # Liger asks for it

    def violations(call: Callable[[], object], mode: str = "nearest") -> list[str]:
        with how(races=True, mode=mode), executing("sm_90") as runs:
            call()
        return [str(v) for v in runs.violations]

    calls = {**RIGHT, **WRONG}
    found = {mode: {name: violations(call, mode) for name, call in calls.items()} for mode in ("nearest", "seeded")}
    harmless.are_harmless = lambda writes, again: False  # noqa: ARG005
    found["by the letter"] = {name: violations(call) for name, call in calls.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
