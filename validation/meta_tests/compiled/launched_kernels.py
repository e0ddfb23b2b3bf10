"""Launches as libraries make them; run in a process without the interpreter.

python -m validation.meta_tests.compiled.launched_kernels    # prints what each gives, as JSON
"""

import json
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.executing import executing


@triton.autotune([triton.Config({"FACTOR": factor}) for factor in (3, 5)], ["n"])
@triton.jit
def scaled(x, y, n, FACTOR: tl.constexpr):
    """y = FACTOR x."""
    at = tl.arange(0, 64)
    tl.store(y + at, tl.load(x + at, mask=at < n) * FACTOR, mask=at < n)


@triton.jit
def copied(x, y, n):
    """y = x."""
    at = tl.arange(0, 64)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)


class Buffer:
    """A part of a tensor from an element on, as FlagGems passes it to its kernels."""

    def __init__(self, base: Tensor, offset: int) -> None:
        self.base, self.offset, self.dtype = base, offset, base.dtype

    def data_ptr(self) -> int:
        """The address of the part's first element."""
        return self.base.data_ptr() + self.offset * self.base.element_size()


class Address:
    """An address that no tensor is known of."""

    def __init__(self, t: Tensor) -> None:
        self.dtype, self.address = t.dtype, t.data_ptr()

    def data_ptr(self) -> int:
        """The address."""
        return self.address


def _tuned() -> dict[str, Any]:
    x, y = torch.arange(64.0), torch.zeros(64)
    with executing("sm_90") as runs:
        scaled[(1,)](x, y, 64)
    return {"factor": float(y[1]), "right": torch.equal(y, x * y[1]), "launches": runs.launches}


def _passed(x: Any, n: int) -> dict[str, Any]:
    y = torch.zeros(64)
    with executing("sm_90") as runs:
        try:
            copied[(1,)](x, triton.reinterpret(y, tl.float32), n)
        except NotExecutedError as error:
            return {"refused": str(error), "told": runs.not_executed}
    return {"y": y.tolist(), "violations": [str(v) for v in runs.violations]}


def main() -> None:
    """Print what each launch gives."""
    x = torch.arange(64.0)
    found = {
        "tuned": _tuned(),
        "reinterpreted": _passed(triton.reinterpret(x.view(torch.int32), tl.float32), 64),
        "part": _passed(Buffer(x, 4), 60),
        "beyond the part": _passed(Buffer(x, 4), 61),
        "unknown": _passed(Address(x), 64),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
