"""Every fused op on tensors of more than 2^31 elements, by their addresses alone: a process without the interpreter.

    python -m validation.meta_tests.compiled.far_rows [--narrow]    # --narrow: row offsets of 32 bits, as a fault

The tensors are never written, so Linux gives them no memory. The first, some middle and the last programs run; what
they load from such a tensor is NaN, and where they store is all that is looked at.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

import fused_ops
from fused_ops import _launch
from validation.compiled.ptx.executing import executing
from validation.compiled.ptx.launch import Launch, run_launch
from validation.compiled.ptx.machine import Outcome
from validation.ops import reference_op, reference_op_names

TOKENS, WIDTH = (1 << 21) + 64, 1024  # 2^31 elements and 65,536 more
HEADS, HEAD_DIM = 128, 128


def arguments(op: str) -> dict[str, Any]:
    """Uninitialised arguments of an op with more than 2^31 elements in each activation."""
    tokens = TOKENS * WIDTH // (HEADS * HEAD_DIM)
    half = HEAD_DIM // 2
    activation = (1, TOKENS, WIDTH) if op != "split_rotary_embedding" else (1, tokens, HEADS * HEAD_DIM)
    angles = (1, HEADS, tokens, half) if op == "split_rotary_embedding" else (tokens, half)
    heads = (1, tokens, HEADS, HEAD_DIM)
    x = heads if op == "rotary_embedding" else activation
    shapes: dict[str, tuple[int, ...]] = {
        "x": x,
        "residual": activation,
        "q": heads,
        "k": heads,
        "cos": angles,
        "sin": angles,
    }
    shapes |= dict.fromkeys(("shift", "scale", "gate"), (1, 1, WIDTH)) | dict.fromkeys(("weight", "bias"), (WIDTH,))
    shapes |= dict.fromkeys(("q_weight", "k_weight"), (HEAD_DIM,))
    names = inspect.signature(reference_op(op)).parameters
    return {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items() if name in names}


def some_programs(launch: Launch) -> Outcome:
    """Run the programs at both ends and in the middle of a launch."""
    last = launch.grid[0]
    return run_launch(launch, ctas=[0, 1, last // 2 - 1, last // 2, last - 2, last - 1])


def narrow_offsets() -> None:
    """Plant the fault: row offsets of 32 bits."""
    source = inspect.getsource(_launch.row_pointers.fn)
    narrow = source.replace(".to(tl.int64)", "")
    assert narrow != source
    _launch.row_pointers._unsafe_update_src(narrow[narrow.index("def ") :])


def violations() -> Iterator[tuple[str, list[str]]]:
    """The violations of each op."""
    for op in reference_op_names():
        with executing("sm_90", run=some_programs) as runs:
            getattr(fused_ops, op)(**arguments(op))
        assert runs.launches >= 1
        yield op, [str(v) for v in runs.violations]


def main(*arguments: str) -> None:
    """Print the violations of each op as JSON."""
    if "--narrow" in arguments:
        narrow_offsets()
    print(json.dumps(dict(violations())))


if __name__ == "__main__":
    main(*sys.argv[1:])
