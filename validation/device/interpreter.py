"""Triton's interpreter, repaired and checked before it may judge bfloat16.

Measured on Triton 3.6 to 3.9: the interpreter truncates float32 -> bfloat16 where the GPU rounds to
nearest even, whatever ``fp_downcast_rounding`` says. A correct kernel then shows a mean signed error of
-0.5 ulp. `repair` replaces that conversion (and the widening one, which is right but slow);
`verify_bfloat16` compares both with torch on every bfloat16 pattern. If the check fails, bfloat16 is
not judged: see `validation.device`.
"""

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from validation.device import autotuned, interpreter_speed
from validation.device.private import triton_module


def enable() -> None:
    """Make ``triton.jit`` give interpreted kernels. Must run before anything imports triton.

    An autotuned kernel is launched with the first of its configurations that fits, so only that one is judged
    (`autotuned`).

    Raises:
        RuntimeError: triton was imported with the interpreter off, so its own kernels are already decorated.
    """
    if "triton.language" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        raise RuntimeError(
            "triton was imported before the interpreter was enabled, expected TRITON_INTERPRET=1 first: "
            "set it in the environment, or import validation before triton"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    repair()


def float32_to_bfloat16(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """Round float32 bit patterns to bfloat16 bit patterns: to nearest, ties to even; NaN stays NaN.

    Adding 0x7fff and the lowest kept bit carries into the kept half exactly when the dropped half is
    above one half, or is one half and the kept half is odd. A NaN becomes 0x7fc0 without its sign, as in
    ``c10::detail::round_to_nearest_even``; see `verify_bfloat16`.
    """
    lowest_kept = (bits >> np.uint32(16)) & np.uint32(1)
    out = ((bits + np.uint32(0x7FFF) + lowest_kept) >> np.uint32(16)).astype(np.uint16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if is_nan.any():
        out[is_nan] = np.uint16(0x7FC0)
    return out


def bfloat16_to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Widen bfloat16 bit patterns to float32 bit patterns, exactly."""
    return bits.astype(np.uint32) << np.uint32(16)


def repair() -> None:
    """Install the conversions above in the interpreter; once per process.

    Also makes ``tl.fma`` of float32 round once, lets loop bounds of tensor type work under Triton 3.6 with NumPy 2.4,
    runs autotuned kernels with one configuration (`autotuned`), and takes less time
    (`interpreter_speed`).
    """
    tl, interpreter = triton_module("triton.language"), triton_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_bfloat16_repaired", False):
        return
    cast, fp_to_fp, fma = builder.cast_impl, builder.create_fp_to_fp, builder.create_fma

    def convert(src: Any, dst_type: Any) -> Any:
        pair = (src.dtype.scalar, dst_type.scalar)
        if pair == (tl.float32, tl.bfloat16):
            data = float32_to_bfloat16(np.ascontiguousarray(src.data).view(np.uint32))
        elif pair == (tl.bfloat16, tl.float32):
            data = bfloat16_to_float32(np.ascontiguousarray(src.data)).view(np.float32)
        else:
            return None
        return interpreter.TensorHandle(data.reshape(src.data.shape), dst_type.scalar)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        handle = convert(src, dst_type)
        return cast(self, src, dst_type) if handle is None else handle

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        # Replaces only rounding to nearest: a kernel that asks for truncation gets truncation.
        to_nearest = rounding_mode is None or "RTNE" in str(rounding_mode)
        handle = convert(src, dst_type) if to_nearest else None
        return fp_to_fp(self, src, dst_type, rounding_mode) if handle is None else handle

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar != tl.float32:
            return fma(self, x, y, z)
        # The interpreter's own fma rounds the product too. In float64 the product is exact, the sum within 2^-53.
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(wide.astype(np.float32), z.dtype.scalar)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.create_fma = create_fma

    builder._bfloat16_repaired = True
    _take_integers_from_arrays(interpreter)
    autotuned.take(lambda configs: configs[0])
    interpreter_speed.hasten(interpreter)


def _take_integers_from_arrays(interpreter: Any) -> None:
    """Let a tensor be an index: Triton 3.6 calls ``int()`` on an array of one element, which NumPy 2.4 refuses."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def verify_bfloat16() -> list[str]:
    """Compare the interpreter's bfloat16 conversions with torch's; returns the differences in words, empty if none.

    Runs kernels, not the Python functions above, to check what kernels get: widening of all 2^16 bfloat16
    patterns, and narrowing of all 2^16 upper halves with lower halves 0, 1, 0x7fff, 0x8000 (the tie), 0x8001,
    0xffff and eight random ones. NaN need only stay NaN. Takes about 30 ms.
    """
    from validation.device._interpreter_kernels import narrow, widen

    problems = []
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    wide = torch.empty(2**16, dtype=torch.float32)
    widen[(1,)](patterns, wide, 2**16)
    expected = patterns.float()
    wrong = (wide.view(torch.int32) != expected.view(torch.int32)) & ~(wide.isnan() & expected.isnan())
    if wrong.any():
        problems.append(f"bfloat16 -> float32 is wrong for {int(wrong.sum())} of 65536 patterns")

    generator = torch.Generator().manual_seed(0)
    random_halves = torch.randint(0, 2**16, (8,), generator=generator).tolist()
    upper = torch.arange(2**16, dtype=torch.int64) << 16
    for lower in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, *random_halves]:
        bits = upper + lower
        values = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)
        narrowed = torch.empty(2**16, dtype=torch.bfloat16)
        narrow[(1,)](values, narrowed, 2**16)
        rounded = values.to(torch.bfloat16)
        wrong = (narrowed.view(torch.int16) != rounded.view(torch.int16)) & ~(narrowed.isnan() & rounded.isnan())
        if wrong.any():
            first = int(wrong.nonzero()[0])
            problems.append(
                f"float32 -> bfloat16 is wrong for {int(wrong.sum())} of 65536 patterns with lower half {lower:#06x}: "
                f"{values[first].item()!r} gives {narrowed[first].item()!r}, torch gives {rounded[first].item()!r}"
            )
    return problems
