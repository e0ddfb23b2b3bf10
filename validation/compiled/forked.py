"""The ahead-of-time compiler in forked children: what the fork server imports, and does once for all of them."""

import gc

import fused_ops  # noqa: F401
from validation.compiled import aot
from validation.device.private import triton_module

# A digest of Triton's own files, which it keeps: 0.4 s.
triton_module("triton.runtime.cache").triton_key()


def main() -> None:
    """As `validation.compiled.aot.main`."""
    gc.disable()  # for a child's few dozen kernels it takes 0.4 s of 6.7
    aot.main()
