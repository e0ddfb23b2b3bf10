"""Liger's kernels as compiled for a target, with each choice of what ``.approx`` gives; needs ``liger-kernel``.

python -m validation.meta_tests.compiled.liger_kernels sm_90
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from validation.compiled.ptx.approximate import MODES
from validation.compiled.ptx.executing import executing, how

ROWS, WIDTH = 64, 1024
# Imported by the fork server, once for the processes of all targets: 4.4 s of processor time on a busy machine.
OPS = {
    name: importlib.import_module(f"liger_kernel.ops.{name}")
    for name in ("geglu", "layer_norm", "rms_norm", "rope", "softmax", "swiglu")
}


def calls(dtype: torch.dtype) -> dict[str, tuple[Callable[[], Tensor], Tensor]]:
    """Each kernel's call on the CPU, and its result in float64."""

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(ROWS, WIDTH, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(WIDTH, generator=generator).to(dtype) for _ in range(2))
    X, Y, W, B = (t.double() for t in (x, y, weight, bias))
    return {
        "rms_norm": (
            lambda: OPS["rms_norm"].rms_norm_forward(x, weight, 1e-6, 0.0, "llama", None)[0],
            functional.rms_norm(X, (WIDTH,), W, 1e-6),
        ),
        "layer_norm": (
            lambda: OPS["layer_norm"].layer_norm_forward(x, weight, bias, 1e-6)[0],
            functional.layer_norm(X, (WIDTH,), W, B, 1e-6),
        ),
        "swiglu": (lambda: OPS["swiglu"].swiglu_forward(x, y)[-1], functional.silu(X) * Y),
        "geglu": (lambda: OPS["geglu"].geglu_forward(x, y)[-1], functional.gelu(X, approximate="tanh") * Y),
        "softmax": (lambda: OPS["softmax"]._softmax_forward(x)[0], X.softmax(-1)),
    }


def main(target: str) -> None:
    """Print, by kernel, dtype and mode, the greatest error over the greatest value, and the violations."""
    torch.cuda.current_device = lambda: 0  # Liger asks for it, whatever the tensors' device
    found: dict[str, dict[str, Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for mode in MODES:
            for name, (call, want) in calls(dtype).items():
                with how(mode=mode, races=True), executing(target) as runs:
                    error = (call().double().reshape(want.shape) - want).abs().max() / want.abs().max()
                key = f"{name} {str(dtype).removeprefix('torch.')}"
                found.setdefault(key, {})[mode] = [float(error), [str(v) for v in runs.violations]]
    print(json.dumps(found))


def one_token_each(target: str) -> None:
    """Print the violations of the rotation of q ``[2, 1, 2, 2]``: dense, and in memory of ``[S, B, H, D]``."""
    rope_forward = OPS["rope"].rope_forward
    angles = torch.ones(1, 1)
    found = {}
    for layout, q in (("dense", torch.ones(2, 1, 2, 2)), ("swapped", torch.ones(1, 2, 2, 2).transpose(0, 1))):
        with executing(target) as runs:
            rope_forward(q.transpose(1, 2), torch.ones(2, 1, 1, 2), angles, angles, None, 1, 2)
        found[layout] = [str(v) for v in runs.violations]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
