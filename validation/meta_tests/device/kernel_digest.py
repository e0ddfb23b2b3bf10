"""A digest of what our kernels give under the interpreter, with and without what makes it faster."""

import hashlib
from typing import Any

import numpy as np

from validation.cases import strategies
from validation.cases.pool import draw_cases
from validation.cases.tensors import as_bits, materialise
from validation.device import interpreter_speed, select
from validation.judge.expected import absent, outputs_of
from validation.judge.signature import signature_of

OPS = ("layer_norm_scale_shift", "qk_norm_rope", "residual_gate_add", "rms_norm")
CASES = 16


def _leave(interpreter: Any) -> None:
    """Triton's interpreter as Triton wrote it."""
    del interpreter


def main(arrangement: str) -> None:
    """Print a digest of each op's outputs over some cases.

    Args:
        arrangement: ``plain``: Triton's own interpreter; ``hastened``: as the suite uses it; or a fault of the latter.
    """
    steps = interpreter_speed.IN_ONE_STEP
    if arrangement == "plain":
        interpreter_speed.hasten = _leave
    elif arrangement == "sum for difference":
        steps["__sub__"] = (np.add, steps["__sub__"][1])
    select(gpu=False)
    import fused_ops

    for op in OPS:
        digest = hashlib.sha256()
        for case in draw_cases(strategies.cases(signature_of(op)), seed=9, count=CASES):
            arguments = materialise(case)
            result = getattr(fused_ops, op)(**(arguments.kwargs | absent(case, arguments.kwargs)))
            for output in outputs_of(result):
                digest.update(as_bits(output.contiguous()).numpy().tobytes())
        print(op, digest.hexdigest())
