"""`validation.compiled.ptx.capture` in forked children: what the fork server imports, and does once for all of them."""

import fused_ops  # noqa: F401
from validation.compiled.ptx import capture
from validation.device.private import triton_module

# A digest of Triton's own files, which it keeps: 0.4 s.
triton_module("triton.runtime.cache").triton_key()


def main() -> None:
    """As `validation.compiled.ptx.capture.main`."""
    capture.main()
